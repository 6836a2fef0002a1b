"""client.progress.tqdm: what it publishes of a bar, and how often."""

import io
import itertools
import os
import re
import subprocess
import sys
import threading
import time

import pytest
from tqdm import TMonitor
from tqdm import std as tqdm_std
from tqdm.contrib.concurrent import thread_map

from client import connection, progress
from client.progress import tqdm
from client.testing import CaptureMessenger


@pytest.fixture
def said():
    with CaptureMessenger() as said:
        yield said


@pytest.fixture
def clock(monkeypatch):
    """The seconds by which lines are paced, in the test's hands; tqdm draws whenever it is told to.

    The seconds that tqdm itself shows go on by a thousandth at each look, and no faster on a machine that stands still.
    """

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(tqdm_std, "time", itertools.count(1000.0, 0.001).__next__)
    monkeypatch.setattr(progress._Pace, "known", {})
    return clock


def bar(*args, **kwargs):
    return tqdm(*args, **{"channel": "r1:wepp", "file": None, "mininterval": 0, "miniters": 1, **kwargs})


def states(said):
    """`3/10` of each line."""
    return [re.search(r"\d+/\d+", line)[0] for line in said.lines("r1:wepp")]


def test_four_lines_a_second_and_the_last(said, clock):
    for _ in bar(range(100)):
        clock.now += 0.0625
    # 0.25 s after the line before; 100 items are 6.25 s.
    assert states(said) == [f"{n}/100" for n in range(0, 97, 4)] + ["100/100"]


def test_the_text_is_that_of_tqdm(said, clock):
    for _ in bar(range(4), desc="hillslopes", unit="hill"):
        pass
    first, last = said.lines("r1:wepp")
    assert first == "hillslopes:   0%|          | 0/4 [00:00<?, ?hill/s]"
    assert last.startswith("hillslopes: 100%|██████████| 4/4 [00:00<00:00, ")
    assert last.endswith("hill/s]")


def test_no_control_characters(said, clock):
    with bar(total=2, desc="\x1b[31mred\x1b[0m\n\tline\r", colour="green", postfix="a\x00\x9bb") as one:
        one.update(2)
    for line in said.lines("r1:wepp"):
        assert line.isprintable()
        assert line.startswith("red line : ")
        assert ", a b]" in line


def test_where_an_exception_stopped_it(said, clock):
    def work():
        for number in bar(range(10)):
            1 / (3 - number)

    with pytest.raises(ZeroDivisionError):
        work()
    assert states(said)[-1] == "3/10"


def test_where_a_break_stopped_it(said, clock):
    for number in bar(range(10)):
        if number == 3:
            break
    assert states(said)[-1] == "3/10"


def test_where_an_exception_stopped_one_that_is_moved_by_hand(said, clock):
    def work():
        with bar(total=10) as one:
            one.update(7)
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert states(said) == ["0/10", "7/10"]


def test_a_last_state_that_was_shown_already_is_not_repeated(said, clock):
    """Its rate is another by then: the mean of all, where the line before had that of its moment."""
    with bar(total=2) as one:
        clock.now += 1
        one.update(2)
    one.close()
    assert states(said) == ["0/2", "2/2"]


def test_an_unknown_total(said, clock):
    for _ in bar(iter("abc")):
        pass
    assert said.lines("r1:wepp")[0] == "0it [00:00, ?it/s]"
    assert said.lines("r1:wepp")[-1].startswith("3it [00:00, ")


def test_disabled_it_publishes_nothing(said, clock):
    assert list(bar(range(10), disable=True)) == list(range(10))
    with bar(total=3, disable=True) as one:
        one.update(3)
        one.refresh()
    assert said.messages == []
    assert progress._Pace.known["r1:wepp"].bars == 0


def test_bars_within_a_bar_share_its_lines(said, clock):
    for _ in bar(range(10), desc="outer"):
        for _ in bar(range(5), desc="inner", leave=False):
            clock.now += 0.01
    lines = said.lines("r1:wepp")
    assert len(lines) <= 10 * 5 * 0.01 * 4 + 2
    assert lines[-1].startswith("outer: 100%")
    assert any(line.startswith("inner") for line in lines)


def test_a_bar_within_a_bar_that_takes_its_time_has_its_last_state(said, clock):
    with bar(total=1, desc="outer"):
        with bar(total=2, desc="inner") as inner:
            clock.now += 0.3
            inner.update()
            clock.now += 0.01
            inner.update()
        assert said.lines("r1:wepp")[-1].startswith("inner: 100%")


def test_each_channel_has_its_own_lines(said, clock):
    with bar(total=1, channel="r1:a") as a, bar(total=1, channel="r1:b") as b:
        a.update()
        b.update()
    assert len(said.lines("r1:a")) == len(said.lines("r1:b")) == 2


