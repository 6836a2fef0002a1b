"""The console script `relay`.

Apart from the commands, so that a worker's install, which has no click, gets a sentence and no traceback.
"""

import errno
import importlib.util
import os
import sys

from relay.errors import CoreMissing, RelayError

INSTALL = "pip install --no-cache-dir --force-reinstall 'weppcloud-relay[server]'"
INTERRUPTED = 130  # 128 + SIGINT, what a shell expects of a command that Ctrl-C ended
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # the last is of a terminal that is gone


def main() -> int:
    """Run the command line of `sys.argv`.

    Returns:
        The exit code, where there is no command line to run; all else ends in click, by `SystemExit`.
    """
    try:
        return _main()
    except KeyboardInterrupt:  # while click or a command is imported
        return INTERRUPTED
    except OSError as error:
        if error.errno not in FULL or error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python tries to write the rest when it ends
        print(f"relay: stdout takes nothing more: {error.strerror}", file=sys.stderr)
        return RelayError.exit_code


def _main() -> int:
    for stream in (sys.stdout, sys.stderr):
        if stream is None:  # its number would be given to the next socket
            print("relay: stdout or stderr is closed; send it to a file, or to /dev/null", file=sys.stderr)
            return RelayError.exit_code
        # A log line may hold what the terminal's encoding does not; that is no reason to stop.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if importlib.util.find_spec("click") is None:
        print(f"relay: the command line is not part of the base install; get it with: {INSTALL}", file=sys.stderr)
        return CoreMissing.exit_code
    from relay.cli.commands import relay

    relay(prog_name="relay")
    return 0
