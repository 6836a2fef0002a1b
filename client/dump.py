"""The file `redisprep.dump`: a run's hash as one JSON object, for people and archives (contract, section 2).

Serialization is one-way; only `RedisPrep.lazy_load` reads a dump back, and only when the host asks for it.
"""

import errno
import json
import os
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from client import keys

NAME = "redisprep.dump"
PATIENCE = 1.0  # seconds for which a hash that others go on writing is dumped again: they dump, too


class Dump:
    """The dump of one working directory, and `redisprep.dump.bak` beside it."""

    def __init__(self, wd: str) -> None:
        self.path = Path(wd, NAME)
        self.backup = Path(wd, NAME + ".bak")

    def save(self, read: Callable[[], Mapping[str, str]], removed: Collection[str] = ()) -> None:
        """Write what `read()` returns, and again until Redis still says the same after the rename.

        So of two processes that dump at once the one that renames last has looked again after it, and the dump that
        stays lacks nothing. A lock would do the same, but flock is not to be had on every NFS that runs live on.
        Where others write without a pause that ends after a second: the last of them dumps what it wrote.
        Does nothing where the working directory is gone.

        Args:
            read: reads the run's hash from Redis.
            removed: fields that the caller has just removed; their loss needs no backup.

        Raises:
            OSError: the directory cannot be written to, or the disk is full; the old dump is as it was.
        """
        fields = dumped(read())
        try:
            self._save(fields, read, removed)
        except OSError as error:
            if self.path.parent.is_dir():
                text = f"{error.strerror or error}, so the dump is as it was before; Redis has the change"
                raise OSError(error.errno, text, str(self.path)) from error

    def _save(self, fields: dict[str, str], read: Callable[[], Mapping[str, str]], removed: Collection[str]) -> None:
        until = time.monotonic() + PATIENCE
        while self.path.parent.is_dir():
            old = _text(self.path)
            if not _keeps(fields, old, removed):
                # Another process may have added them since: only what is missing twice is lost.
                fields = dumped(read())
                if not _keeps(fields, old, removed):
                    self._back_up(old)
            _replace(self.path, json.dumps(fields))
            latest = dumped(read())
            if latest == fields or time.monotonic() >= until:
                return
            fields = latest

    def check_writable(self) -> None:
        """See that a dump can be written, for who writes it later and has nobody to tell then.

        Raises:
            PermissionError: the working directory is there, and cannot be written to.
        """
        wd = self.path.parent
        if wd.is_dir() and not os.access(wd, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "no dump can be written here; mend the rights, or the mount", str(wd))

    def load(self) -> dict[str, str]:
        """The fields of the dump; empty where there is none.

        Raises:
            ValueError: the file is no JSON object.
        """
        try:
            fields = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise ValueError(f"{self.path} is no JSON ({error}); move it away to start afresh") from None
        if not isinstance(fields, dict):
            raise ValueError(f"{self.path} is no JSON object; move it away to start afresh")
        return dumped({name: str(value) for name, value in fields.items()})

    def _back_up(self, old: str) -> None:
        """Keep `old` as the backup, unless the backup there is has more fields: after a flush the dumps grow again."""
        if len(_fields(_text(self.backup))) <= len(_fields(old)):
            _replace(self.backup, old)


def dumped(fields: Mapping[str, str]) -> dict[str, str]:
    """The fields that belong in a dump: all but the locks, which mean nothing once their holder is gone."""
    return {name: value for name, value in fields.items() if not name.startswith(keys.LOCKED)}


def _keeps(new: Mapping[str, str], old: str, removed: Collection[str]) -> bool:
    return _fields(old).keys() <= new.keys() | set(removed)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        return ""


def _fields(text: str) -> dict[str, str]:
    """The fields of a dump, which an older worker that died while it wrote may have left half: then none."""
    try:
        fields = json.loads(text)
    except ValueError:
        return {}
    return dumped(fields) if isinstance(fields, dict) else {}


def _replace(path: Path, text: str) -> None:
    """Write to a file of our own beside `path`, fsync, rename: never half a file, and the rights that umask gives."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        with scratch.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
