"""The sender's rules, with connections of the test's own in place of Redis."""

import logging
import threading

import pytest

from client import sender as module
from client.connection import Address
from client.sender import Dropped, InDoubt, Refused, Sender, Trouble
from client.wire import Outcome, ReplyError, Unanswered, Unsent


class FakeWire:
    """Does what the script says, one entry a publish; then answers 1."""

    def __init__(self, *script):
        self.script = list(script)
        self.published = []
        self.closed = False
        self.latency = 0.0

    def publish(self, channel, message, deadline):
        step = self.script.pop(0) if self.script else 1
        if isinstance(step, BaseException):
            raise step
        self.published.append((channel.decode(), message.decode()))
        return step

    def tell(self, channel, message, deadline):
        self.publish(channel, message, deadline)

    def ping(self, deadline):
        pass

    def close(self):
        self.closed = True


@pytest.fixture
def wires(monkeypatch):
    """What the helper gets when it connects, in order; an exception is a failed attempt, an empty list blocks it."""
    queue, more = [], threading.Semaphore(0)

    def open_wire(*_):
        more.acquire()
        entry = queue.pop(0)
        if isinstance(entry, Exception):
            raise entry
        return entry

    def add(*entries):
        queue.extend(entries)
        more.release(len(entries))

    monkeypatch.setattr(module, "open_wire", open_wire)
    return add


@pytest.fixture
def sender(monkeypatch):
    """Its 0.2 s are not looked at here, and a machine that stands still for as long would drop what a test sends."""
    monkeypatch.setattr(module, "BUDGET", 10.0)
    monkeypatch.setattr(module, "FIRST_ATTEMPT", 10.0)
    sender = Sender(Address("wepp1", 6379, password="s3cret"))
    yield sender
    sender.close()


def test_a_message_that_found_the_connection_closed_goes_out_on_a_new_one(sender, wires):
    old, new = FakeWire(1, Unsent("closed")), FakeWire()
    wires(old, new)
    assert [sender.publish("c", b"a"), sender.publish("c", b"b")] == [1, 1]
    assert (old.published, new.published, old.closed) == ([("c", "a")], [("c", "b")], True)
    assert sender.counts() == (2, 0, 0, 0)


def test_a_message_twice_unsent_is_dropped(sender, wires):
    wires(FakeWire(Unsent("closed")), FakeWire(Unsent("closed again")))
    with pytest.raises(Dropped, match="closed again"):
        sender.publish("c", b"a")
    assert sender.counts() == (0, 1, 0, 0)


@pytest.mark.parametrize("lost", [True, False])
def test_a_message_in_doubt_is_never_sent_again(sender, wires, lost):
    first, second = FakeWire(Unanswered("late", lost=lost)), FakeWire()
    wires(first, second)
    with pytest.raises(InDoubt):
        sender.publish("c", b"a")
    sender.publish("c", b"b")
    assert (first if not lost else second).published == [("c", "b")]
    assert first.closed is lost
    assert sender.counts() == (1, 0, 1, 0)


def test_an_exception_in_the_middle_of_a_command_ends_its_connection(sender, wires):
    """A half-written command would swallow the next one: RQ's job timeout is raised by a signal handler, anywhere."""
    broken, new = FakeWire(KeyboardInterrupt()), FakeWire()
    wires(broken, new)
    with pytest.raises(KeyboardInterrupt):
        sender.publish("c", b"a")
    assert broken.closed
    assert sender.publish("c", b"b") == 1
    assert new.published == [("c", "b")]


def test_a_message_dropped_beside_a_living_connection_is_told_before_the_next(sender, wires):
    wire = FakeWire()
    wires(wire)
    sender.publish("c", b"a")
    assert sender._turns.take(0)
    with pytest.raises(Dropped, match="other threads"):
        sender.publish("c", b"b")
    sender._turns.give()
    sender.publish("d", b"c")
    assert wire.published == [("c", "a"), ("c", module.AWAY.format(1)), ("d", "c")]


def test_a_refused_message_keeps_the_connection_and_gets_no_notice(sender, wires):
    wire = FakeWire(ReplyError("NOPERM"))
    wires(wire)
    with pytest.raises(Refused, match="NOPERM"):
        sender.publish("c", b"a")
    sender.publish("c", b"b")
    assert wire.published == [("c", "b")]
    assert not wire.closed
    assert sender.counts() == (1, 1, 0, 0)


def test_after_a_failed_attempt_messages_are_dropped_until_the_helper_succeeds(sender, wires):
    wires(OSError(111, "Connection refused"))
    for _ in range(3):
        with pytest.raises(Dropped, match="Connection refused"):
            sender.publish("c", b"a")
    wire = FakeWire()
    helper = sender._helper
    wires(wire)
    helper.join(10)
    assert sender.publish("c", b"b") == 1
    assert wire.published == [("c", module.AWAY.format(3)), ("c", "b")]


def test_each_channel_is_told_its_own_drops(sender, wires):
    wires(OSError(111, "Connection refused"))
    for channel in ("a", "b", "a"):
        with pytest.raises(Dropped):
            sender.publish(channel, b"x")
    wire, helper = FakeWire(), sender._helper
    wires(wire)
    helper.join(10)
    assert wire.published == [("a", module.AWAY.format(2)), ("b", module.AWAY.format(1))]


