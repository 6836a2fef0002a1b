"""run_and_stream with real commands, and with CaptureMessenger in Redis' place."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client import StatusMessenger, connection, stream
from client.stream import run_and_stream
from client.testing import CaptureMessenger

CHANNEL = "r1:wepp"


@pytest.fixture
def said():
    with CaptureMessenger() as said:
        yield said


def sh(script, **options):
    return run_and_stream(["sh", "-c", script], CHANNEL, **options)


def py(code, **options):
    return run_and_stream([sys.executable, "-c", code], CHANNEL, **options)


def until(condition, timeout=10.0):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


# --- what is published and returned -------------------------------------------------------------------------------


def test_lines_of_both_outputs_in_order(said):
    done = sh("echo one; echo two >&2; echo; echo three; exit 3")
    assert done.stdout == "one\ntwo\n\nthree\n"
    assert (done.args, done.returncode, done.stderr) == (["sh", "-c", done.args[2]], 3, None)
    assert said.lines(CHANNEL) == ["one", "two", "", "three"]


def test_a_line_is_published_when_it_comes(said, tmp_path):
    """The command goes on once its first line was seen."""
    seen = tmp_path / "seen"

    def watch():
        until(lambda: said.lines(CHANNEL) == ["first"])
        seen.touch()

    watcher = threading.Thread(target=watch)
    watcher.start()
    done = sh(f"echo first; until [ -e {seen} ]; do sleep 0.01; done; echo second", timeout=20)
    watcher.join()
    assert done.stdout == "first\nsecond\n"


def test_the_prefix_stands_before_what_is_published(said):
    assert sh("echo a; echo b", prefix="wepp: ").stdout == "a\nb\n"
    assert said.lines(CHANNEL) == ["wepp: a", "wepp: b"]


def test_a_last_line_without_an_end(said):
    assert sh("printf 'a\nb'").stdout == "a\nb"
    assert said.lines(CHANNEL) == ["a", "b"]


def test_no_output(said):
    assert sh("exit 0").stdout == ""
    assert said.messages == []


def test_what_is_no_utf8_and_control_characters(said):
    done = py(r"import sys; sys.stdout.buffer.write(b'a\xff\xc3\xa9\x00\x1b[31m\x0c\x1c\xe2\x80\xa8z\n\xc3')")
    assert done.stdout == "a\\xffé\0\x1b[31m\x0c\x1c\u2028z\n\\xc3"
    assert said.lines(CHANNEL) == ["a\\xffé\0\x1b[31m\x0c\x1c\u2028z", "\\xc3"]


@pytest.mark.parametrize(("encoding", "text"), [("latin-1", "Ärger"), ("utf-16", "Ärger 💧"), ("cp437", "é")])
def test_other_encodings(said, encoding, text):
    done = py(f"import sys; sys.stdout.buffer.write({(text + chr(10)).encode(encoding)!r})", encoding=encoding)
    assert done.stdout == text + "\n"
    assert said.lines(CHANNEL) == [text]


def test_cwd_env_and_stdin(said, tmp_path):
    (tmp_path / "p1.run").write_text("input\n")
    with (tmp_path / "p1.run").open() as run:
        done = sh('pwd; echo "$NAME"; cat', cwd=tmp_path, env={"NAME": "x", "PATH": os.environ["PATH"]}, stdin=run)
    assert done.stdout == f"{tmp_path}\nx\ninput\n"
    assert sh("cat", timeout=20).stdout == ""


def test_paths_are_arguments_too(said, tmp_path):
    (tmp_path / "file").write_text("x\n")
    assert run_and_stream(("cat", tmp_path / "file"), CHANNEL).stdout == "x\n"


# --- progress lines -----------------------------------------------------------------------------------------------


class Recorded:
    """_Lines with a clock of the test's own."""

    def __init__(self, monkeypatch=None, keep=None):
        self.published = []
        self.lines = stream._Lines(self.published.append, keep)

    def feed(self, *texts):
        for text in texts:
            self.lines.feed(text)
        return self

    def end(self):
        self.lines.end()
        return self.published, self.lines.text()


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(stream, "time", clock)
    return clock


