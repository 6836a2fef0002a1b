"""The queue in front of the sender: what is appended, taken, pushed out and given back, without any Redis."""

import sys
import threading
import time

import pytest

from client import outbox
from client.outbox import Outbox
from client.sender import AWAY, OVERRUN


class FakeSender:
    """Takes batches while `there` is set, `at_most` messages of each."""

    def __init__(self):
        self.there = threading.Event()
        self.there.set()
        self.at_most = outbox.BATCH
        self.batches = []
        self.owed = []
        self.dropped = self.in_doubt = 0
        self.warned, self.news = [], []
        self.error = None
        self.asked = threading.Event()

    @property
    def is_connected(self):
        return self.there.is_set()

    def connect(self, wanted):
        self.asked.set()
        assert self.there.wait(10)

    def publish_batch(self, batch):
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        taken = list(batch)[: self.at_most]
        self.batches.append(taken)
        return len(taken)

    def drop(self, lost, notice):
        self.owed.append((dict(lost), notice))
        self.dropped += sum(lost.values())

    def doubt(self, number):
        self.in_doubt += number

    def warn(self, kind, cause):
        self.warned.append(kind)
        self.news.append(cause)

    @property
    def sent(self):
        return [payload for batch in self.batches for _, payload in batch]


@pytest.fixture
def sender():
    return FakeSender()


@pytest.fixture
def box(sender):
    made = []

    def make(size=10_000):
        made.append(Outbox(size, lambda: sender))
        return made[-1]

    yield make
    sender.there.set()
    for one in made:
        one.close(5.0)
        one._thread.join(5.0)
        assert not one._thread.is_alive()


@pytest.fixture
def fast_switches():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def until(condition, timeout=20.0):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.001)


def numbers(*span):
    return [b"%d" % number for number in range(*span)]


def test_all_is_sent_in_order_in_few_batches(box, sender):
    mine = box()
    for payload in numbers(1000):
        assert mine.append("c", payload) is True
    assert mine.flush(5.0) is True
    assert sender.sent == numbers(1000)
    assert max(map(len, sender.batches)) <= outbox.BATCH
    assert mine.waiting == 0


