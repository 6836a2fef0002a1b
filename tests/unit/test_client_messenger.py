"""StatusMessenger's own rules, with a sender of the test's own: what is misuse, and how a message is written."""

import decimal
import logging

import pytest
import redis

from client import connection, messenger
from client.connection import Address
from client.messenger import StatusMessenger, StatusMessengerHandler
from client.sender import Counts, Dropped, InDoubt, Refused


class FakeSender:
    def __init__(self, outcome=1):
        self.address = Address()
        self.outcome = outcome
        self.published = []

    def publish(self, channel, message, flush=None, *, patient=False):
        if isinstance(self.outcome, Exception):
            raise self.outcome
        self.published.append((channel, message))
        return self.outcome

    def counts(self):
        return Counts(1, 2, 3)


@pytest.fixture
def sender(monkeypatch):
    fake = FakeSender()
    monkeypatch.setattr(connection, "_found", fake.address)
    monkeypatch.setattr(messenger._Process, "sender", fake)
    return fake


@pytest.mark.parametrize(
    ("message", "payload"),
    [
        ("é", b"\xc3\xa9"),
        ("", b""),
        (b"\xff\x00", b"\xff\x00"),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"ab"), b"ab"),
        (7, b"7"),
        (0.5, b"0.5"),
        (decimal.Decimal("1.50"), b"1.50"),
        ("file \udce9", b"file \\udce9"),
    ],
)
def test_text_bytes_and_numbers(sender, message, payload):
    assert StatusMessenger.publish("r1:wepp", message) == 1
    assert sender.published == [("r1:wepp", payload)]


@pytest.mark.parametrize("message", [None, True, ["x"], {"x": 1}, object()])
def test_any_other_message_is_misuse(sender, message):
    with pytest.raises(TypeError, match="a message is a str, bytes or a number, not"):
        StatusMessenger.publish("r1:wepp", message)
    assert sender.published == []


@pytest.mark.parametrize(
    ("channel", "error"),
    [("", ValueError), (None, TypeError), (b"r1:wepp", TypeError), (7, TypeError), ("\ud800", ValueError)],
)
def test_a_channel_that_is_no_text_is_misuse(sender, channel, error):
    with pytest.raises(error):
        StatusMessenger.publish(channel, "x")
    with pytest.raises(error):
        StatusMessenger.publish_command(channel, "x")
    with pytest.raises(error):
        StatusMessengerHandler(channel)
    assert sender.published == []


@pytest.mark.parametrize("channel", ["no-colon", "a:b:c", " ", "run 1:Ö"])
def test_the_grammar_of_the_channel_is_not_checked(sender, channel):
    assert StatusMessenger.publish(channel, "x") == 1


def test_publish_command_has_the_channel_of_commands(sender):
    assert StatusMessenger.publish_command("r1", "go") == 1
    assert sender.published == [("r1:command", b"go")]


@pytest.mark.parametrize("trouble", [Dropped("away"), Refused("NOPERM"), InDoubt("late")])
def test_trouble_is_none_by_default(sender, trouble):
    sender.outcome = trouble
    assert StatusMessenger.publish("r1:wepp", "x") is None


@pytest.mark.parametrize(
    ("trouble", "error", "text"),
    [
        (Dropped("away"), redis.ConnectionError, "the message on r1:wepp was dropped: away"),
        (InDoubt("late"), redis.ConnectionError, "the message on r1:wepp is in doubt: late"),
        (Refused("NOPERM no"), redis.ResponseError, "the message on r1:wepp was refused: NOPERM no"),
    ],
)
def test_trouble_is_raised_with_strict(sender, trouble, error, text):
    sender.outcome = trouble
    with pytest.raises(error, match=text):
        StatusMessenger.publish("r1:wepp", "x", strict=True)
    with pytest.raises(error):
        StatusMessenger.publish_command("r1", "x", strict=True)


def test_counts(sender):
    assert StatusMessenger.counts() == (1, 2, 3, 0)


# --- the handler -------------------------------------------------------------------------------------------------


def record(message, *args, name="worker", exc_info=None):
    return logging.LogRecord(name, logging.INFO, __file__, 1, message, args, exc_info)


def test_the_handler_publishes_the_bare_message(sender):
    try:
        raise KeyError("not for the page")
    except KeyError as error:
        trace = (KeyError, error, error.__traceback__)
    StatusMessengerHandler("r1:wepp").handle(record("done %d %s", 3, "é", exc_info=trace))
    assert sender.published == [("r1:wepp", "done 3 é".encode())]


def test_the_handler_uses_its_formatter(sender):
    handler = StatusMessengerHandler("r1:wepp")
    handler.setFormatter(logging.Formatter("%(name)s|%(message)s"))
    handler.handle(record("done"))
    assert sender.published == [("r1:wepp", b"worker|done")]


class Explosive:
    def __str__(self):
        raise RuntimeError("no text")


@pytest.mark.parametrize("bad", [record("%d", "no number"), record(Explosive()), record("%s %s", 1)])
def test_emit_never_raises_on_a_bad_record(sender, bad, capsys):
    StatusMessengerHandler("r1:wepp").handle(bad)
    assert sender.published == []
    assert "Logging error" in capsys.readouterr().err


@pytest.mark.parametrize("error", [OSError("x"), RuntimeError("x"), RecursionError("x"), redis.ConnectionError("x")])
def test_emit_never_raises_whatever_publishing_does(sender, error, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)
    sender.outcome = error
    StatusMessengerHandler("r1:wepp").emit(record("x"))


def test_emit_never_raises_where_even_stderr_is_closed(sender, monkeypatch):
    class Closed:
        def write(self, _):
            raise ValueError("I/O operation on closed file")

    monkeypatch.setattr("sys.stderr", Closed())
    StatusMessengerHandler("r1:wepp").emit(record("%d", "no number"))


def test_emit_never_raises_where_the_environment_names_no_redis(sender, monkeypatch, capsys):
    monkeypatch.setattr(connection, "_found", None)
    monkeypatch.setattr(connection, "_url", None)
    monkeypatch.setenv("REDIS_URL", "http://wepp1")
    StatusMessengerHandler("r1:wepp").emit(record("x"))
    assert "REDIS_URL must start with" in capsys.readouterr().err


def test_the_handler_passes_over_the_senders_own_warnings(sender):
    StatusMessengerHandler("r1:wepp").handle(record("Redis is away", name="client.sender"))
    assert sender.published == []