def test_of_states_four_a_second_and_the_last(clock):
    recorded = Recorded()
    for percent in range(101):
        recorded.feed(f"{percent}%\r")
        clock.now += 0.015625
    published, text = recorded.end()
    assert published == [f"{percent}%" for percent in range(0, 100, 16)] + ["100%"]
    assert text == "".join(f"{percent}%\n" for percent in range(101))


def test_the_last_state_comes_before_what_follows(clock):
    assert Recorded().feed("1%\r2%\r3%\r", "done\n").end()[0] == ["1%", "3%", "done"]


def test_a_state_that_stands_is_published_in_its_turn(clock):
    recorded = Recorded().feed("1%\r2%\r")
    recorded.lines.tick()
    assert recorded.published == ["1%"]
    clock.now += stream.STATE_EVERY
    recorded.lines.tick()
    assert recorded.published == ["1%", "2%"]


def test_a_return_ahead_of_each_state(clock):
    published, text = Recorded().feed("\r1%", "\r2%", "\r3%\n").end()
    assert published == ["1%", "2%", "3%"]
    assert text == "\n1%\n2%\n3%\n"


@pytest.mark.parametrize("pieces", [["a\r\nb\r\n"], ["a\r", "\nb\r", "\n"], ["a", "\r", "\n", "b", "\r\n"]])
def test_both_characters_are_one_end(clock, pieces):
    assert Recorded().feed(*pieces).end() == (["a", "b"], "a\nb\n")


def test_a_command_that_shows_progress(said):
    done = py("import time\nfor i in range(101): print(i, end='\\r', flush=True); time.sleep(0.01)\nprint('end')")
    published = said.lines(CHANNEL)
    assert published[-2:] == ["100", "end"]
    assert published[0] == "0"
    assert len(published) < 60
    assert done.stdout == "".join(f"{i}\n" for i in range(101)) + "end\n"


TEXT = st.text(alphabet="ab\r\né", max_size=40)


@given(st.lists(TEXT), st.integers(1, 9))
def test_wherever_the_text_is_cut_it_comes_as_from_subprocess(pieces, size):
    published = []
    lines = stream._Lines(published.append, None)
    text = "".join(pieces)
    for start in range(0, len(text), size):
        lines.feed(text[start : start + size])
    lines.end()
    universal = text.replace("\r\n", "\n").replace("\r", "\n")
    assert lines.text() == universal
    # What ends with \n is published whole, but for a \r and \n that came apart.
    wanted = [line.rpartition("\r")[2] for line in text.replace("\r\n", "\n").split("\n")]
    rest = iter(published)
    assert all(line in rest for line in wanted if line)


# --- long lines, and much output ----------------------------------------------------------------------------------


@pytest.mark.parametrize("character", ["x", "é", "💧"])
def test_a_long_line_is_published_in_pieces_and_returned_whole(said, character):
    done = py(f"import sys; sys.stdout.buffer.write(({character!r} * 300000 + chr(10) + 'end').encode())")
    assert done.stdout == character * 300000 + "\nend"
    pieces = said.lines(CHANNEL)
    assert max(len(piece.encode()) for piece in pieces) <= 64 << 10
    assert "".join(pieces[:-1]) == character * 300000
    assert pieces[-1] == "end"


def test_pieces_come_before_the_line_has_its_end(clock):
    recorded = Recorded().feed("1%\r", "x" * 70000)
    assert [len(line) for line in recorded.published] == [2, 65536]


def test_a_long_state_is_cut_too(clock):
    published, text = Recorded().feed("x" * 70000 + "\ry\r").end()
    assert [len(line) for line in published] == [65536, 4464, 1]
    assert text == "x" * 70000 + "\ny\n"


def test_the_last_lines_are_kept_and_the_text_says_so(said):
    done = sh("seq 1 1000", keep=3)
    assert done.stdout == "[997 lines before these were not kept; keep=None keeps all]\n998\n999\n1000\n"
    assert said.lines(CHANNEL) == [str(i) for i in range(1, 1001)]
    assert sh("seq 1 3", keep=3).stdout == "1\n2\n3\n"


