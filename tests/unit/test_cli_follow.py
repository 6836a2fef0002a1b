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
from pathlib import Path

import pytest
from click.testing import CliRunner
from websockets.sync.server import serve

from relay.cli import checklist as checklist_command
from relay.cli import follow
from relay.cli.checklist import changes
from relay.cli.commands import relay
from tests.integration.peers import wait_for
from tests.integration.terminal import Terminal

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
                    answer = connection.respond(script(), start.body)
                    answer.headers.update(start.headers)
                    return answer
                return None

            server = stack.enter_context(serve(lambda c: script()(c), "127.0.0.1", 0, process_request=refuse))
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            return f"ws://127.0.0.1:{server.socket.getsockname()[1]}"

        start.paths, start.body, start.headers = paths, "no such thing here\n", {}
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
        heard.append(connection.recv(timeout=20))
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


@pytest.mark.parametrize(
    ("command", "asked"),
    [(["tail", "a;b:c"], "a%3Bb:c"), (["checklist", "r"], "r"), (["checklist", "r", "--watch"], "r")],
)
@pytest.mark.parametrize(
    ("location", "where", "told"),
    [
        (
            "https://wepp.cloud/micro/{}?token=s3cret",
            "https://wepp.cloud/micro/{}",
            "give --url wss://wepp.cloud/micro",
        ),
        ("/micro/{}", "http://{host}/micro/{}", "give --url ws://{host}/micro"),
        ("https://wepp.cloud/login?next={}", "https://wepp.cloud/login", "no relay is there"),
        ("http://[", "http://[", "no relay is there"),
    ],
)
def test_a_redirect_is_not_followed_and_names_the_address_to_give(fake, command, asked, location, where, told):
    url = fake(HTTPStatus.MOVED_PERMANENTLY)
    fake.headers = {"Location": location.format(asked)}
    result = invoke(*command, "--url", url, "--token", "s3cret")
    assert result.exit_code == 1
    said = f"answered 301 with {where}: {told}".format(asked, host=url.partition("//")[2])
    assert result.stderr == f"relay: {url}/{asked}: {said}\n"
    assert len(fake.paths) == 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("\x1b]0;owned\x07\x1b[2J\nsecond line", "\\x1b]0;owned\\x07\\x1b[2J"),
        ("<html>\r\n<head><title>404 Not Found", "Not Found"),
        ("x" * 5000, "x" * 200 + "..."),
        ("", "Not Found"),
    ],
)
def test_what_a_server_says_with_its_refusal_is_one_harmless_line(fake, body, said):
    url = fake(HTTPStatus.NOT_FOUND)
    fake.body = body
    assert invoke("tail", "r:c", "--url", url).stderr == f"relay: {url}/r:c: refused with 404: {said}\n"


def test_the_reason_of_a_close_is_harmless(fake):
    result = invoke("tail", "r:c", "--url", fake(saying(close=1008, reason="\x1b[2J\nno")))
    assert "closed 1008 (\\x1b[2J no): the relay refuses" in result.stderr


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


def test_tail_notices_a_relay_that_hangs(fake, monkeypatch):
    assert follow.PING + follow.PONG == 30
    monkeypatch.setattr(follow, "PING", 0.1)
    monkeypatch.setattr(follow, "PONG", 0.2)

    over = threading.Event()

    def hung(connection):
        with connection.protocol_mutex:  # nothing is read meanwhile, nor answered
            assert over.wait(30)

    result = invoke("tail", "r:c", "--url", fake(hung, staying(status("x"))), "-n", "1")
    assert (result.exit_code, result.stdout) == (0, "x\n")
    over.set()
    assert "closed 1006; reconnecting" in result.stderr


def test_tail_waits_for_a_relay_that_is_not_there_yet():
    process = subprocess.Popen(
        [sys.executable, "-m", "relay", "tail", "r:c", "--url", "ws://127.0.0.1:1"], stderr=subprocess.PIPE
    )
    assert process.stderr.readline() == b"relay: ws://127.0.0.1:1/r:c: Connection refused; reconnecting\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.read() == b""
    assert process.wait(30) == 130
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
    assert process.wait(30) == 1
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize("command", [["tail", "r:c"], ["tail", "r:c", "r:d"], ["checklist", "r"]])
def test_a_full_disk_is_one_sentence(fake, command):
    url = fake(staying(status("x"), snapshot(wepp=True)))
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(
            [sys.executable, "-m", "relay", *command, "--url", url], stdout=full, stderr=subprocess.PIPE, timeout=60
        )
    assert (result.returncode, result.stderr) == (1, b"relay: stdout takes nothing more: No space left on device\n")


