"""The lock that goes to whoever has waited longest."""

import threading
import time

import pytest

from client import turns as module
from client.turns import Bells, Turns


def waiting(turns, number):
    deadline = time.monotonic() + 10
    while len(turns._waiting) != number:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_turns_come_in_the_order_of_asking():
    turns, order = Turns(), []

    def ask(name):
        assert turns.take(10)
        order.append(name)
        turns.give()

    assert turns.take(0)
    threads = []
    for name in range(8):
        threads.append(threading.Thread(target=ask, args=(name,)))
        threads[-1].start()
        waiting(turns, name + 1)
    turns.give()
    for thread in threads:
        thread.join()
    assert order == list(range(8))


def test_who_gives_a_turn_and_asks_again_stands_behind_the_others():
    turns, got = Turns(), threading.Event()
    assert turns.take(0)
    other = threading.Thread(target=lambda: (turns.take(10), got.set()))
    other.start()
    waiting(turns, 1)
    turns.give()
    assert not turns.take(0)
    other.join()
    assert got.is_set()


def test_waiting_ends_with_the_timeout_and_leaves_no_trace():
    turns = Turns()
    assert turns.take(0)
    assert not turns.take(0.01)
    assert not turns.take(-1)
    assert not turns._waiting
    turns.give()
    assert turns.take(0)


@pytest.mark.parametrize("comes", ["never", "at this very moment"])
def test_an_exception_while_waiting_loses_no_turn(monkeypatch, comes):
    turns, lock = Turns(), threading.Lock
    taken, end = threading.Event(), threading.Event()
    other = threading.Thread(target=lambda: (turns.take(0), taken.set(), end.wait(10)))
    other.start()
    assert taken.wait(10)

    class Interrupted:
        def __init__(self):
            self.calls = 0

        def acquire(self, timeout=-1):
            self.calls += 1
            if self.calls == 2:
                if comes != "never":
                    turns.give()
                raise KeyboardInterrupt

        def release(self):
            pass

    monkeypatch.setattr(module.threading, "Lock", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        turns.take(10)
    monkeypatch.setattr(module.threading, "Lock", lock)
    if comes == "never":
        turns.give()
    assert turns.take(0)
    end.set()
    other.join()


def test_one_at_a_time():
    turns, inside, most = Turns(), [], []

    def work():
        for _ in range(200):
            assert turns.take(10)
            inside.append(1)
            most.append(len(inside))
            inside.pop()
            turns.give()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 1600
    assert set(most) == {1}


def test_a_turn_that_was_never_given_back_is_taken_over():
    """A signal handler's exception came between `take` and `try`, and nothing was published any more."""
    turns = Turns()

    def lose():
        assert turns.take(0)

    lose()
    assert turns.take(0), "by its own thread"
    turns.give()
    thread = threading.Thread(target=lose)
    thread.start()
    thread.join()
    assert turns.take(0), "of a thread that is gone"
    turns.give()
    held, go = threading.Event(), threading.Event()

    def lose_and_go_on():
        lose()
        held.set()
        go.wait(10)

    thread = threading.Thread(target=lose_and_go_on)
    thread.start()
    held.wait(10)
    assert turns.take(0), "of a thread that goes on without it"
    go.set()
    thread.join()


def test_who_is_in_its_turn_does_not_wait_for_itself():
    """46 log lines in the middle of one publish took 9 s."""
    turns = Turns()
    assert turns.take(0)
    start = time.monotonic()
    assert not turns.take(60)
    assert time.monotonic() - start < 30
    turns.give()


def test_a_ring_that_was_cut_off_is_rung_again(monkeypatch):
    """By a signal handler's exception, behind the first of two: the other one would be waited on for ever."""
    bells = Bells()
    hung = [bells.hang(), bells.hang()]

    def interrupted(bell):
        raise KeyboardInterrupt

    monkeypatch.setattr(bells, "take_down", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bells.ring()
    monkeypatch.undo()
    assert hung[0].acquire(timeout=0)
    hung[0].release()
    bells.ring()
    assert hung[1].acquire(timeout=0)
    assert bells._waiting == []


def test_a_ring_within_a_ring(monkeypatch):
    """Of a signal handler that publishes: the outer one raised `release unlocked lock` into the run."""
    bells = Bells()
    hung = [bells.hang(), bells.hang()]
    take_down, late = bells.take_down, []

    def handled(bell):
        monkeypatch.undo()
        bells.ring()
        late.append(bells.hang())
        take_down(bell)

    monkeypatch.setattr(bells, "take_down", handled)
    bells.ring()
    assert all(bell.acquire(timeout=0) for bell in hung)
    assert bells._waiting == late, "who lies down again meanwhile is not forgotten"
