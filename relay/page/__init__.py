"""The page that the relay serves at `/`: the live log and the checklist of one run.

One file with nothing to fetch, so that it works wherever the relay does. Its policy (CSP level 2, section 4.2.3)
lets in the style and the script it came with, by their hashes, and websockets; nothing else.
"""

import base64
import hashlib
import re
from importlib import resources


def index(*, status_port: int, preflight_port: int) -> bytes:
    """The whole document, UTF-8.

    Args:
        status_port: where the page opens `ws://<its own host>:<port>/<run>:<channel>`.
        preflight_port: where it opens `ws://<its own host>:<port>/<run>`.
    """
    page = resources.files(__name__).joinpath("index.html").read_text("utf-8")
    for tag in ("style", "script"):
        page = page.replace(f"{{{{{tag}_hash}}}}", _hash(page, tag))
    page = page.replace("{{status_port}}", str(status_port)).replace("{{preflight_port}}", str(preflight_port))
    return page.encode()


def _hash(page: str, tag: str) -> str:
    """The source expression that lets in the one inline `tag` of the page."""
    [text] = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