def test_tail_on_a_terminal_shows_control_characters(fake):
    url = fake(staying(status("a\x1b[2Jb")))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "relay", "tail", "r:c", "--url", url, "-n", "1"]
    assert subprocess.run(command, stdout=theirs, timeout=60).returncode == 0
    os.close(theirs)
    assert os.read(ours, 100) == b"a\\x1b[2Jb\r\n"
    os.close(ours)


def saying_by_channel(**messages):
    """A script that says what is given for the channel that was asked for, and stays."""

    def script(connection):
        channel = connection.request.path.partition("?")[0].partition(":")[2]
        staying(*map(status, messages.get(channel, ())))(connection)

    return script


def test_tail_of_several_begins_each_line_with_its_channel(fake):
    url = fake(saying_by_channel(wepp=["one", "two\nlines"], climate=["three"]))
    result = invoke("tail", "run1:wepp", "r:climate", "run1:wepp", "--url", url, "-n", "3")
    assert (result.exit_code, result.stderr) == (0, "")
    said = ["run1:wepp | one", "run1:wepp | two", "run1:wepp | lines", "r:climate | three"]
    assert sorted(result.stdout.splitlines()) == sorted(said)
    assert sorted(fake.paths) == ["/r:climate?v=2", "/run1:wepp?v=2"]


def test_tail_counts_the_lines_of_all_channels(fake):
    url = fake(saying_by_channel(a=["x"] * 50, b=["x"] * 50, longer=["x"] * 50))
    lines = invoke("tail", "r:a", "r:b", "r:longer", "--url", url, "-n", "60").stdout.splitlines()
    assert len(lines) == 60
    assert {line.index("|") for line in lines} == {len("r:longer ")}
    assert len(set(lines)) > 1  # one alone has but 50


def test_tail_of_several_as_json_names_the_channel(fake):
    url = fake(saying_by_channel(a=["one"], b=["two"]))
    found = invoke("tail", "r:a", "r:b", "--url", url, "--json", "-n", "2", "--color", "always").stdout.splitlines()
    assert sorted((json.loads(line) for line in found), key=lambda frame: frame["channel"]) == [
        {"type": "status", "data": "one", "channel": "r:a"},
        {"type": "status", "data": "two", "channel": "r:b"},
    ]
    result = invoke("tail", "r:a", "--url", url, "--json", "-n", "1")
    assert result.stdout == '{"type":"status","data":"one"}\n'


def test_tail_of_several_says_of_which_lines_are_missing(fake):
    url = fake(staying(json.dumps({"type": "gap", "reason": "size"}), status("x")))
    result = invoke("tail", "r:a", "r:b", "--url", url, "-n", "2")
    assert "relay: r:a: a line is missing here" in result.stderr


def test_tail_of_several_ends_where_one_is_refused(fake):
    def refuse(connection):
        if connection.request.path.startswith("/r:b"):
            return connection.close(1008, "not permitted")
        return staying()(connection)

    result = invoke("tail", "r:a", "r:b", "--url", fake(refuse))
    assert result.exit_code == 1
    assert "/r:b: closed 1008 (not permitted): the relay refuses this subscription" in result.stderr


EVENT = "WEPP_RUN_TASK_COMPLETED"


@pytest.mark.parametrize(
    "line", [f"rq:7 TRIGGER   wepp {EVENT}", f"TRIGGER   wepp {EVENT}", f"rq:7 TRIGGER   omni {EVENT} and more"]
)
def test_tail_until_an_event(fake, line):
    others = [
        EVENT,
        f"rq:7 TRIGGER   wepp NOT_{EVENT}",
        f"rq:7 TRIGGER   wepp {EVENT}_NOT",
        f"rq:7 TRIGGER   {EVENT} other",
        f"rq:7 COMPLETED wepp {EVENT}",
        f"said rq:7 TRIGGER   wepp {EVENT}",
    ]
    url = fake(saying_by_channel(wepp=[*others, line, "not this"]))
    result = invoke("tail", "r:c", "r:wepp", "--url", url, "--until", EVENT, "--timeout", "1m")
    assert (result.exit_code, result.stderr) == (0, "")
    assert [said.partition(" | ")[2] for said in result.stdout.splitlines()] == [*others, line]


def test_tail_until_an_event_that_does_not_come_in_time(fake):
    url = fake(staying(status("x")))
    result = invoke("tail", "r:c", "--url", url, "--until", EVENT, "--timeout", "2s")
    assert (result.exit_code, result.stdout) == (1, "x\n")
    assert result.stderr == f"relay: {EVENT} did not come within 2s\n"
    result = invoke("tail", "r:c", "--url", url, "--until", EVENT, "-n", "1")
    assert (result.exit_code, result.stdout) == (1, "x\n")
    assert result.stderr == f"relay: {EVENT} did not come within 1 messages\n"


