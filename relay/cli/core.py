"""Is everything there that serving needs, and if not, what mends it."""

import importlib
import importlib.util
import shutil
import sys
import sysconfig
from pathlib import Path

from relay.cli.main import INSTALL
from relay.errors import CoreMissing

EXTRA = ("uvloop", "hiredis", "websockets", "pydantic_settings", "prometheus_client")


def require() -> None:
    """Return where the relay can serve.

    Raises:
        CoreMissing: a package of the server extra, or the compiled core, is missing; says what to install.
    """
    if not sys.platform.startswith("linux"):
        raise CoreMissing(f"the relay serves on Linux only, and this is {sys.platform}; the client runs anywhere")
    require_extra()
    if importlib.util.find_spec("relay._fanout") is None:
        raise CoreMissing(f"serving needs the compiled core, relay._fanout, not built here: {_remedy()}")
    try:
        importlib.import_module("relay._fanout")
    except ImportError as error:
        raise CoreMissing(f"the compiled core does not load ({error}): {_remedy()}") from error


def require_extra() -> None:
    """Return where the packages of the server extra are.

    Raises:
        CoreMissing: one is missing; says what to install.
    """
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise CoreMissing(f"this needs {', '.join(missing)}, not installed here: {_remedy()}")


def build() -> str | None:
    """The build of the compiled core ("release", "debug", "asan"), or None where there is none that loads."""
    try:
        return str(importlib.import_module("relay._fanout").BUILD)
    except ImportError:
        return None


def _remedy() -> str:
    compiler = shutil.which("gcc") or shutil.which("cc")
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    packages = [*([] if compiler else ["gcc"]), *([] if headers.exists() else ["python3-dev"])]
    return f"apt-get install {' '.join(packages)} && {INSTALL}" if packages else INSTALL
