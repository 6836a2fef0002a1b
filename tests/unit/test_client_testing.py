"""CaptureMessenger: it takes what would go to Redis, all of it, and nothing else changes."""

import contextlib
import logging
import os
import threading

import pytest

from client import QueuedMessenger, StatusMessenger, StatusMessengerHandler, configure, messenger
from client.outbox import Outbox
from client.testing import CaptureMessenger


@pytest.fixture(autouse=True)
def nowhere():
    """A configuration that no message could be sent by."""
    configure("unix:///nonexistent/redis.sock")


@pytest.fixture
def said():
    with CaptureMessenger() as said:
        yield said


def test_the_fixture_of_the_docstring(said):
    StatusMessenger.publish("run1:wepp", "rq:7 STARTED run_wepp(run1)")
    StatusMessenger.publish("run1:wepp", "rq:7 COMPLETED run_wepp(run1)")
    assert said.lines("run1:wepp")[-1] == "rq:7 COMPLETED run_wepp(run1)"


def test_messages_are_text_in_order(said):
    for channel, message in [("a:1", "é"), ("b:1", b"x\xff"), ("a:1", 7), ("a:1", ""), ("a:1", "\udce9")]:
        assert StatusMessenger.publish(channel, message) == 1
    assert said.messages == [("a:1", "é"), ("b:1", "x\\xff"), ("a:1", "7"), ("a:1", ""), ("a:1", "\\udce9")]
    assert said.lines("a:1") == ["é", "7", "", "\\udce9"]
    assert said.lines("c:1") == []


def test_commands_and_the_handler(said):
    assert StatusMessenger.publish_command("r1", "go") == 1
    StatusMessengerHandler("r1:log").handle(logging.LogRecord("x", 20, "", 1, "done %d", (3,), None))
    assert said.messages == [("r1:command", "go"), ("r1:log", "done 3")]


@pytest.mark.parametrize("receivers", [0, 1, 5])
def test_receivers_is_what_publish_returns(receivers):
    with CaptureMessenger(receivers=receivers):
        assert StatusMessenger.publish("r1:wepp", "x") == receivers
        assert StatusMessenger.publish("r1:wepp", "x", strict=True) == receivers


def test_queued_messages_are_taken_and_return_none_as_ever(said):
    StatusMessenger.configure(queue=10)
    assert StatusMessenger.publish("r1:wepp", "queued") is None
    assert StatusMessenger.publish("r1:wepp", "strict", strict=True) == 1
    with QueuedMessenger() as own:
        assert own.publish("r1:own", "x") is None
        assert own.publish_command("r1", "go") is None
        assert own.flush(0)
    with pytest.raises(RuntimeError, match="closed"):
        own.publish("r1:own", "too late")
    assert StatusMessenger.flush(0)
    assert said.messages == [("r1:wepp", "queued"), ("r1:wepp", "strict"), ("r1:own", "x"), ("r1:command", "go")]


def test_no_connection_is_made_and_nothing_counted(said):
    StatusMessenger.configure(queue=True)
    StatusMessenger.publish("r1:wepp", "x")
    StatusMessenger.configure(queue=False)
    StatusMessenger.publish("r1:wepp", "x")
    assert StatusMessenger.counts() == (0, 0, 0, 0)
    assert "client-connect" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize("queue", [False, True])
@pytest.mark.parametrize(
    ("channel", "message", "error"),
    [("", "x", ValueError), (None, "x", TypeError), ("r1:wepp", None, TypeError), ("r1:wepp", True, TypeError)],
)
def test_misuse_raises_as_ever(said, queue, channel, message, error):
    StatusMessenger.configure(queue=queue)
    with pytest.raises(error):
        StatusMessenger.publish(channel, message)
    assert said.messages == []


@pytest.mark.parametrize(("receivers", "error"), [(-1, ValueError), (True, TypeError), (None, TypeError)])
def test_misuse_of_its_own(receivers, error):
    with pytest.raises(error, match="receivers is"):
        CaptureMessenger(receivers=receivers)


def real_ways():
    return messenger._publish.__module__, Outbox.append.__module__


def test_all_is_as_before_after_the_block():
    before = messenger._publish, Outbox.append
    said = CaptureMessenger()
    with contextlib.suppress(KeyError), said:
        assert (messenger._publish, Outbox.append) != before
        raise KeyError
    assert (messenger._publish, Outbox.append) == before
    assert StatusMessenger.publish("r1:wepp", "to nobody") is None
    assert said.messages == []


def test_of_nested_blocks_the_inner_one_takes():
    with CaptureMessenger(receivers=1) as outer:
        StatusMessenger.publish("r1:wepp", 1)
        with CaptureMessenger(receivers=2) as inner:
            assert StatusMessenger.publish("r1:wepp", 2) == 2
        assert StatusMessenger.publish("r1:wepp", 3) == 1
    assert (outer.lines("r1:wepp"), inner.lines("r1:wepp")) == (["1", "3"], ["2"])


def test_blocks_that_end_in_another_order():
    first, second = CaptureMessenger(), CaptureMessenger()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    StatusMessenger.publish("r1:wepp", "x")
    second.__exit__(None, None, None)
    assert (first.messages, second.messages) == ([], [("r1:wepp", "x")])
    assert real_ways() == ("client.messenger", "client.outbox")


def test_one_may_be_entered_twice():
    with CaptureMessenger() as said, CaptureMessenger() as other, said:
        StatusMessenger.publish("r1:wepp", "x")
    assert (len(said.messages), other.messages) == (1, [])
    assert real_ways() == ("client.messenger", "client.outbox")


def test_threads_are_captured_too(said):
    def work(name):
        for i in range(500):
            StatusMessenger.publish(f"r1:{name}", i)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in range(4):
        assert said.lines(f"r1:{name}") == [str(i) for i in range(500)]


def test_a_thread_that_comes_as_the_last_block_ends_publishes_as_ever():
    """It has found the patched function and no capture any more."""
    with CaptureMessenger():
        publish, append = messenger._publish, Outbox.append
    assert publish("r1:wepp", b"x", False) is None
    with QueuedMessenger() as own:
        assert append(own._outbox, "r1:wepp", b"x")
        assert own.counts().waiting == 1
        own.close(0)


def test_a_child_of_a_fork_captures_for_itself(said):
    StatusMessenger.publish("r1:wepp", "parent")
    pid = os.fork()
    if pid == 0:
        StatusMessenger.publish("r1:wepp", "child")
        os._exit(len(said.messages))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
    assert said.lines("r1:wepp") == ["parent"]