def test_channels_without_bars_are_forgotten(said, clock):
    for number in range(1000):
        bar(total=1, channel=f"r{number}:wepp").close()
        clock.now += 1
    assert len(progress._Pace.known) == 1


def test_one_that_is_dropped_publishes_where_it_was(said, clock):
    one = bar(total=10)
    one.update(4)
    del one
    assert states(said) == ["0/10", "4/10"]


def test_threads(said):
    def work(number):
        for _ in bar(range(200), desc=str(number)):
            pass

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert progress._Pace.known["r1:wepp"].bars == 0
    assert any(" 200/200 " in line for line in said.lines("r1:wepp"))


def test_as_the_class_of_tqdms_own_helpers(said):
    assert thread_map(abs, [-1, -2], tqdm_class=tqdm, channel="r1:wepp", file=None) == [1, 2]
    assert states(said)[-1] == "2/2"


def test_tqdms_monitor_thread_publishes_a_bar_that_stands_still(said, clock):
    """It refreshes with the lock of all bars held."""
    one = bar(total=10, maxinterval=0, miniters=100)
    one.update(5)
    clock.now += 1
    with tqdm.get_lock():
        one.refresh(nolock=True)
    assert states(said) == ["0/10", "5/10"]
    assert isinstance(tqdm.monitor, TMonitor)
    one.close()


def test_the_bar_is_drawn_besides(said, clock):
    drawn = io.StringIO()
    for _ in bar(range(3), file=drawn, colour="red", ncols=60):
        pass
    assert "\r100%|\x1b[31m###" in drawn.getvalue()  # a StringIO has no encoding, so tqdm draws in ASCII
    assert said.lines("r1:wepp")[-1].startswith("100%|██████████| 3/3 ")


def test_ascii_where_it_is_asked_for(said, clock):
    bar(range(3), ascii=" .o").close()
    assert said.lines("r1:wepp") == ["0%|          | 0/3 [00:00<?, ?it/s]"]
    assert list(bar(range(3), ascii=" .o")) == [0, 1, 2]
    assert said.lines("r1:wepp")[-1].startswith("100%|oooooooooo| 3/3 ")


def test_by_default_on_stderr_and_with_no_file_nowhere(said, capsys):
    list(tqdm(range(3), channel="r1:wepp"))
    captured = capsys.readouterr()
    assert "100%|" in captured.err
    list(tqdm(range(3), channel="r1:wepp", file=None))
    assert capsys.readouterr() == ("", "")


def test_type_parameters():
    assert tqdm[int] is not None
    assert issubclass(tqdm[int], tqdm.__mro__[1])


# --- misuse -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error"),
    [({"channel": ""}, ValueError), ({"channel": None}, TypeError), ({}, TypeError)],
)
def test_a_channel_that_is_none(arguments, error):
    with pytest.raises(error, match="channel"):
        tqdm(range(3), disable=True, **arguments)


def test_an_option_that_tqdm_has_not(clock):
    with pytest.raises(KeyError, match="colors"):
        bar(range(3), colors="red")
    assert progress._Pace.known["r1:wepp"].bars == 0


def test_a_configuration_without_a_redis_is_said_at_once(said, monkeypatch):
    monkeypatch.setattr(connection, "_found", None)
    monkeypatch.setattr(connection, "_url", None)
    monkeypatch.setenv("REDIS_URL", "http://wepp1")
    with pytest.raises(ValueError, match="REDIS_URL must start with"):
        bar(range(3))


def test_without_tqdm_the_import_says_how_to_get_it():
    code = "import sys; sys.modules['tqdm'] = None; import client.stream, client.logs; import client.progress"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError: client.progress needs tqdm: pip install tqdm" in done.stderr


def test_a_child_of_a_fork_has_a_lock_of_its_own(said):
    with progress._Pace.lock:
        pid = os.fork()
        if pid == 0:
            other = threading.Thread(target=bar, daemon=True)
            other.start()
            other.join(10)
            os._exit(other.is_alive())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_real_time(said):
    start = time.monotonic()
    for _ in tqdm(range(60), channel="r1:wepp", file=None):
        time.sleep(0.01)
    assert len(said.messages) <= (time.monotonic() - start) * 4 + 2
    assert states(said)[-1] == "60/60"


def test_a_child_of_a_fork_says_nothing_of_its_parents_bar(said, clock, monkeypatch):
    going = bar(total=10)
    before = said.lines("r1:wepp")
    clock.now += 1
    going.n = 3
    monkeypatch.setattr(progress.os, "getpid", lambda: -1)
    going.close()
    assert said.lines("r1:wepp") == before