def test_by_default_ten_thousand_and_all_if_asked(said):
    assert sh("seq 1 10001").stdout.startswith("[1 lines before these")
    assert sh("seq 1 30000", keep=None).stdout.count("\n") == 30000


# --- ends ---------------------------------------------------------------------------------------------------------


def test_check(said):
    with pytest.raises(subprocess.CalledProcessError) as raised:
        sh("echo said; exit 4", check=True)
    assert (raised.value.returncode, raised.value.output) == (4, "said\n")
    assert sh("kill -9 $$").returncode == -9


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_timeout_ends_the_whole_group(said, monkeypatch):
    """The time is over once the command has said what it says, however long that took."""
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + 600 * bool(said.lines(CHANNEL)))
    monkeypatch.setattr(stream, "time", clock)
    with pytest.raises(subprocess.TimeoutExpired) as raised:
        sh("sleep 600 & printf '%s\\nrest' $!; wait", timeout=300)
    pid, rest = raised.value.output.split("\n")
    until(lambda: not is_running(pid))
    assert (raised.value.timeout, rest) == (300, "rest")
    assert said.lines(CHANNEL) == [pid, "rest"]


def test_a_timeout_after_the_output_was_closed(said):
    with pytest.raises(subprocess.TimeoutExpired):
        sh("exec >&- 2>&-; sleep 60", timeout=0.5)
    assert sh("echo a; exec >&- 2>&-; sleep 0.1; exit 5", timeout=20).returncode == 5


def test_a_timeout_that_is_over_before_anything_came(said):
    with pytest.raises(subprocess.TimeoutExpired):
        sh("sleep 60", timeout=0)


def test_a_grandchild_that_keeps_the_pipe_does_not_hold_it_up(said, monkeypatch):
    monkeypatch.setattr(stream, "GRACE", 0.2)
    start = time.monotonic()
    done = sh("sleep 60 & echo $!; exit 2")
    pid = int(done.stdout)
    assert time.monotonic() - start < 30
    assert (done.returncode, is_running(pid)) == (2, True)
    os.kill(pid, signal.SIGKILL)


def test_a_grandchild_that_never_stops_writing(said, monkeypatch):
    monkeypatch.setattr(stream, "GRACE", 0.2)
    done = sh("yes & echo $!; sleep 0.1", keep=None, timeout=60)
    pid = int(next(line for line in done.stdout.split("\n") if line != "y"))
    assert done.returncode == 0
    until(lambda: not is_running(pid))  # SIGPIPE


class JobTimeoutException(Exception):  # noqa: N818 - RQ's name
    """As RQ raises it from a signal handler."""


@pytest.fixture
def alarm():
    """`alarm(error, once)`: an exception in the middle of whatever runs a moment after `once()` is true."""

    def handler(error):
        raise error

    def watch(once):
        until(once)
        signal.setitimer(signal.ITIMER_REAL, 0.1)

    def arm(error, once):
        signal.signal(signal.SIGALRM, lambda *_: handler(error))
        threading.Thread(target=watch, args=(once,)).start()

    gc.disable()  # what a handler raises within a callback of the collector (hypothesis has one) is lost
    yield arm
    gc.enable()
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


@pytest.mark.parametrize("error", [KeyboardInterrupt, JobTimeoutException, SystemExit])
@pytest.mark.parametrize(
    "script", ["echo $$; sleep 60", "echo $$; while :; do echo y; done", "echo $$; exec >&- 2>&-; sleep 60"]
)
def test_an_exception_in_the_middle_ends_the_command_and_goes_on(said, alarm, error, script):
    alarm(error, lambda: said.lines(CHANNEL))
    with pytest.raises(error):
        sh(script, timeout=60)
    assert not is_running(said.lines(CHANNEL)[0])