def test_tail_until_an_event_waits_no_longer_for_a_relay_that_is_not_there():
    result = invoke("tail", "r:c", "--url", "ws://127.0.0.1:1", "--until", EVENT, "--timeout", "300ms")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == f"relay: {EVENT} did not come within 300ms"


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (["--timeout", "1s"], "name it with --until"),
        (["--until", "X", "--timeout", "5"], "--timeout 5: "),
        (["--until", "X", "--timeout", "0s"], "must be longer than 0"),
    ],
)
def test_tail_with_a_timeout_that_is_none_is_a_usage_error(args, why):
    result = invoke("tail", "r:c", *args)
    assert result.exit_code == 2
    assert why in result.stderr


LINES = ["rq:7 STARTED f(r)", "\x1b[32mgreen\x1b[2J", "plain"]
COLOURED = "\x1b[1;36mrq:7 STARTED f(r)\x1b[0m\n\x1b[32mgreen\\x1b[2J\x1b[0m\nplain\n"
SHOWN = "rq:7 STARTED f(r)\n\\x1b[32mgreen\\x1b[2J\nplain\n"


def on_a_terminal(*args, **env):
    """What a command draws, and its exit code."""
    clean = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    with Terminal() as terminal:
        done = subprocess.run(
            [sys.executable, "-m", "relay", *args],
            stdout=terminal.theirs,
            timeout=60,
            check=False,
            env={**clean, "TERM": "xterm", **env},
        )
        return done.returncode, terminal.read().replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("color", "env", "drawn"),
    [
        ("auto", {}, COLOURED),
        ("auto", {"NO_COLOR": "1"}, SHOWN),
        ("auto", {"TERM": "dumb"}, SHOWN),
        ("never", {}, SHOWN),
        ("always", {"NO_COLOR": "1"}, COLOURED),
    ],
)
def test_tail_on_a_terminal_is_coloured_unless_told_otherwise(fake, color, env, drawn):
    url = fake(staying(*map(status, LINES)))
    assert on_a_terminal("tail", "r:c", "--url", url, "-n", "3", "--color", color, **env) == (0, drawn)


@pytest.mark.parametrize(("color", "said"), [("auto", "\n".join([*LINES, ""])), ("always", COLOURED)])
def test_tail_into_a_pipe_is_as_published_unless_told_otherwise(fake, color, said):
    url = fake(staying(*map(status, LINES)))
    assert invoke("tail", "r:c", "--url", url, "-n", "3", "--color", color).stdout == said


def test_tail_of_several_on_a_terminal_has_a_colour_for_each(fake):
    url = fake(saying_by_channel(a=["x"], b=["ERROR y"]))
    code, drawn = on_a_terminal("tail", "r:a", "r:b", "--url", url, "-n", "2")
    assert code == 0
    assert sorted(drawn.splitlines()) == [
        "\x1b[33mr:b |\x1b[0m \x1b[31mERROR y\x1b[0m",
        "\x1b[36mr:a |\x1b[0m x",
    ]


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


def test_a_lock_is_one_harmless_line():
    frame = json.loads(snapshot(["\x1b[2J\n[x] wepp"]))
    assert list(changes({}, frame)) == ["\\x1b[2J\\n[x] wepp locked"]


def test_changes():
    one = json.loads(snapshot(["wepp"], a=True, b=False))
    assert list(changes({}, one)) == ["[x] a", "[ ] b", "wepp locked"]
    assert list(changes(one, one)) == []
    two = json.loads(snapshot(["soils"], a=False, b=False, c=True))
    assert list(changes(one, two)) == ["[ ] a", "[x] c", "wepp unlocked", "soils locked"]


@pytest.mark.parametrize("script", [HTTPStatus.NOT_FOUND, saying(close=1012), saying(close=1008), staying(PING)])
@pytest.mark.parametrize("command", [["tail", "r:c", "--until", "X", "--timeout", "1s"], ["checklist", "r"]])
def test_a_password_is_not_shown(fake, command, script, monkeypatch):
    monkeypatch.setattr(checklist_command, "WAIT", 1.0)
    url = fake(script).replace("//", "//someone:s3cret@")
    result = invoke(*command, "--url", url)
    assert result.exit_code == 1
    assert "s3cret" not in result.output + result.stderr
    assert "//***@127" in result.stderr or script is not HTTPStatus.NOT_FOUND


def test_a_password_is_not_shown_when_the_connection_is_there_again(fake):
    url = fake(saying(close=1012), staying(status("x"))).replace("//", "//someone:s3cret@")
    said = invoke("tail", "r:c", "--url", url, "-n", "1").stderr
    assert "s3cret" not in said
    assert said.count("//***@127.0.0.1") == 2


