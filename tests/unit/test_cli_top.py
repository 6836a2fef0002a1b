"""The table and the rates of `relay top`, from what a relay once said, and its terminal."""

import json
import os

import pytest
from click.testing import CliRunner

from relay.cli import top
from relay.cli.commands import relay
from relay.cli.screen import plain, span
from relay.cli.top import Look, rates, table
from tests.conftest import OURS
from tests.integration.fronts import Front, saying

COUNTERS = {
    "connections": 1200,
    "opened": 1300,
    "topics": 31,
    "frames": 480_000,
    "bytes": 50_000_000,
    "messages": 1600,
    "closes": {"1008": 3, "1013": 1},
    "largest": [{"topic": "r1:wepp", "clients": 300, "undelivered_bytes": 0}],
}
LINK = {"up": True, "seconds": 100.0, "trouble": "", "reconnects": 1}
DEBUG = {
    "version": "0.1.0",
    "build": "release",
    "seconds": 100.0,
    "totals": {"sockets": 1204, "heads": 0, "live_bytes": 1 << 20, "inbound_bytes": 0},
    "services": {"status": COUNTERS},
    "slowest": [{"service": "status", "address": "10.0.0.7", "waiting_bytes": 204800, "oldest_seconds": 4.25}],
}
READY = {
    "ready": True,
    "draining": False,
    "services": {"status": {"ready": True, "why": [], "link": LINK, "commands": LINK}},
}


def seen(at=100.0, *, debug=None, ready=None, **counters):
    """A look; `counters` are changes of the status service's."""
    services = {"status": {**COUNTERS, **counters}}
    return Look(
        at, "unix:/x", {**DEBUG, "seconds": at, "services": services, **(debug or {})}, {**READY, **(ready or {})}
    )


def test_rates_are_what_two_looks_differ_by():
    now = seen(102.0, frames=480_500, bytes=50_001_000, messages=1610)
    assert rates(now, seen(100.0)) == {"status": {"messages": 5.0, "frames": 250.0, "bytes": 500.0}}


@pytest.mark.parametrize(
    ("now", "before"),
    [
        (seen(), None),
        (seen(3.0, frames=1, bytes=1, messages=1), seen(100.0)),  # restarted in between
        (seen(), seen()),  # no time has passed
    ],
)
def test_rates_that_cannot_be_known(now, before):
    assert rates(now, before) == {"status": {"messages": None, "frames": None, "bytes": None}}


def test_a_counter_that_an_older_relay_lacks_is_no_rate():
    before, now = seen(100.0), seen(101.0)
    del now.debug["services"]["status"]["messages"]
    assert rates(now, before)["status"] == {"messages": None, "frames": 0.0, "bytes": 0.0}


def test_the_whole_table():
    now = seen(102.0, frames=480_500, bytes=50_004_096, messages=1610, closes={"1008": 3, "1013": 3})
    assert table(now, seen(100.0)) == [
        "relay 0.1.0, ready, up 1m42s, unix:/x",
        "1204 sockets, 0 unfinished heads, frames waiting 1.0 MiB, requests waiting 0 B",
        "",
        "SERVICE          SOCKETS  TOPICS  MESSAGES/S  FRAMES/S  BYTES/S  LINK/CMDS  LOST",
        "status              1200      31         5.0       250  2.0 KiB      up/up     2",
        "",
        f"{'TOPIC':62}  CLIENTS  WAITING",
        f"{'r1:wepp':62}      300      0 B",
        "",
        f"{'SLOWEST CLIENT':53}  SERVICE    WAITING  SINCE",
        f"{'10.0.0.7':53}   status  200.0 KiB  4.2 s",
        "",
        "closes of status  1008: 3   1013: 3 (+2)",
    ]


def test_what_is_wrong_is_said_below_the_services():
    down = {**LINK, "up": False, "trouble": "Connection refused"}
    services = {"status": {"ready": False, "why": ["no Redis for status commands: x"], "link": LINK, "commands": down}}
    shown = "\n".join(table(seen(ready={"ready": False, "services": services}), None))
    assert "NOT READY" in shown
    assert "up/DOWN" in shown
    assert "\n  status: no Redis for status commands: x\n" in shown
    assert "draining" in table(seen(ready={"draining": True}), None)[0]


def test_key_events_that_are_off_are_said():
    services = {"status": {**READY["services"]["status"], "key_events": "off"}}
    assert "relay doctor" in "\n".join(table(seen(ready={"services": services}), None))


def test_worker_processes_are_rows_of_whatever_is_said_of_them():
    workers = [{"slot": 0, "pid": 123, "sockets": 600, "more": {}}, {"slot": 1, "pid": 124}]
    shown = [line.split() for line in table(seen(debug={"workers": workers}), None)]
    at = shown.index(["WORKER", "SLOT", "PID", "SOCKETS"])
    assert shown[at + 1 : at + 3] == [["0", "123", "600"], ["1", "124", "-"]]


