"""The pictures of the page, `docs/page*.png`, taken of a run of `relay demo`: `make screenshots`."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

DOCS = Path(__file__).parent
RUN = "topaz-creek"
WIDE = {"width": 1280, "height": 860}
PICTURES = {
    "page": {"viewport": WIDE, "color_scheme": "light"},
    "page-dark": {"viewport": WIDE, "color_scheme": "dark"},
    "page-phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light", "device_scale_factor": 2},
}
LARGEST = 250_000  # bytes of a file
RUN_TIME = 60_000  # ms in which the run must come to the moment that is wanted


def tab(browser: Browser, address: str, options: dict[str, object]) -> Page:
    """A page of the run, from its beginning."""
    page = browser.new_context(**options).new_page()
    page.goto(address)
    return page


def main() -> None:
    """Watch a run in three windows, and take each when the watershed is routed."""
    command = [sys.executable, "-m", "relay", "demo", "--run", RUN, "--speed", "2", "--once"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=DOCS.parent) as demo,
        sync_playwright() as play,
    ):
        try:
            host = re.match(r"http://[^/]+", demo.stdout.readline())[0]
            browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            pages = {name: tab(browser, f"{host}/run/{RUN}", options) for name, options in PICTURES.items()}
            for page in pages.values():
                expect(page.get_by_text("wepp watershed: year 2008")).to_be_visible(timeout=RUN_TIME)
            for name, page in pages.items():
                size = len(page.screenshot(path=DOCS / f"{name}.png"))
                print(f"docs/{name}.png: {size} bytes")
                assert size < LARGEST, f"docs/{name}.png has {size} bytes; {LARGEST} are the most"
            browser.close()
        finally:
            demo.terminate()


if __name__ == "__main__":
    main()