def left_behind():
    """Descriptors, children and threads of this process."""
    with contextlib.suppress(ChildProcessError):
        assert os.waitpid(-1, os.WNOHANG) == (0, 0), "a zombie"
    queues = [thread for thread in threading.enumerate() if thread.name == "client-queue"]
    return len(list(Path("/proc/self/fd").iterdir())), len(queues)


def test_nothing_is_left_behind(said, alarm):
    sh("echo a")
    until(lambda: left_behind()[1] == 0)
    before = left_behind()
    sh("echo a")
    with pytest.raises(subprocess.TimeoutExpired):
        sh("sleep 60", timeout=0.05)
    with pytest.raises(FileNotFoundError):
        run_and_stream(["no-such-program"], CHANNEL)
    with pytest.raises(KeyboardInterrupt):
        sh("sleep 60", on_start=lambda _: alarm(KeyboardInterrupt, lambda: True))
    until(lambda: left_behind()[1] == 0)
    assert left_behind() == before


def test_many_at_once(said):
    def work(number):
        run_and_stream(["seq", str(number * 1000), str(number * 1000 + 999)], f"r{number}:wepp")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(8):
        assert said.lines(f"r{number}:wepp") == [str(number * 1000 + i) for i in range(1000)]


# --- how it publishes ---------------------------------------------------------------------------------------------


def test_where_publishing_is_queued_it_uses_that_queue(said, monkeypatch):
    StatusMessenger.configure(queue=True)
    monkeypatch.setattr(stream, "QueuedMessenger", None)
    try:
        sh("echo a")
    finally:
        StatusMessenger.configure(queue=False)
    assert said.lines(CHANNEL) == ["a"]


def test_a_process_without_a_thread_to_give_publishes_directly(said, monkeypatch):
    def none_left(_size):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(stream, "QueuedMessenger", none_left)
    assert sh("echo a").stdout == "a\n"
    assert said.lines(CHANNEL) == ["a"]


# --- misuse: said at once, and nothing was started ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"args": "wepp -v"}, TypeError, r"a command is a list such as .* not 'wepp -v'; split a line by shlex"),
        ({"args": b"wepp"}, TypeError, "a command is a list"),
        ({"args": Path("wepp")}, TypeError, "a command is a list"),
        ({"args": None}, TypeError, "a command is a list such as .*, not NoneType"),
        ({"args": []}, ValueError, "the command is empty"),
        ({"channel": ""}, ValueError, "the channel is empty"),
        ({"channel": None}, TypeError, "a channel is a str"),
        ({"prefix": None}, TypeError, "a prefix is a str"),
        ({"stdin": subprocess.PIPE}, ValueError, "nobody would write"),
        ({"keep": 0}, ValueError, "keep is at least 1"),
        ({"keep": True}, TypeError, "keep is a number"),
        ({"keep": "3"}, TypeError, "keep is a number"),
        ({"encoding": "utf-9"}, ValueError, "unknown encoding: utf-9; name one"),
        ({"encoding": "hex"}, ValueError, "not a text encoding"),
        ({"timeout": "3"}, TypeError, "a timeout is a number"),
    ],
)
def test_misuse(said, tmp_path, arguments, error, text):
    touched = tmp_path / "touched"
    with pytest.raises(error, match=text):
        run_and_stream(**{"args": ["touch", touched], "channel": CHANNEL, **arguments})
    assert not touched.exists()


def test_a_configuration_without_a_redis_is_said_before_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "_found", None)
    monkeypatch.setattr(connection, "_url", None)
    monkeypatch.setenv("REDIS_URL", "http://wepp1")
    with pytest.raises(ValueError, match="REDIS_URL must start with"):
        run_and_stream(["touch", tmp_path / "touched"], CHANNEL)
    assert not (tmp_path / "touched").exists()


def test_what_cannot_be_started_is_an_error_as_ever(said, tmp_path):
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        run_and_stream(["no-such-program"], CHANNEL)
    (tmp_path / "data").write_text("")
    with pytest.raises(PermissionError):
        run_and_stream([tmp_path / "data"], CHANNEL)
    assert said.messages == []
