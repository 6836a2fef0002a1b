"""What cog puts into configuration.md (`make docs`): rows of settings, exit codes, and what commands print."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from relay import errors, settings
from relay.cli import flags

ROOT = Path(__file__).parent.parent
DEFAULTS = {name: text for name, text, _ in settings.describe(settings.load(env={}))}
SERVICE = {flag.variable: flag for flag in flags.SERVICE}
PROCESS = {flag.variable: flag for flag in flags.PROCESS}


def service(*variables: str) -> str:
    """A table of settings that each service has: PING_INTERVAL is STATUS_PING_INTERVAL and PREFLIGHT_PING_INTERVAL."""
    return _table(SERVICE, settings.ServiceSettings.model_fields, ("STATUS_", "PREFLIGHT_"), variables)


def process(*variables: str) -> str:
    """A table of settings of the process: WORKERS is RELAY_WORKERS."""
    return _table(PROCESS, settings.ProcessSettings.model_fields, ("RELAY_",), variables)


def _table(
    twins: Mapping[str, flags.Flag], fields: Mapping[str, FieldInfo], prefixes: Iterable[str], variables: Iterable[str]
) -> str:
    rows = ["| variable | flag | takes | default | what it is, and an example |", "|---|---|---|---|---|"]
    for variable in variables:
        flag, field = twins[variable], fields[variable.lower()]
        names = [prefix + variable for prefix in prefixes]
        typed = f"`{flag.name} {flag.metavar}`" if flag.metavar else f"`{flag.name}`<br>`--no-{flag.name[2:]}`"
        default = DEFAULTS[names[0]]
        cells = (
            "<br>".join(f"`{name}`" for name in names),
            typed,
            _takes(field),
            f"`{default}`" if default else "not set",
            f"{flag.help}<br>`{names[0]}={settings.example(field)}`",
        )
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows)


def _takes(field: FieldInfo) -> str:
    """The first line of the parser's docstring."""
    [parser] = [known.func for known in field.metadata if isinstance(known, BeforeValidator)]
    return str(parser.__doc__).splitlines()[0].removesuffix(".")


def exit_codes() -> str:
    """A table of them, in the words of the errors' own docstrings."""
    said = {0: "Drained after SIGTERM or Ctrl-C.", 1: "Anything else that the relay itself gives up on."}
    said[2] = "The command line is wrong."
    said |= {error.exit_code: str(error.__doc__).splitlines()[0] for error in errors.RelayError.__subclasses__()}
    rows = (f"| {code} | {sentence.removesuffix('.')} |" for code, sentence in sorted(said.items()))
    return "\n".join(["| exit code | means |", "|---|---|", *rows])


def shell(*commands: str) -> str:
    """Commands of a shell and what they print, in a folder and an environment that know of no setting."""
    script = 'relay() { "$PYTHON" -m relay "$@"; }\n' + "\n".join(
        f"cat <<'SHOWN'\n$ {command}\nSHOWN\n{command}" for command in commands
    )
    env = {"PATH": os.defpath, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(
            ["sh", "-c", script], cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    return f"```\n{run.stdout.rstrip()}\n```"