@pytest.mark.parametrize("command", [["tail", "r:c"], ["checklist", "r"]])
def test_a_url_that_is_none_is_a_usage_error(command):
    result = invoke(*command, "--url", "localhost:9002")
    assert result.exit_code == 2
    assert "not an address such as ws://localhost:9002" in result.stderr


def watched(terminal):
    return "\n".join(terminal.screens()[-1]) if terminal.screens() else ""


@contextlib.contextmanager
def watching(url, *args, streams=("stdin", "stdout", "stderr"), **env):
    """`relay checklist r --watch` on a terminal, killed by its pid if the test has not ended it."""
    clean = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    with Terminal() as terminal:
        command = [sys.executable, "-m", "relay", "checklist", "r", "--watch", "--url", url, *args]
        on_it = dict.fromkeys(streams, terminal.theirs)
        with subprocess.Popen(command, env={**clean, "TERM": "xterm", **env}, **on_it) as process:
            try:
                yield terminal, process
            finally:
                if process.poll() is None:
                    process.kill()


@pytest.mark.parametrize(
    ("end", "code"), [(b"q", 0), (signal.SIGINT, 130), (signal.SIGTERM, 0)], ids=["q", "SIGINT", "SIGTERM"]
)
def test_checklist_watch_on_a_terminal_is_drawn_in_place(fake, end, code):
    seen = threading.Event()

    def script(connection):
        connection.send(snapshot(["wepp"], channels=False))
        assert seen.wait(30)
        connection.send(snapshot(channels=True))
        staying()(connection)

    with watching(fake(script)) as (terminal, process):
        before = terminal.settings()
        wait_for(lambda: "[>] wepp  at least" in watched(terminal), "a lock")
        assert "r: 0 of 1 done, 1 running" in watched(terminal)
        assert "[ ] channels" in watched(terminal)
        seen.set()
        wait_for(lambda: "[✓] channels" in watched(terminal), "a tick")
        assert "r: 1 of 1 done, 0 running" in watched(terminal)
        assert "wepp" not in watched(terminal)
        os.write(terminal.ours, end) if isinstance(end, bytes) else process.send_signal(end)
        assert process.wait(30) == code
        assert terminal.settings() == before
        drawn = terminal.read()
    assert drawn.startswith("\x1b[?1049h\x1b[?25l")
    assert drawn.endswith("\x1b[?25h\x1b[?1049l")


def test_checklist_watch_on_a_terminal_says_that_the_connection_is_lost_and_there_again(fake):
    gone = threading.Event()

    def restarting(connection):
        connection.send(snapshot(channels=False))
        assert gone.wait(30)
        connection.close(1012, "the relay is restarting")

    back = threading.Event()

    def again(connection):
        assert back.wait(30)
        staying(snapshot(channels=True))(connection)

    with watching(fake(restarting, again)) as (terminal, process):
        wait_for(lambda: "connected, last frame" in watched(terminal), "a connection")
        gone.set()
        wait_for(lambda: "closed 1012 (the relay is restarting); reconnecting" in terminal.read(), "why")
        back.set()
        wait_for(lambda: "[✓] channels" in watched(terminal), "a tick")
        assert "1012" not in watched(terminal)
        assert "connected" in watched(terminal)
        os.write(terminal.ours, b"q")
        assert process.wait(30) == 0


def test_checklist_watch_on_a_terminal_gives_it_back_where_the_relay_refuses(fake):
    with watching(fake(HTTPStatus.NOT_FOUND)) as (terminal, process):
        before = terminal.settings()
        assert process.wait(30) == 1
        assert terminal.settings() == before
        drawn = terminal.read()
    assert "\x1b[?25h\x1b[?1049l" in drawn
    assert "refused with 404" in drawn.rpartition("\x1b[?1049l")[2]


@pytest.mark.parametrize(("args", "env"), [(["--plain"], {}), ([], {"NO_COLOR": "1"}), ([], {"TERM": "dumb"})])
def test_checklist_watch_is_lines_on_a_terminal_that_asks_for_them(fake, args, env):
    url = fake(saying(snapshot(["soils"], soils=False), snapshot(soils=True), close=1012), HTTPStatus.NOT_FOUND)
    with watching(url, *args, streams=("stdin", "stdout"), **env) as (terminal, process):
        assert process.wait(30) == 1
        assert terminal.read() == "[ ] soils\r\nsoils locked\r\n[x] soils\r\nsoils unlocked\r\n"


def test_checklist_watch_as_json_is_json_on_a_terminal(fake):
    with watching(fake(saying(snapshot(soils=True)), HTTPStatus.NOT_FOUND), "--json") as (terminal, process):
        assert process.wait(30) == 1
        assert json.loads(terminal.read().splitlines()[0]) == json.loads(snapshot(soils=True))
