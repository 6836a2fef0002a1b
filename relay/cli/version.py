"""What `relay --version` says, read from package metadata alone: importing the packages would take longer."""

import platform
from importlib import metadata

from relay.cli import core

PARTS = ("uvloop", "hiredis", "redis")


def report() -> str:
    """The relay's version, its core, and those of what it stands on, one a line."""
    lines = [
        f"relay {_version('weppcloud-relay')}",
        f"core {core.build() or 'not built'}",
        f"Python {platform.python_version()}",
        *(f"{'redis-py' if part == 'redis' else part} {_version(part)}" for part in PARTS),
    ]
    return "\n".join(lines)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"
