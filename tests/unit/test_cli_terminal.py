import pytest

from relay.cli.terminal import RESET, colored, harmless, painted

RED, YELLOW, DIM = "\x1b[31m", "\x1b[33m", "\x1b[2m"


def test_harmless():
    text = "\x1b]0;title\x07 \x9b31m \r \b \x7f \u202e \u2066 é ✓ 👩\u200d🌾 tab\tline\n"
    shown = harmless(text)
    assert shown == "\\x1b]0;title\\x07 \\x9b31m \\r \\x08 \\x7f \\u202e \\u2066 é ✓ 👩\u200d🌾 tab\tline\n"


@pytest.mark.parametrize(
    ("text", "style"),
    [
        ("rq:7 STARTED f(r1)", "\x1b[1;36m"),
        ("rq:7 COMPLETED f(r1)", "\x1b[1;32m"),
        ("rq:7 EXCEPTION f(r1)", "\x1b[1;31m"),
        ("rq:7 TRIGGER   wepp WEPP_RUN_TASK_COMPLETED", "\x1b[1;35m"),
        ("STARTED f(r1)", "\x1b[1;36m"),
        ("2026-04-26 10:00:00 ERROR    soils: no map unit", RED),
        ("[ERROR] x", RED),
        ("Traceback (most recent call last):", RED),
        ("WARNING:wepp:x", YELLOW),
        ("WARN x", YELLOW),
        ("DEBUG x", DIM),
    ],
)
def test_what_matters_stands_out(text, style):
    assert painted(text) == f"{style}{text}{RESET}"


@pytest.mark.parametrize(
    "text",
    ["", "hillslope 1 of 9", "INFO x", "an error", "0 ERRORS", "a Traceback (most recent call last)", "we STARTED f"],
)
def test_what_does_not_matter_is_as_it_was(text):
    assert painted(text) == text


def test_colours_of_its_own_are_kept_and_ended_and_nothing_else_is_obeyed():
    assert painted("\x1b[1;38:5:1mred\x1b[0m ERROR") == f"\x1b[1;38:5:1mred\x1b[0m ERROR{RESET}"
    assert painted("\x1b[31ma\nb\n") == f"\x1b[31ma{RESET}\nb\n"
    assert painted("\x1b[31m\x1b[2J\x9b1m\x1b[>4;1m\r\x1b") == (f"\x1b[31m\\x1b[2J\\x9b1m\\x1b[>4;1m\\r\\x1b{RESET}")


@pytest.mark.parametrize(
    "code", ["8", "08", "1;8", "8;31", "38;5;8;8", "38;5;1;8", "8:1", "38;2;1;1;1;8", "38:2::1:1:1;8"]
)
def test_no_text_is_hidden(code):
    assert painted(f"a\x1b[{code}mb\x1b[0m") == f"a\\x1b[{code}mb\x1b[0m{RESET}"


@pytest.mark.parametrize(
    "code", ["38;5;8", "1;48;5;8;4", "38:5:8", "038;05;8", "38;2;8;8;8", "58;2;8;1;8", "38:2::8:8:8", "18", "28", "88"]
)
def test_an_8_that_hides_nothing_is_let_through(code):
    assert painted(f"a\x1b[{code}mb\x1b[0m") == f"a\x1b[{code}mb\x1b[0m{RESET}"


def test_each_line_of_a_text_has_its_style():
    assert painted("ERROR a\nb") == f"{RED}ERROR a{RESET}\n{RED}b{RESET}"


@pytest.mark.parametrize(
    ("choice", "terminal", "env", "expected"),
    [
        ("auto", True, {}, True),
        ("auto", False, {}, False),
        ("auto", True, {"NO_COLOR": "1"}, False),
        ("auto", True, {"NO_COLOR": ""}, True),  # no-color.org: "when present and not an empty string"
        ("auto", True, {"TERM": "dumb"}, False),
        ("always", False, {"NO_COLOR": "1"}, True),
        ("never", True, {}, False),
    ],
)
def test_when_there_is_colour(monkeypatch, choice, terminal, env, expected):
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert colored(choice) is expected