def test_a_notice_that_was_not_sent_is_kept(sender, wires):
    wires(OSError(111, "Connection refused"))
    for channel in ("a", "b", "c"):
        with pytest.raises(Dropped):
            sender.publish(channel, b"x")
    closing, lasting = FakeWire(1, Unsent("closed")), FakeWire()
    helper = sender._helper
    wires(closing, lasting)
    helper.join(10)
    assert closing.published == [("a", module.AWAY.format(1))]
    assert closing.closed
    assert lasting.published == [("b", module.AWAY.format(1)), ("c", module.AWAY.format(1))]


def test_no_more_channels_are_remembered_than_the_bound(sender, wires, monkeypatch):
    monkeypatch.setattr(module, "CHANNELS_MAX", 2)
    wires(OSError(111, "Connection refused"))
    for channel in ("a", "b", "c", "a"):
        with pytest.raises(Dropped):
            sender.publish(channel, b"x")
    wire, helper = FakeWire(), sender._helper
    wires(wire)
    helper.join(10)
    assert wire.published == [("a", module.AWAY.format(2)), ("b", module.AWAY.format(1))]
    assert sender.counts().dropped == 4


def test_a_process_that_can_start_no_thread_drops(sender, monkeypatch):
    def fail(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(Dropped, match="can't start new thread"):
        sender.publish("c", b"a")


def test_the_log_has_one_warning_for_each_change_of_state(sender, wires, caplog):
    wires(OSError(111, "Connection refused"))
    for _ in range(5):
        with pytest.raises(Dropped):
            sender.publish("c", b"the payload")
    helper = sender._helper
    wires(FakeWire())
    helper.join(10)
    for _ in range(5):
        sender.publish("c", b"the payload")
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    away, back = (record.getMessage() for record in caplog.records)
    assert "redis://wepp1:6379 is away" in away
    assert "Connection refused" in away
    assert "redis://wepp1:6379 is back" in back
    assert "dropped=5" in back
    assert "s3cret" not in caplog.text
    assert "payload" not in caplog.text


@pytest.mark.parametrize(
    ("trouble", "word"),
    [(Unanswered("late", lost=False), "is slow"), (ReplyError("NOPERM"), "refuses a status message")],
)
def test_other_trouble_is_told_once_too(sender, wires, caplog, trouble, word):
    wires(FakeWire(trouble, 1, trouble))
    with pytest.raises(Trouble):
        sender.publish("c", b"a")
    sender.publish("c", b"b")
    with pytest.raises(Trouble):
        sender.publish("c", b"c")
    assert [word in record.getMessage() for record in caplog.records] == [True]


def test_a_handler_may_publish_our_own_warning_even_from_another_thread(sender, wires):
    wires(OSError(111, "Connection refused"))
    dropped = threading.Event()

    def publish():
        with pytest.raises(Dropped):
            sender.publish("c", b"echo")
        dropped.set()

    class Echo(logging.Handler):
        def emit(self, record):
            threading.Thread(target=publish).start()
            assert dropped.wait(10)

    echo = Echo()
    module.log.addHandler(echo)
    try:
        with pytest.raises(Dropped):
            sender.publish("c", b"a")
    finally:
        module.log.removeHandler(echo)
    assert sender.counts().dropped == 2


def test_a_closed_sender_ends_its_helper(wires):
    sender = Sender(Address())
    wires(OSError(111, "Connection refused"))
    with pytest.raises(Dropped):
        sender.publish("c", b"a")
    helper, wire = sender._helper, FakeWire()
    sender.close()
    wires(wire)  # whether the helper pauses or connects just now
    helper.join(10)
    assert not helper.is_alive()
    assert wire.published == []


def test_pauses_double_up_to_a_bound():
    pauses = module._pauses()
    assert [next(pauses) for _ in range(12)] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]


def test_a_helper_that_never_ran_is_waited_for_by_nobody(sender, wires, monkeypatch):
    """A signal handler's exception, as RQ ends a job that takes too long, may come while the thread is started."""
    start = threading.Thread.start

    def interrupted(_):
        monkeypatch.setattr(threading.Thread, "start", start)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sender.publish("c", b"a")
    wires(FakeWire())
    assert sender.publish("c", b"b") == 1
    assert sender.counts() == (1, 0, 1, 0)


def test_an_outage_of_a_queue_is_one_warning(sender, wires, caplog):
    """What was on its way when the connection ended, and that there is none, are one and the same news."""
    wire = FakeWire()
    wire.publish_many = lambda messages, deadline: Outcome([], len(messages), "the connection ended")
    wires(wire, OSError("refused"))
    sender.connect(lambda: True)
    assert sender.publish_batch([("c", b"a"), ("c", b"b")]) == 2
    tried = threading.Thread(target=sender.connect, args=(lambda: sender._failure is None,))
    tried.start()
    tried.join(10)
    assert sender._failure == "refused"
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["Redis at redis"]
    assert "status messages wait until it is back: 2 are in doubt: the connection ended" in caplog.text
    assert sender.counts() == (0, 0, 2, 0)


def test_who_waits_through_an_outage_leaves_nothing_behind(sender, wires, monkeypatch):
    monkeypatch.setattr(module, "WANTED_EVERY", 0.001)
    looks = iter(range(50))
    sender.connect(lambda: next(looks, None) is not None)
    assert sender._bells._waiting == []
    wires(FakeWire())
