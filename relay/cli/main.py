"""The console script `relay`.

Apart from the commands, so that a worker's install, which has no click, gets a sentence and no traceback.
"""

import importlib.util
import sys

from relay.errors import CoreMissing

INSTALL = "pip install --no-cache-dir --force-reinstall 'weppcloud-relay[server]'"


def main() -> int:
    """Run the command line of `sys.argv`.

    Returns:
        The exit code, where there is no command line to run; all else ends in click, by `SystemExit`.
    """
    if importlib.util.find_spec("click") is None:
        print(f"relay: the command line is not part of the base install; get it with: {INSTALL}", file=sys.stderr)
        return CoreMissing.exit_code
    from relay.cli.commands import relay

    for stream in (sys.stdout, sys.stderr):
        # A log line may hold what the terminal's encoding does not; that is no reason to stop.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    relay(prog_name="relay")
    return 0
