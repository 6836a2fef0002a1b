"""`tail` and `checklist` against a websocket server that plays one script per connection."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from http import HTTPStatus

import pytest
from click.testing import CliRunner
from websockets.sync.server import serve

from relay.cli import checklist as checklist_command
from relay.cli import follow
from relay.cli.checklist import changes
from relay.cli.commands import relay
from relay.cli.tail import harmless

PING = '{"type":"ping"}'


def status(text):
    return json.dumps({"type": "status", "data": text})


def snapshot(locks=(), **items):
    locked = {"wepp": False, "soils": False} | dict.fromkeys(locks, True)
    return json.dumps({"type": "preflight", "checklist": items, "lock_statuses": locked, "last_modified": 7})


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(follow, "RETRY_BASE", 0.001)
    monkeypatch.setattr(follow, "RETRY_MAX", 0.001)


@pytest.fixture
def fake():
    """A server: `fake(script, ...)` -> its URL; connection n is answered by script n, the last one for all after it.

    A script is called with the connection, or is an HTTP status that refuses it. `fake.paths` are those asked for.
    """
    with contextlib.ExitStack() as stack:
        paths = []

        def start(*scripts):
            def script():
                return scripts[min(len(paths), len(scripts)) - 1]

            def refuse(connection, request):
                paths.append(request.path)
                if isinstance(script(), HTTPStatus):
                    return connection.respond(script(), "no such thing here\n")
                return None

            server = stack.enter_context(serve(lambda c: script()(c), "127.0.0.1", 0, process_request=refuse))
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            return f"ws://127.0.0.1:{server.socket.getsockname()[1]}"

        start.paths = paths
        yield start


def saying(*messages, close=1000, reason=""):
    def script(connection):
        for message in messages:
            connection.send(message)
        connection.close(close, reason)

    return script


def staying(*messages):
    def script(connection):
        for message in messages:
            connection.send(message)
        for _ in connection:
            pass

    return script


def invoke(*args):
    return CliRunner().invoke(relay, args, catch_exceptions=False)


# --- tail ----


def test_tail_prints_what_is_published_and_ends_after_n(fake):
    url = fake(staying(status("one"), status(""), status('a "b" \\ c'), status("four")))
    result = invoke("tail", "run1:wepp", "--url", url, "-n", "3")
    assert (result.exit_code, result.stdout, result.stderr) == (0, 'one\n\na "b" \\ c\n', "")
    assert fake.paths == ["/run1:wepp?v=2"]


def test_tail_asks_with_both_parts_encoded(fake):
    invoke("tail", "batch;;a;;r:wepp", "--url", fake(staying(status("x"))) + "/base/", "-n", "1")
    assert fake.paths == ["/base/batch%3B%3Ba%3B%3Br:wepp?v=2"]


@pytest.mark.parametrize(("reason", "said"), [("link", "lost Redis"), ("size", "larger"), ("new", "may be missing")])
def test_tail_says_where_lines_may_be_missing(fake, reason, said):
    url = fake(staying(status("one"), json.dumps({"type": "gap", "reason": reason}), status("two")))
    result = invoke("tail", "r:c", "--url", url, "-n", "2")
    assert result.stdout == "one\ntwo\n"
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_tail_as_json_is_one_object_a_line(fake):
    lines = ["two\nlines", "\x1b[31m\x7f é \u2028"]
    result = invoke("tail", "r:c", "--url", fake(staying(*map(status, lines))), "--json", "-n", "2")
    assert [json.loads(line)["data"] for line in result.stdout.splitlines()] == lines
    assert result.stdout.isascii()
    assert "\x1b" not in result.stdout


def test_tail_answers_pings_and_passes_over_all_else(fake):
    heard = []

    def script(connection):
        for other in (PING, "no json", "[1]", '{"type":"ready"}', b"\0"):
            connection.send(other)
        heard.append(connection.recv(timeout=5))
        staying(status("last"))(connection)

    result = invoke("tail", "r:c", "--url", fake(script), "-n", "1")
    assert (result.exit_code, result.stdout) == (0, "last\n")
    assert json.loads(heard[0]) == {"type": "pong"}


def test_tail_reconnects_and_says_so_once(fake):
    unavailable = HTTPStatus.SERVICE_UNAVAILABLE
    restarting = saying(status("before"), close=1012, reason="the relay is restarting")
    url = fake(restarting, unavailable, unavailable, staying(status("after")))
    result = invoke("tail", "r:c", "--url", url, "-n", "2")
    assert (result.exit_code, result.stdout) == (0, "before\nafter\n")
    assert result.stderr.splitlines() == [
        f"relay: {url}/r:c: closed 1012 (the relay is restarting); reconnecting",
        f"relay: connected to {url}/r:c again",
    ]
    assert len(fake.paths) == 4


@pytest.mark.parametrize("code", [HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND])
def test_tail_ends_where_the_relay_refuses_for_good(fake, code):
    url = fake(code)
    result = invoke("tail", "r:c", "--url", url)
    assert result.exit_code == 1
    assert result.stderr == f"relay: {url}/r:c: refused with {code.value}: no such thing here\n"


@pytest.mark.parametrize("code", [HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.BAD_GATEWAY])
def test_tail_tries_again_where_the_answer_is_not_now(fake, code):
    result = invoke("tail", "r:c", "--url", fake(code, staying(status("x"))), "-n", "1")
    assert (result.exit_code, result.stdout) == (0, "x\n")
    assert f"answered {code.value}" in result.stderr


def test_tail_ends_where_the_subscription_is_refused_after_the_handshake(fake):
    url = fake(saying(close=1008, reason="not permitted"))
    result = invoke("tail", "r:c", "--url", url)
    assert result.exit_code == 1
    assert "closed 1008 (not permitted): the relay refuses this subscription" in result.stderr


def test_tail_comes_back_after_a_1008_for_silence(fake):
    result = invoke("tail", "r:c", "--url", fake(saying(PING, close=1008), staying(status("x"))), "-n", "1")
    assert (result.exit_code, result.stdout) == (0, "x\n")


def test_tail_waits_for_a_relay_that_is_not_there_yet():
    process = subprocess.Popen(
        [sys.executable, "-m", "relay", "tail", "r:c", "--url", "ws://127.0.0.1:1"], stderr=subprocess.PIPE
    )
    assert process.stderr.readline() == b"relay: ws://127.0.0.1:1/r:c: Connection refused; reconnecting\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.read() == b""
    assert process.wait(10) == 130
    process.stderr.close()


def test_tail_ends_when_its_reader_does(fake):
    lines = [status("x")] * 1000
    process = subprocess.Popen(
        [sys.executable, "-m", "relay", "tail", "r:c", "--url", fake(staying(*lines))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"x\n"
    process.stdout.close()
    assert process.wait(10) == 1
    assert process.stderr.read() == b""
    process.stderr.close()


def test_tail_on_a_terminal_shows_control_characters(fake):
    url = fake(staying(status("a\x1b[2Jb")))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "relay", "tail", "r:c", "--url", url, "-n", "1"]
    assert subprocess.run(command, stdout=theirs, timeout=30).returncode == 0
    os.close(theirs)
    assert os.read(ours, 100) == b"a\\x1b[2Jb\r\n"
    os.close(ours)


def test_harmless():
    text = "\x1b]0;title\x07 \x9b31m \r \b \x7f \u202e \u2066 é ✓ 👩\u200d🌾 tab\tline\n"
    shown = harmless(text)
    assert shown == "\\x1b]0;title\\x07 \\x9b31m \\r \\x08 \\x7f \\u202e \\u2066 é ✓ 👩\u200d🌾 tab\tline\n"


# --- checklist ----


def test_checklist_prints_the_snapshot_and_ends(fake):
    result = invoke("checklist", "run1", "--url", fake(staying(snapshot(["wepp"], channels=True, outlet=False))))
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "[x] channels\n[ ] outlet\nwepp locked\n"
    assert fake.paths == ["/run1"]


def test_checklist_as_json(fake):
    result = invoke("checklist", "a;;b", "--url", fake(staying(PING, snapshot(channels=True))), "--json")
    assert json.loads(result.stdout) == json.loads(snapshot(channels=True))
    assert fake.paths == ["/a%3B%3Bb"]


def test_checklist_watch_prints_changes_over_reconnections(fake):
    first, last = snapshot(["soils"], soils=False), snapshot(soils=True)
    url = fake(saying(first, first, close=1012), saying(last, last, close=1012), HTTPStatus.NOT_FOUND)
    result = invoke("checklist", "r", "--watch", "--url", url)
    assert result.stdout == "[ ] soils\nsoils locked\n[x] soils\nsoils unlocked\n"
    assert result.exit_code == 1
    assert "refused with 404" in result.stderr


def test_checklist_without_watch_fails_at_once(fake):
    result = invoke("checklist", "r", "--url", "ws://127.0.0.1:1")
    assert result.exit_code == 1
    assert result.stderr == "relay: ws://127.0.0.1:1/r: Connection refused; is the relay running there?\n"
    result = invoke("checklist", "r", "--url", fake(saying(close=1012)))
    assert "closed 1012; is the relay running there?" in result.stderr


def test_checklist_without_a_snapshot_ends_with_a_sentence(fake, monkeypatch):
    monkeypatch.setattr(checklist_command, "WAIT", 0.2)
    result = invoke("checklist", "r", "--url", fake(staying(PING)))
    assert result.exit_code == 1
    assert "no snapshot within 0.2 s; does the relay reach its Redis?" in result.stderr


def test_changes():
    one = json.loads(snapshot(["wepp"], a=True, b=False))
    assert list(changes({}, one)) == ["[x] a", "[ ] b", "wepp locked"]
    assert list(changes(one, one)) == []
    two = json.loads(snapshot(["soils"], a=False, b=False, c=True))
    assert list(changes(one, two)) == ["[ ] a", "[x] c", "wepp unlocked", "soils locked"]


@pytest.mark.parametrize("command", [["tail", "r:c"], ["checklist", "r"]])
def test_a_url_that_is_none_is_a_usage_error(command):
    result = invoke(*command, "--url", "localhost:9002")
    assert result.exit_code == 2
    assert "not an address such as ws://localhost:9002" in result.stderr
