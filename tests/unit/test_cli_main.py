"""The command line as a whole: help, errors, exit codes, and what it costs to start."""

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from relay import errors
from relay.cli.commands import COMMANDS, relay
from relay.cli.main import INTERRUPTED

HEAVY = {"asyncio", "pydantic", "pydantic_settings", "redis", "uvloop", "websockets", "prometheus_client", "client"}


def commands(group=relay, path=()):
    """Every command with the words that call it, groups included."""
    context = click.Context(group)
    yield path, group
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def run(*args, **kwargs):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.run([sys.executable, *args], text=True, timeout=60, **pipes | kwargs)


def test_the_groups_hold_all_commands():
    assert {path[0] for path, _ in commands() if path} == set(COMMANDS)
    assert {"show", "check"} <= {path[-1] for path, _ in commands() if path}


@pytest.mark.parametrize("path", [path for path, _ in commands()], ids=" ".join)
def test_help_shows_examples_that_call_this_command(path):
    result = CliRunner().invoke(relay, [*path, "--help"], prog_name="relay")
    assert result.exit_code == 0
    _, examples = result.stdout.split("\nExamples:\n")
    assert " ".join(("relay", *path)) in examples
    assert all(line.startswith("  ") for line in examples.splitlines())


@pytest.mark.parametrize("path", [path for path, _ in commands() if path], ids=" ".join)
def test_the_list_of_commands_tells_the_whole_first_sentence(path):
    listed = CliRunner().invoke(relay, [*path[:-1], "--help"], prog_name="relay").stdout
    [line] = [line for line in listed.splitlines() if line.startswith(f"  {path[-1]} ")]
    assert line.endswith(".")
    assert not line.endswith("...")


@pytest.mark.parametrize("name", ["ConfigError", "RedisGivenUp", "ListenError", "CoreMissing", "RelayError"])
def test_an_error_is_one_sentence_on_stderr_and_its_exit_code(name, monkeypatch):
    error = getattr(errors, name)

    def fail(*_):
        raise error("what is wrong, and how to mend it")

    monkeypatch.setattr("relay.cli.healthcheck._ask", fail)
    result = CliRunner().invoke(relay, ["healthcheck"])
    assert result.exit_code == error.exit_code
    assert result.stderr == "relay: what is wrong, and how to mend it\n"
    assert result.stdout == ""


def test_ctrl_c_is_quiet(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("relay.cli.healthcheck._ask", interrupt)
    result = CliRunner().invoke(relay, ["healthcheck"])
    assert (result.exit_code, result.stdout, result.stderr) == (INTERRUPTED, "", "")


def test_an_unknown_command_is_a_usage_error():
    result = CliRunner().invoke(relay, ["serv"])
    assert result.exit_code == 2
    assert "No such command 'serv'" in result.stderr


def test_a_reader_that_went_away_is_no_traceback():
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(
        [sys.executable, "-m", "relay", "config", "show"], stdout=write, stderr=subprocess.PIPE, timeout=60
    )
    os.close(write)
    assert (result.returncode, result.stderr) == (1, b"")


@pytest.mark.parametrize("args", [["config", "show"], ["--version"], ["--help"]])
def test_a_full_stdout_is_one_sentence(args):
    with Path("/dev/full").open("wb") as full:
        result = run("-m", "relay", *args, stdout=full)
    assert (result.returncode, result.stderr) == (1, "relay: stdout takes nothing more: No space left on device\n")


@pytest.mark.parametrize(("closed", "said"), [(">&-", "stderr"), ("2>&-", "stdout")])
def test_a_closed_stdout_or_stderr_is_one_sentence_on_the_other(closed, said):
    result = subprocess.run(
        ["sh", "-c", f"exec '{sys.executable}' -m relay config show {closed}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 1
    assert getattr(result, said) == "relay: stdout or stderr is closed; send it to a file, or to /dev/null\n"


def test_ctrl_c_while_a_command_is_imported_is_quiet():
    early = "import sys; from relay.cli import main; main._main = lambda: signal.raise_signal(2); "
    result = run("-c", "import signal; " + early + "sys.exit(main.main())")
    assert (result.returncode, result.stdout, result.stderr) == (INTERRUPTED, "", "")


def test_without_click_it_says_what_to_install():
    hidden = "import sys; sys.modules['click'] = None; from relay.cli.main import main; sys.exit(main())"
    result = run("-c", hidden)
    assert result.returncode == errors.CoreMissing.exit_code
    [line] = result.stderr.splitlines()
    assert line.startswith("relay: ")
    assert line.endswith("pip install --no-cache-dir --force-reinstall 'weppcloud-relay[server]'")
    assert result.stdout == ""


def test_version_names_the_core_and_what_it_stands_on():
    result = run("-m", "relay", "--version")
    assert (result.returncode, result.stderr) == (0, "")
    names = [line.split(" ", 1)[0] for line in result.stdout.splitlines()]
    assert names == ["relay", "core", "Python", "uvloop", "hiredis", "redis-py"]
    assert f"Python {sys.version.split()[0]}" in result.stdout


@pytest.mark.parametrize("args", [["--version"], ["healthcheck", "--url", "http://127.0.0.1:1"], ["tail", "--help"]])
def test_nothing_heavy_is_imported_by_what_must_start_quickly(args):
    result = run("-X", "importtime", "-m", "relay", *args)
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if "import time:" in line}
    assert "click" in imported
    assert not {name.partition(".")[0] for name in imported} & HEAVY


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_text_that_the_terminal_cannot_encode_ends_nothing(encoding):
    said = "import sys; from relay.cli import main; sys.argv = ['relay', 'tail', '\\u2713']; main.main()"
    result = run("-c", said, env={**os.environ, "PYTHONIOENCODING": encoding})
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert ("\\u2713" if encoding == "latin-1" else "✓") in result.stderr