@pytest.mark.parametrize("workers", [None, [], {}, [1], "x"])
def test_workers_that_are_no_rows_are_left_out(workers):
    assert table(seen(debug={"workers": workers}), None) == table(seen(), None)


HOSTILE = ["\x1b[2J\x1b]0;title\x07:wepp", "a\r\nb:\x9b31m", "\u202egnp.exe:\u2066x", "é" * 200 + "\0", "x" * 1000]


@pytest.mark.parametrize("width", [1, 20, 80, 200])
@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_names_of_others_are_harmless_and_stay_in_their_column(name, width):
    said = {
        "version": name,
        "slowest": [{"service": name, "address": name, "waiting_bytes": 1, "oldest_seconds": 1.0}],
        "workers": [{name: name}],
    }
    largest = [{"topic": name, "clients": 7, "undelivered_bytes": 0}]
    services = {"status": {**READY["services"]["status"], "why": [name]}}
    lines = table(seen(debug=said, ready={"services": services}, largest=largest, closes={name: 1}), None, width)
    for line in lines:
        assert line.isascii()
        assert line.isprintable()
        assert len(line) <= max(width, 3)
    if width == 80:
        assert any(line.endswith("        7      0 B") for line in lines)


def test_plain():
    assert plain("r1:wepp ~\x1b\u202eé\n") == "r1:wepp ~\\x1b\\u202e\\xe9\\n"


@pytest.mark.parametrize(
    ("value", "said"), [(None, "-"), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB")]
)
def test_sizes(value, said):
    assert top._size(value) == said


@pytest.mark.parametrize(
    ("value", "said"), [(None, "-"), (5, "0m05s"), (3700, "1h01m"), (90_000, "1d1h")]
)  # fmt: skip
def test_spans(value, said):
    assert span(value) == said


# ---- the command ----


def invoke(*args, **env):
    ours = dict.fromkeys(name for name in os.environ if name.startswith(OURS))
    return CliRunner().invoke(relay, ["top", *args], env={**ours, **env})


def test_without_an_address_it_says_how_to_have_one():
    result = invoke()
    assert (result.exit_code, result.stdout) == (3, "")
    assert "RELAY_INTERNAL_ADDR=unix:/run/relay/internal.sock" in result.stderr
    assert "--internal-addr" in result.stderr


@pytest.mark.parametrize(("address", "why"), [("127.0.0.1:1", "Connection refused"), ("unix:/no/such", "No such file")])
def test_nobody_there(address, why):
    result = invoke("--once", RELAY_INTERNAL_ADDR=address)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"relay: {address}: {why}")
    assert f"RELAY_INTERNAL_ADDR={address}" in result.stderr


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-x\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n<html>",
        b"HTTP/1.1 404 Not Found\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n[]",
    ],
)
def test_what_is_no_listener_for_operators(said):
    with Front(saying(said)) as front:
        result = invoke("--once", "--internal-addr", f"127.0.0.1:{front.port}")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "does a relay run with RELAY_INTERNAL_ADDR=" in result.stderr


@pytest.mark.parametrize("args", [["--internal-addr", "fd:3"], ["--interval", "5"], ["--interval", "0s"]], ids=" ".join)
def test_a_wrong_option_is_a_usage_error(args):
    assert invoke("--internal-addr", "127.0.0.1:1", *args).exit_code == 2


def page():
    """Both pages in one, for a listener that says the same to whatever it is asked."""
    services = {"status": {**COUNTERS, **READY["services"]["status"], "largest": [
        {"topic": name, "clients": 7, "undelivered_bytes": 0} for name in HOSTILE]}}  # fmt: skip
    return b"HTTP/1.1 200 OK\r\n\r\n" + json.dumps({**DEBUG, **READY, "services": services}).encode()


def test_one_table_of_a_listener_that_means_harm():
    with Front(saying(page())) as front:
        result = invoke("--once", "--interval", "100ms", "--internal-addr", f"127.0.0.1:{front.port}")
    assert (result.exit_code, result.stderr) == (0, "")
    assert all(line.isprintable() and line.isascii() and len(line) <= 80 for line in result.stdout.splitlines())
    assert "\\x1b[2J" in result.stdout


def test_one_object_a_look():
    with Front(saying(page())) as front:
        result = invoke("--once", "--json", "--interval", "100ms", "--internal-addr", f"127.0.0.1:{front.port}")
    assert len(result.stdout.splitlines()) == 1
    said = json.loads(result.stdout)
    assert set(said) == {"time", "address", "rates", "debug", "ready"}
    assert said["rates"]["status"] == {"messages": 0.0, "frames": 0.0, "bytes": 0.0}
    assert "\x1b" not in result.stdout
