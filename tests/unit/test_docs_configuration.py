"""docs/configuration.md: as the code would have it now, and true of each setting."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from relay.errors import ConfigError
from relay.settings import describe, load

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "configuration.md"
DEFAULTS = {name: text for name, text, _ in describe(load(env={}))}
# What has no row in `relay config show`: variables that both services read, and files of secrets.
MORE = {"REDIS_URL", "REDIS_HOST", "REDIS_PORT", "REDIS_PASSWORD", "REDIS_PASSWORD_FILE", "RELAY_TOKEN_SECRET_FILE"}
MORE |= {"STATUS_REDIS_PASSWORD_FILE", "PREFLIGHT_REDIS_PASSWORD_FILE"}


def rows():
    """The names, what they take, the defaults and the example of each row of a setting."""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 5 and cells[0].startswith("`"):
            names, _, takes, defaults, what = cells
            yield re.findall("`(.*?)`", names), takes, re.findall("`(.*?)`", defaults), re.findall("`(.*?)`", what)[-1]


ROWS = {name: (takes, defaults, example) for names, takes, defaults, example in rows() for name in names}
RANGES = {name: found for name, row in ROWS.items() if (found := re.search(r" from (\w+) to (\w+)", row[0]))}


def why(name, text):
    """What is wrong with the value itself; empty where that is taken, whatever else does not go with it."""
    try:
        load(env={name: text})
    except ConfigError as error:
        return str(error) if str(error).startswith(f"{name}='") else ""
    return ""


def test_it_is_what_the_code_makes_of_it():
    cog = [sys.executable, "-m", "cogapp", "--check", "--diff", "-I", "docs", PAGE.relative_to(ROOT)]
    done = subprocess.run(cog, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"docs/configuration.md is not current: `make docs`\n{done.stdout}{done.stderr}"


def test_each_setting_has_one_row():
    assert sorted(name for names, *_ in rows() for name in names) == sorted({*DEFAULTS, *MORE})


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_default_is_the_one_in_force(name):
    _, defaults, _ = ROWS[name]
    assert DEFAULTS[name] in (defaults or [""])


@pytest.mark.parametrize("name", ROWS)
def test_an_example_is_taken_and_known(name):
    _, _, example = ROWS[name]
    variable, _, text = example.partition("=")
    if variable.endswith("_FILE"):
        assert "No such file" in why(variable, text)
    elif "$(" not in text:
        assert (
            load(env={variable: text, "RELAY_TRUSTED_PROXIES": "127.0.0.1", "RELAY_TOKEN_SECRET": "s" * 32}).warnings
            == ()
        )


@pytest.mark.parametrize("name", RANGES)
def test_a_range_holds_at_its_edges(name):
    low, high = RANGES[name].groups()
    assert (why(name, low), why(name, high)) == ("", "")
    number, unit = re.fullmatch(r"([0-9]+)(\D*)", high).groups()
    assert why(name, f"{int(number) + 1}{unit}")
    if low not in ("0", "0s"):
        number, unit = re.fullmatch(r"([0-9]+)(\D*)", low).groups()
        assert why(name, f"{int(number) - 1}{unit}")


@pytest.mark.parametrize("name", ["STATUS_PING_INTERVAL", "PREFLIGHT_REDIS_RETRY_MAX"])
def test_a_duration_that_a_timer_takes_is_as_long_as_the_page_says(name):
    assert ROWS[name][0] == "A duration longer than 0s, up to 10000h"
    assert why(name, "0s")
    assert not why(name, "10000h")
    assert why(name, "10000h1s")