def test_large_messages_make_small_batches(box, sender):
    sender.there.clear()
    mine = box()
    for _ in range(8):
        mine.append("c", b"x" * (outbox.BATCH_BYTES // 2))
    sender.there.set()
    assert mine.flush(5.0)
    assert [len(batch) for batch in sender.batches] == [2, 2, 2, 2]


def test_beyond_its_size_the_oldest_go_and_their_channels_are_told(box, sender):
    sender.there.clear()
    mine = box(10)
    mine.append("even", b"0")
    assert sender.asked.wait(5.0), "by now the thread knows that Redis is away"
    for payload in numbers(1, 25):
        mine.append("odd" if int(payload) % 2 else "even", payload)
    assert (mine.waiting, mine.dropped) == (10, 15)
    sender.there.set()
    assert mine.flush(5.0)
    assert sender.sent == numbers(15, 25)
    assert sender.owed == [({"even": 8, "odd": 7}, AWAY)]
    assert sender.warned == []


def test_dropped_while_redis_was_there_is_told_as_such(box, sender):
    sender.at_most = 0  # it is there and takes nothing
    mine = box(10)
    for payload in numbers(25):
        mine.append("c", payload)
    mine.flush(0.1)
    sender.at_most = 256
    assert mine.flush(5.0)
    assert {notice for _, notice in sender.owed} == {OVERRUN}
    assert sum(lost["c"] for lost, _ in sender.owed) == 25 - len(sender.sent)
    assert mine.dropped == 0, "the sender counts them"
    assert set(sender.warned) == {"overrun"}


def test_the_bytes_that_wait_are_bounded_too(box, sender, monkeypatch):
    monkeypatch.setattr(outbox, "BYTES_MAX", 1000)
    sender.there.clear()
    mine = box()
    for _ in range(10):
        mine.append("c", b"x" * 300)
    assert (mine.waiting, mine.dropped) == (3, 7)
    mine.append("c", b"y" * 5000)
    assert (mine.waiting, mine.dropped) == (1, 10), "a message larger than the bound waits alone"
    sender.there.set()
    assert mine.flush(5.0)
    assert sender.sent == [b"y" * 5000]


def test_what_was_not_written_comes_first_again(box, sender):
    sender.at_most = 3
    mine = box()
    for payload in numbers(20):
        mine.append("c", payload)
    assert mine.flush(5.0)
    assert sender.sent == numbers(20)
    assert mine.dropped == 0


def test_flush_gives_up_in_time_and_loses_nothing(box, sender):
    sender.there.clear()
    mine = box()
    mine.append("c", b"x")
    assert mine.flush(0.05) is False
    assert mine.waiting == 1
    sender.there.set()
    assert mine.flush(5.0) is True


def test_flush_waits_for_what_was_there_before_it_only(box, sender):
    mine = box()
    ended = threading.Event()

    def chatter():
        while not ended.is_set():
            mine.append("c", b"more")

    thread = threading.Thread(target=chatter)
    thread.start()
    try:
        assert mine.flush(10.0) is True
    finally:
        ended.set()
        thread.join()


def test_close_tells_what_is_on_its_way(box, sender):
    """At the end of a process its thread ends, too, and nobody ever learns what became of the last write."""
    entered, release = threading.Event(), threading.Event()

    def publish_batch(batch):
        entered.set()
        release.wait(10)
        return len(batch)

    sender.publish_batch = publish_batch
    mine = box()
    mine.append("c", b"on its way")
    assert entered.wait(10)
    mine.append("c", b"left")
    assert mine.close(0.05) is False
    assert sender.news == ["1 were dropped, 1 on their way are in doubt"]
    assert sum(each.waiting for each in box().and_closed()) == 1
    release.set()
    mine._thread.join(10)
    assert mine.waiting == 0


def test_close_counts_what_is_left(box, sender):
    sender.there.clear()
    mine = box()
    for payload in numbers(5):
        mine.append("c", payload)
    assert mine.close(0.05) is False
    assert (mine.waiting, mine.dropped, sender.dropped) == (0, 0, 5)
    assert sender.owed == [({"c": 5}, AWAY)]
    assert sender.warned == ["left"]
    assert mine.append("c", b"late") is False
    assert mine.close(0.05) is True, "closed already"
    assert sender.dropped == 5


def test_nothing_is_sent_after_close(box, sender):
    sender.there.clear()
    mine = box()
    mine.append("c", b"x")
    mine.close(0.05)
    sender.there.set()
    mine._thread.join(5.0)
    assert sender.sent == []


def test_an_unknown_error_ends_neither_the_thread_nor_the_order(box, sender, caplog):
    sender.error = ZeroDivisionError("no idea")
    mine = box()
    mine.append("c", b"in doubt")
    assert mine.flush(5.0)
    mine.append("c", b"next")
    assert mine.flush(5.0)
    assert sender.sent == [b"next"]
    assert "1 status messages are in doubt" in caplog.text
    assert sender.in_doubt == 1


def test_threads_lose_nothing_and_keep_their_order(box, sender):
    mine = box(100_000)

    def talk(name):
        for number in range(2000):
            mine.append(name, b"%d" % number)

    threads = [threading.Thread(target=talk, args=(f"t{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert mine.flush(10.0)
    heard = {f"t{number}": [] for number in range(8)}
    for batch in sender.batches:
        for channel, payload in batch:
            heard[channel].append(payload)
    assert all(said == numbers(2000) for said in heard.values())


def test_short_texts_and_others_keep_their_order(box, sender):
    mine = box()
    for number in range(1000):
        assert mine.append("c", str(number) if number % 3 else b"%d" % number)
    assert mine.flush(10.0)
    assert sender.sent == numbers(1000)
    assert mine._bytes == 0


def test_a_text_that_is_no_utf8_is_escaped(box, sender):
    mine = box()
    mine.append("c", "file \udce9 é")
    assert mine.flush(5.0)
    assert sender.sent == ["file \\udce9 é".encode()]


@pytest.mark.parametrize("size", [1, 10_000, 1_000_000, 10_000_000])
def test_short_texts_have_no_more_bytes_than_is_promised(box, size):
    short = box(size).short
    assert size * len("\U0001f300".encode()) * short <= outbox.SHORT_BYTES_MAX
    assert outbox.SHORT_BYTES_MAX + outbox.BYTES_MAX == 64 << 20


def test_short_texts_are_bounded_by_their_number(box, sender):
    sender.there.clear()
    mine = box(10)
    for number in range(25):
        assert mine.append("c", str(number)) is True
        assert mine.waiting <= 10
    assert (mine.waiting, mine.dropped) == (10, 15)
    sender.there.set()
    assert mine.flush(5.0)
    assert sender.sent == numbers(15, 25)


def test_a_text_wakes_the_thread_that_sleeps(box, sender):
    """Again and again just as it goes to sleep: a wake-up that is lost would leave the line there for ever."""
    mine = box()
    mine._linger = 0.0
    for number in range(3000):
        mine.append("c", str(number))
        if number % 7:
            continue
        until(lambda: not mine.waiting)
    assert mine.flush(10)
    assert sender.sent == numbers(3000)


def test_a_text_that_comes_too_late_is_refused_and_taken_out_again(box, sender):
    sender.there.clear()
    mine = box()
    mine.append("c", "in time")
    mine.close(0.0)
    assert mine.append("c", "late") is False
    assert (mine.waiting, sender.dropped) == (0, 1)


def closing(box):
    thread = threading.Thread(target=box.close, args=(20.0,))
    thread.start()
    until(lambda: not box._accepting)
    return thread


def test_a_late_text_leaves_its_like_that_came_in_time_where_it_is(box, sender):
    sender.there.clear()
    mine = box()
    for line in ("tick", "step done"):
        mine.append("c", line)
    thread = closing(mine)
    assert mine.append("c", "tick") is False
    sender.there.set()
    thread.join()
    assert sender.sent == [b"tick", b"step done"]


def test_a_late_text_is_not_sent_before_who_appended_it_knows(box, sender):
    """It had been, and what its thread published directly went ahead of it."""
    sender.there.clear()
    mine = box()
    mine.append("c", "in time")
    thread = closing(mine)
    late = ("c", "late")
    mine._waiting.append(late)  # its thread stands still here
    sender.there.set()
    thread.join()
    mine._thread.join(20)
    assert (sender.sent, sender.warned) == ([b"in time"], [])
    assert mine._heed_text(late) is False
    assert not mine._waiting


def test_a_late_text_that_nobody_takes_out_again_hinders_nobody(box):
    """The exception of a signal handler ended its publish; every flush after it failed."""
    mine = box()
    mine.close(20.0)
    mine._waiting.append(("c", "late"))
    assert mine.flush(20) is True
    assert mine.waiting == 0


def test_the_next_message_wakes_the_thread_behind_an_exception(box, sender, monkeypatch):
    """Of a signal handler, in the middle of waking it: 26 of 531 left the queue mute."""
    mine = box()
    until(lambda: mine._wake_at == 1)

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(mine._bells, "ring", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mine.append("c", "first")
    monkeypatch.undo()
    mine.append("c", "second")
    until(lambda: sender.sent == [b"first", b"second"])


def test_bytes_that_a_signal_handler_left_behind_end_nothing(box, sender):
    """Its exception came between a message and its bytes, and the thread took the empty queue for a closed one."""
    mine = box()
    mine._bytes = 2 * outbox.BATCH_BYTES
    mine.append("c", "first")
    until(lambda: sender.sent == [b"first"])
    assert mine._thread.is_alive()
    mine.append("c", b"second")
    until(lambda: sender.sent == [b"first", b"second"])
    assert mine._bytes == 0


def test_a_handler_that_flushes_as_the_thread_is_woken_leaves_it_awake(box, sender, monkeypatch):
    """The thread had lain down again with a wish that the interrupted append then wiped out."""
    mine = box()
    mine._linger = 0.0
    until(lambda: mine._wake_at == 1)
    ring = mine._bells.ring

    def rung_and_interrupted():
        monkeypatch.undo()
        ring()
        assert mine.flush(20)
        held = mine._lock._release_save()
        until(lambda: mine._wake_at == 1)
        mine._lock._acquire_restore(held)

    monkeypatch.setattr(mine._bells, "ring", rung_and_interrupted)
    mine.append("c", "first")
    mine.append("c", "second")
    until(lambda: sender.sent == [b"first", b"second"])


def test_a_small_queue_is_not_gathered_until_it_runs_over(box, sender):
    """The thread waited for 256 of 100, and of 800 lines a second a third was dropped, Redis being there."""
    mine = box(100)
    mine._linger = 60.0
    for number in range(60):
        mine.append("c", str(number))
    until(lambda: not mine.waiting)
    assert sender.sent[:50] == numbers(50)


def test_a_full_write_is_not_waited_for_any_longer(box, sender):
    mine = box()
    mine._linger = 60.0
    for _ in range(2):
        mine.append("c", b"x" * (outbox.BATCH_BYTES // 2))
    until(lambda: not mine.waiting)


def test_texts_that_come_as_it_is_closed_are_sent_counted_or_refused(box, sender, fast_switches):
    """A thread that appends looks at nothing before, so a close may come at any place of it."""
    for attempt in range(30):
        mine, refused = box(), []
        before = len(sender.sent), sender.dropped

        def talk(name, mine=mine, refused=refused):
            refused += [(name, n) for n in range(400) if not mine.append(name, str(n))]

        threads = [threading.Thread(target=talk, args=(f"t{number}",)) for number in range(3)]
        for thread in threads:
            thread.start()
        assert mine.close(0.0 if attempt % 2 else 20.0) or attempt % 2
        for thread in threads:
            thread.join()
        mine._thread.join(20)
        sent, dropped = len(sender.sent) - before[0], sender.dropped - before[1]
        assert sent + dropped + len(refused) == 1200
        assert mine.waiting == 0
        assert dropped == 0 or attempt % 2, "there was time to send all that was taken"
    assert sender.sent


def test_appending_within_an_append_is_possible(box, sender):
    """As a signal handler does; with a lock that is not reentrant this would never end."""
    mine = box()
    with mine._lock:
        assert mine.append("c", b"x") is True
    assert mine.flush(5.0)


def test_a_flush_within_an_append_is_possible(box, sender):
    """As of a signal handler that ends the process: the thread could not take what the handler waited for."""
    mine = box()
    with mine._lock, mine._lock:
        mine.append("c", "x")
        assert mine.flush(20.0) is True
        assert mine._lock._is_owned()
    assert sender.sent == [b"x"]


def test_a_child_of_a_fork_has_nothing_of_it(box, sender):
    sender.there.clear()
    mine = box()
    mine.append("c", b"parent's")
    held = mine._lock
    mine.abandon()
    assert mine._lock is not held, "another thread may have held it"
    assert mine.append("c", b"child's") is False
    assert mine.append("c", "child's") is False
    assert mine.waiting == 0
    assert mine.flush(0) is True


@pytest.mark.parametrize("size", [0, -1, 1.5, "10", True, None])
def test_a_size_that_is_none(size):
    with pytest.raises(ValueError, match="a number of messages such as 10000"):
        Outbox(size, FakeSender)


def test_a_run_that_computes_is_interrupted_less_often(box, monkeypatch):
    """The thread wakes up late where the interpreter is another's; early, it was called for and learns nothing."""
    found, clock, waited = box(), [100.0], []
    late = iter((0.0001, 0.0049, -0.19, 0.0049, 0.0001, 0.0001))
    monkeypatch.setattr(outbox.time, "monotonic", lambda: clock[0])

    def wait(number, seconds):
        if seconds is None:  # its own thread, which may come to its first wait only now
            return Outbox._wait_for(found, number, seconds)
        waited.append(seconds)
        clock[0] += seconds + next(late)
        return True

    monkeypatch.setattr(found, "_wait_for", wait)
    for _ in range(6):
        found._let_gather()
    assert waited == [0.005, 0.005, 0.2, 0.2, 0.2, 0.005]


def test_a_flush_does_not_wait_for_more_to_gather(box, sender):
    found = box()
    found._linger = 60.0
    found.append("r1:wepp", b"first")
    assert found.flush(10)
    assert sender.sent == [b"first"]
