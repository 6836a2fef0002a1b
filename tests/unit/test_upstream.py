"""The life of a connection to Redis, and the link, against a Redis that says what the test says."""

import asyncio
import contextlib
import itertools
import logging
import socket

import pytest

from relay import upstream
from relay.errors import ConfigError, RedisGivenUp
from relay.settings import ServiceSettings
from relay.upstream import Commands, Lost, Refused, encode
from relay.values import RedisAddress
from tests.unit.rig import Rig, resp, texts
from tests.unit.scripted import PONG, Server, ack, soon, until


@pytest.fixture
async def server(monkeypatch):
    monkeypatch.setattr(upstream, "REFUSED_RETRY_MAX", 0.002)
    async with Server() as fake:
        yield fake


@pytest.fixture
def fast_ping(monkeypatch):
    monkeypatch.setattr(upstream, "PING_EVERY", 0.02)


@pytest.fixture
async def linked(server):
    """A link that is up, and its server's side."""
    link = server.link()
    visit = await server.visit()
    await until(lambda: link.up)
    return link, visit


# ---- being let in ----


@pytest.mark.parametrize(
    ("login", "greetings"),
    [
        ({}, [[b"PING"]]),
        ({"password": "pässword x"}, [[b"AUTH", "pässword x".encode()], [b"PING"]]),
        ({"username": "relay", "password": "p"}, [[b"AUTH", b"relay", b"p"], [b"PING"]]),
        ({"db": 5}, [[b"PING"]]),
        ({"db": 5, "name": "preflight"}, [[b"PING"]]),
    ],
)
async def test_what_a_link_says_first(server, login, greetings):
    link = server.link(**login)
    await server.visit(*greetings)
    await until(lambda: link.up)


@pytest.mark.parametrize(
    ("name", "db", "greetings"),
    [
        ("preflight", 0, [[b"PING"]]),
        ("preflight", 5, [[b"PING"], [b"SELECT", b"5"]]),
        ("status", 2, [[b"PING"]]),
    ],
)
async def test_only_who_reads_hashes_selects_a_database(server, name, db, greetings):
    commands = server.commands(name=name, db=db)
    await server.visit(*greetings)
    await until(lambda: commands.up)


@pytest.mark.parametrize(
    "refusal",
    [
        "WRONGPASS invalid username-password pair or user is disabled.",
        "NOAUTH Authentication required.",
        "ERR invalid password",
        "ERR Client sent AUTH, but no password is set",
        "ERR AUTH <password> called without any password configured for the default user. Are you sure?",
    ],
)
async def test_a_refused_password_at_the_start_ends_it(server, refusal):
    link = server.link(password="se-cret")
    visit = await server.accept()
    assert await visit.command() == [b"AUTH", b"se-cret"]
    visit.say(b"-%b\r\n" % refusal.encode(), b"-NOAUTH Authentication required.\r\n")
    await until(lambda: link.failed)
    assert [type(error) for error in link.failed] == [ConfigError]
    assert refusal in str(link.failed[0])
    assert "se-cret" not in str(link.failed[0])
    assert await visit.command() == [b"PING"]
    assert await visit.command() is None, "the connection is given up"
    assert server.visits.empty()


async def test_the_same_refusal_later_is_tried_again_for_ever(server, caplog):
    link = server.link(password="se-cret")
    greetings = [[b"AUTH", b"se-cret"], [b"PING"]]
    (await server.visit(*greetings)).hang_up()
    for _ in range(3):
        visit = await server.accept()
        visit.say(b"-WRONGPASS invalid username-password pair or user is disabled.\r\n")
    await server.visit(*greetings)
    await until(lambda: link.up)
    assert link.failed == []
    assert "se-cret" not in caplog.text


@pytest.mark.parametrize("refusal", [b"NOPERM this user has no permissions", b"ERR max number of clients reached"])
async def test_other_refusals_at_the_start_are_tried_again(server, refusal):
    link = server.link()
    visit = await server.accept()
    await visit.command()
    visit.say(b"-%b\r\n" % refusal)
    await server.visit()
    await until(lambda: link.up)
    assert link.failed == []


async def test_a_refusal_that_comes_unasked_is_heard(server, monkeypatch, caplog):
    """Beyond maxclients Redis says so on accept and closes: uvloop hands that over before the PING has been sent."""
    loop = asyncio.get_running_loop()
    connect, refusal = loop.create_connection, b"-ERR max number of clients reached\r\n"

    async def answered_at_once(*args, **kwargs):
        transport, protocol = await connect(*args, **kwargs)
        protocol.get_buffer(-1)[: len(refusal)] = refusal
        protocol.buffer_updated(len(refusal))
        transport.abort()
        return transport, protocol

    monkeypatch.setattr(loop, "create_connection", answered_at_once)
    link = server.link()
    await until(lambda: "no Redis for status subscriptions" in caplog.text)
    monkeypatch.setattr(loop, "create_connection", connect)
    assert "max number of clients reached" in caplog.text
    await until(lambda: not server.visits.empty())
    while not link.up:
        visit = await server.accept()
        if await visit.command() == [b"PING"]:
            visit.say(PONG)
            await until(lambda: link.up)


@pytest.mark.parametrize("verdict", ["LOADING Redis is loading the dataset in memory", "BUSY Redis is busy running"])
async def test_what_is_over_soon_is_tried_again_soon(server, monkeypatch, verdict):
    """It is as if Redis were away: pauses of up to 30 s are for those whom somebody has to let in first."""
    monkeypatch.setattr(upstream, "REFUSED_RETRY_MAX", 1e6)
    link = server.link(redis_retry_base=1e5)
    for _ in range(3):
        visit = await server.accept()
        await visit.command()
        visit.say(b"-%b\r\n" % verdict.encode())
    await server.visit()
    await until(lambda: link.up)


async def test_another_trouble_is_said_without_waiting_for_its_minute(server, caplog):
    """The password was changed and the connection killed: "closed" alone would leave one guessing for a minute."""
    link = server.link(password="se-cret")
    greetings = [[b"AUTH", b"se-cret"], [b"PING"]]
    visit = await server.visit(*greetings)
    await until(lambda: link.up)
    visit.hang_up()
    for _ in range(5):
        visit = await server.accept()
        await visit.command()
        visit.say(b"-WRONGPASS invalid username-password pair or user is disabled.\r\n")
        assert await visit.command() == [b"PING"]
        assert await visit.command() is None
    await server.visit(*greetings)
    await until(lambda: link.up)
    lines = [record.getMessage() for record in caplog.records if "no Redis for" in record.getMessage()]
    assert len(lines) == 2, lines
    assert "WRONGPASS" in lines[1]


async def test_a_server_that_accepts_and_never_answers_is_left(server):
    link = server.link(redis_request_timeout=0.5)
    mute = await server.accept()
    await server.visit()
    await until(lambda: link.up)
    assert await mute.command() == [b"PING"]
    assert await mute.command() is None


async def test_the_address_is_asked_for_before_every_connect(server):
    asked = []

    async def elsewhere(address):
        asked.append(address)
        return RedisAddress(host="127.0.0.1", port=server.port)

    link = server.link(port=1)  # where nobody listens
    link.resolve = elsewhere
    for _ in range(2):
        (await server.visit()).hang_up()
    await server.visit()
    assert len(asked) == 3
    assert asked[0].port == 1


# ---- trying again ----


async def test_nobody_there_then_somebody(server, caplog):
    caplog.set_level(logging.INFO, "relay.redis")
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        link = server.link(port=port)
        await until(lambda: "no Redis for status subscriptions" in caplog.text)
    async with Server(port) as late:
        await late.visit()
        await until(lambda: link.up)
        await link.stop()
    assert link.reconnects == 0, "the first time is no reconnect"
    assert caplog.text.count("no Redis for status subscriptions") == 1, "one line a minute"


async def test_a_fault_of_its_own_is_said_and_tried_again(server, caplog, monkeypatch):
    connect = upstream.Upstream._connect

    async def faulty(self):
        monkeypatch.setattr(upstream.Upstream, "_connect", connect)
        raise KeyError("pattern")

    monkeypatch.setattr(upstream.Upstream, "_connect", faulty)
    link = server.link()
    await server.visit()
    await until(lambda: link.up)
    assert "a fault of the relay itself" in caplog.text
    assert "KeyError: 'pattern'" in caplog.text
    await link.stop()


async def test_what_is_lost_is_made_anew_and_counted(server, caplog):
    caplog.set_level(logging.INFO, "relay.redis")
    link = server.link()
    for expected in range(4):
        visit = await server.visit()
        await until(lambda: link.up)
        assert link.reconnects == expected
        assert await visit.silent(), "the probe is subscribed"
        await until(lambda: caplog.text.count("Redis is ") == expected + 1)  # noqa: B023 - awaited at once
        visit.hang_up()
        assert await link.heard.next() == "down"
        assert not link.up
    assert caplog.text.count("Redis is back for status subscriptions") == 3


def test_pauses_have_full_jitter_between_nothing_and_their_bound():
    settings = ServiceSettings(name="status", listen=":0", redis=RedisAddress())
    link = Commands(settings, lambda error: None)
    for why, failures, most in (
        (Lost("x"), 1, 0.1),
        (Lost("x"), 3, 0.4),
        (Lost("x"), 1000, 1.0),
        (Refused("x", fatal=False), 5, 1.6),
        (Refused("x", fatal=True), 1000, 30.0),
    ):
        pauses = [link._pause(why, failures) for _ in range(2000)]
        assert min(pauses) < most * 0.02, "it starts at nothing"
        assert most * 0.98 < max(pauses) <= most


async def test_retries_used_up_end_it(server):
    link = server.link(port=1, redis_max_retries=3)
    await until(lambda: link.failed)
    assert [type(error) for error in link.failed] == [RedisGivenUp]
    assert "STATUS_REDIS_MAX_RETRIES" in str(link.failed[0])


async def test_retries_are_counted_anew_after_each_success(server):
    link = server.link(redis_max_retries=1)
    for _ in range(4):
        (await server.visit()).hang_up()
    await server.visit()
    await until(lambda: link.up)
    assert link.failed == []


async def test_stopping_while_it_connects_and_while_it_waits(server):
    connecting = server.link()
    visit = await server.accept()
    assert await visit.command() == [b"PING"]
    await soon(connecting.stop())
    assert await visit.command() is None
    waiting = server.link(port=1, redis_retry_base=100.0, redis_retry_max=100.0)
    await until(lambda: waiting._closed is not None)
    await soon(waiting.stop())


# ---- interest ----


async def test_what_is_wanted_in_one_turn_is_one_subscribe(linked):
    link, visit = linked
    for channel in (b"a", b"b", b"a", b"c"):
        link.want(channel)
    assert await visit.command() == [b"SUBSCRIBE", b"a", b"b", b"c"]
    assert not link.subscribed(b"a")
    visit.say(ack(b"subscribe", b"a", b"b", b"c"))
    assert await link.heard.next(3) == [("subscribed", channel) for channel in (b"a", b"b", b"c")]
    assert link.subscribed(b"a")
    assert link.channels == 3


async def test_batches_of_512(linked):
    link, visit = linked
    names = [b"c%d" % number for number in range(1100)]
    for verb, wish in ((b"SUBSCRIBE", link.want), (b"UNSUBSCRIBE", link.drop)):
        for name in names:
            wish(name)
        for part in (names[:512], names[512:1024], names[1024:]):
            assert await visit.command() == [verb, *part]
        visit.say(ack(verb.lower(), *names))
        if wish == link.want:
            await link.heard.next(1100)
    await until(lambda: not link._state)
    assert link.channels == 0


async def test_wishes_that_cancel_each_other_in_one_turn_send_nothing(linked):
    link, visit = linked
    link.want(b"a")
    link.drop(b"a")
    link.want(b"b")
    assert await visit.command() == [b"SUBSCRIBE", b"b"]
    visit.say(ack(b"subscribe", b"b"))
    await link.heard.next()
    link.drop(b"b")
    link.want(b"b")
    link.want(b"last")
    assert await visit.command() == [b"SUBSCRIBE", b"last"]


async def test_dropped_before_it_is_confirmed(linked):
    link, visit = linked
    link.want(b"a")
    assert await visit.command() == [b"SUBSCRIBE", b"a"]
    link.drop(b"a")
    assert await visit.silent(), "one command in flight for a channel"
    visit.say(ack(b"subscribe", b"a"))
    assert await visit.command() == [b"UNSUBSCRIBE", b"a"]
    assert link.heard.nothing(), "nobody waits for it any more"
    visit.say(ack(b"unsubscribe", b"a"))
    await until(lambda: not link._state)


async def test_wanted_again_while_it_is_leaving(linked):
    link, visit = linked
    link.want(b"a")
    assert await visit.command() == [b"SUBSCRIBE", b"a"]
    visit.say(ack(b"subscribe", b"a"))
    await link.heard.next()
    link.drop(b"a")
    assert await visit.command() == [b"UNSUBSCRIBE", b"a"]
    link.want(b"a")
    assert not link.subscribed(b"a"), "what is published now may not arrive"
    link.want(b"b")
    assert await visit.command() == [b"SUBSCRIBE", b"b"], "one command in flight for a channel"
    visit.say(ack(b"unsubscribe", b"a"), ack(b"subscribe", b"b"))
    assert await visit.command() == [b"SUBSCRIBE", b"a"]
    visit.say(ack(b"subscribe", b"a"))
    assert await link.heard.next(2) == [("subscribed", b"b"), ("subscribed", b"a")]
    assert link.subscribed(b"a")


async def test_whatever_is_wanted_is_subscribed_again(server):
    link = server.link()
    first = await server.visit()
    await until(lambda: link.up)
    for channel in (b"a", b"b", b"gone"):
        link.want(channel)
    await first.command()
    first.say(ack(b"subscribe", b"a", b"b", b"gone"))
    await link.heard.next(3)
    link.drop(b"gone")
    first.hang_up()
    assert await link.heard.next() == "down"
    assert not link.subscribed(b"a")
    link.want(b"while away")
    link.drop(b"b")
    second = await server.visit()
    assert await second.command() == [b"SUBSCRIBE", b"a", b"while away"]
    second.say(ack(b"subscribe", b"a", b"while away"))
    assert await link.heard.next(2) == [("subscribed", b"a"), ("subscribed", b"while away")]


async def test_one_refused_name_harms_no_other_and_is_never_in_a_batch_again(server, caplog):
    link = server.link()
    visit = await server.visit()
    await until(lambda: link.up)
    refusal = b"-NOPERM No permissions to access one of the channels used as arguments\r\n"
    for channel in (b"a", b"bad", b"c"):
        link.want(channel)
    assert await visit.command() == [b"SUBSCRIBE", b"a", b"bad", b"c"]
    visit.say(refusal)
    assert [await visit.command() for _ in range(3)] == [[b"SUBSCRIBE", name] for name in (b"a", b"bad", b"c")]
    visit.say(ack(b"subscribe", b"a"), refusal, ack(b"subscribe", b"c"))
    assert await link.heard.next(3) == [("subscribed", b"a"), ("refused", b"bad"), ("subscribed", b"c")]
    assert link.channels == 2
    assert "Redis refuses a subscription of the status service: NOPERM" in caplog.text
    visit.hang_up()
    assert await link.heard.next() == "down"
    link.want(b"bad")
    visit = await server.visit()
    assert await visit.command() == [b"SUBSCRIBE", b"a", b"c"]
    assert await visit.command() == [b"SUBSCRIBE", b"bad"]
    visit.say(ack(b"subscribe", b"a", b"c", b"bad"))
    assert await link.heard.next(3) == [("subscribed", name) for name in (b"a", b"c", b"bad")], "permitted by now"


NO_COMMAND = "NOPERM this user has no permissions to run the 'subscribe' command"


async def test_a_user_that_may_not_subscribe_at_all_is_refused_as_a_whole(server, caplog):
    """Tried again more slowly each time, with one line for it all: it is let in each time, and refused then."""
    link = server.link(redis_retry_base=0.001)
    link.want(b"a")
    for _ in range(5):
        visit = await server.visit()
        visit.curious = True
        assert (await visit.command())[1].startswith(b"__relay__:probe:")
        visit.say(b"-%b\r\n" % NO_COMMAND.encode())
        assert await link.heard.next() == "down"
    assert link.channels == 1
    assert [line for line in caplog.messages if "Redis" in line] == [
        f"no Redis for status subscriptions: {NO_COMMAND}; trying again"
    ]


@pytest.mark.parametrize("error", ["BUSY Redis is busy running a script", "LOADING Redis is loading", "ERR what"])
async def test_an_error_that_speaks_of_no_channel_is_a_lost_connection_and_no_verdict(server, error):
    link = server.link()
    visit = await server.visit()
    await until(lambda: link.up)
    link.want(b"a")
    for _ in range(2):  # the batch of one, and perhaps the same name alone
        if await visit.command() is None:
            break
        visit.say(b"-%b\r\n" % error.encode())
    assert await link.heard.next() == "down"
    visit = await server.visit()
    assert await visit.command() == [b"SUBSCRIBE", b"a"], "still wanted"
    visit.say(ack(b"subscribe", b"a"))
    assert await link.heard.next() == ("subscribed", b"a")


# ---- what comes ----


async def test_events_come_in_order_however_the_bytes_are_cut(linked):
    link, visit = linked
    link.want(b"a")
    await visit.command()
    stream = ack(b"subscribe", b"a")
    stream += b"".join(encode(b"message", b"a", b"payload %d" % number) for number in range(5))
    for position in range(len(stream)):
        visit.say(stream[position : position + 1])
        await visit.writer.drain()
        await asyncio.sleep(0)
    assert await link.heard.next() == ("subscribed", b"a")
    assert await link.heard.next(5) == [(b"a", b"payload %d" % number) for number in range(5)]


async def test_one_read_is_one_delivery(linked):
    """The end of a read, not each reply in it, is when the core sends."""
    link, visit = linked
    deliveries = []
    link.deliver = lambda: deliveries.append(None)
    visit.say(encode(b"message", b"x", b"y") * 100)
    await link.heard.next(100)
    assert len(deliveries) < 10


NO_REPLIES = {
    "an array for which there is no memory": b"*4294967295\r\n:1\r\n",
    "no RESP": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "a length beyond all memory": b"$9223372036854775807\r\nx\r\n",
    "a length below zero": b"$-2\r\n",
    "an array beyond all memory": b"*4294967296\r\n",
    "too deep": b"*1\r\n" * 1025,
    "a map with a list for a key": b"%1\r\n*0\r\n:1\r\n",
    "an answer to nothing": b"+OK\r\n",
    "an error of nothing": b"-ERR what\r\n",
    "an acknowledgement of nothing": ack(b"subscribe", b"a"),
    "a push of three that is no message": encode(b"massage", b"a", b"b"),
    "null": b"$-1\r\n",
    "an empty array": b"*0\r\n",
}


@pytest.mark.parametrize("name", NO_REPLIES)
async def test_what_is_no_reply_ends_the_connection_and_nothing_else(server, name, fast_ping, caplog):
    link = server.link(redis_request_timeout=1.0)
    visit = await server.visit()
    await until(lambda: link.up)
    visit.say(NO_REPLIES[name])
    assert await link.heard.next() == "down"
    await server.visit()
    await until(lambda: link.up)
    assert link.failed == []
    assert "Fatal error" not in caplog.text, "an exception went out into the loop"


@pytest.mark.parametrize(
    "reply",
    [
        ack(b"subscribe", b"other"),
        ack(b"unsubscribe", b"a"),
        PONG,
        b"*3\r\n$9\r\nsubscribe\r\n$-1\r\n:1\r\n",
        b"*3\r\n*0\r\n*0\r\n*0\r\n",
        b"*3\r\n:1\r\n:2\r\n:3\r\n",
        b"*3\r\n$-1\r\n$-1\r\n$-1\r\n",
        b"*-1\r\n",
    ],
)
async def test_an_answer_to_another_question_ends_the_connection(server, reply):
    link = server.link()
    visit = await server.visit()
    await until(lambda: link.up)
    link.want(b"a")
    assert await visit.command() == [b"SUBSCRIBE", b"a"]
    visit.say(reply)
    assert await link.heard.next() == "down"
    visit = await server.visit()
    assert await visit.command() == [b"SUBSCRIBE", b"a"]


def test_a_message_that_is_no_text_reaches_no_client():
    """What lies in memory behind a number or a list was once sent to the browsers as the text."""
    rig = Rig()
    with contextlib.closing(rig):
        client = rig.join(b"a")
        for payload in (b":5", b"$-1", b"*0", b"*400\r\n" + b"\r\n".join([b":1"] * 400)):
            rest = rig.feed(b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n%b\r\n" % payload)
            rig.flush()
            assert len(rest) == 1, "the link is to judge it"
        rig.publish(b"a", b"text")
        assert texts(rig.received(client, 1)) == ["text"]


@pytest.mark.parametrize(
    "message",
    [
        b"*3\r\n$7\r\nmessage\r\n:1\r\n$1\r\nx\r\n",
        b"*3\r\n$7\r\nmessage\r\n$-1\r\n$1\r\nx\r\n",
        b"*3\r\n$7\r\nmessage\r\n*0\r\n$1\r\nx\r\n",
        b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n:5\r\n",
        b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n*0\r\n",
    ],
)
async def test_a_message_of_other_things_than_texts_ends_the_connection(server, message):
    link = server.link()
    visit = await server.visit()
    await until(lambda: link.up)
    visit.say(message)
    assert await link.heard.next() == "down"
    await server.visit()


async def test_a_reply_that_never_ends_is_bounded_and_counted(server):
    link = server.link(max_reply=1 << 20)
    visit = await server.visit()
    await until(lambda: link.up)
    visit.say(b"$30000000\r\n", b"x" * (3 << 20))
    assert await link.heard.next() == "down"
    assert link.large_replies == 1
    await server.visit()


# ---- the link's PING ----


@pytest.mark.parametrize("pong", [PONG, encode(b"pong", b"")])
async def test_both_forms_of_pong_will_do(server, fast_ping, pong):
    link = server.link(redis_request_timeout=1.0)
    visit = await server.visit()
    for _ in range(2):
        assert await visit.command() == [b"PING"]
        visit.say(pong)
        await until(lambda: not link._pinged)
    assert link.up


async def test_a_missing_pong_is_a_lost_connection(server, fast_ping, caplog):
    link = server.link(redis_request_timeout=0.5)
    visit = await server.visit()
    assert await visit.command() == [b"PING"]
    visit.say(encode(b"message", b"x", b"y"))  # it still talks, but does not answer
    assert await link.heard.next() == (b"x", b"y")
    assert await link.heard.next() == "down"
    assert "no PONG in 0.5 s" in caplog.text
    await server.visit()


async def test_a_pong_may_come_behind_messages(server, fast_ping):
    """A flood is read with pauses, and the PONG stands behind it in Redis: a link thrown away for it loses messages."""
    link = server.link()
    visit = await server.visit()
    assert await visit.command() == [b"PING"]
    for _ in range(3):
        visit.say(encode(b"message", b"x", b"y"))
        assert await link.heard.next() == (b"x", b"y")
        link._judge(asyncio.get_running_loop().time())  # as its timer does when the time of the PONG is over
        assert link._timer.when() == link.heard_at + link.settings.redis_request_timeout
    visit.say(PONG)
    await until(lambda: not link._pinged)
    assert link.up
    assert link.reconnects == 0


async def test_reading_waits_for_what_is_behind_but_not_for_ever(server, monkeypatch):
    """At most REST for one read, PATIENCE for all of them at first, then a tenth of the time."""
    monkeypatch.setattr(upstream, "PATIENCE_RATE", 0.0)
    link = server.link()
    visit = await server.visit()
    await until(lambda: link.up)
    monkeypatch.setattr(link, "behind", lambda: True)
    link.deliver = link.rest  # as behind a read after which deliveries are behind
    loop, looks, looks_until = asyncio.get_running_loop(), itertools.count(), []

    def read_on(transport, until):
        next(looks)
        upstream.Upstream._read_on(link, transport, until)

    monkeypatch.setattr(link, "_read_on", read_on)
    begin = loop.time()
    for _ in range(20):
        visit.say(encode(b"message", b"x", b"y"))
        assert await link.heard.next() == (b"x", b"y")
        looks_until.append(next(looks))
    assert loop.time() - begin > 4 * upstream.REST
    held = [n for n, (before, after) in enumerate(itertools.pairwise(looks_until)) if after - before > 20]
    assert len(held) < 10, "each of the others was read on after a look or two, however long the machine took for it"
    assert link._patience < upstream.REST / 10


async def test_no_ping_is_left_over_from_a_connection_before(server, monkeypatch):
    monkeypatch.setattr(upstream, "PING_EVERY", 0.4)
    link = server.link()
    for _ in range(5):
        (await server.visit()).hang_up()
        assert await link.heard.next() == "down"
    visit = await server.visit()
    assert await visit.command() == [b"PING"]
    assert await visit.silent()


async def test_a_process_that_stood_still_looks_once_more_before_it_judges(server, fast_ping):
    """What Redis answered meanwhile may lie unread in the socket."""
    link = server.link()
    visit = await server.visit()
    assert await visit.command() == [b"PING"]
    visit.say(PONG)
    link.heard_at -= 60.0
    link._judge(asyncio.get_running_loop().time() - 10.0)  # as its timer does, ten seconds late
    await until(lambda: not link._pinged)
    assert link.up


# ---- TLS ----


def test_a_tls_file_that_is_none_is_a_sentence(tmp_path):
    (tmp_path / "ca.pem").write_text("no certificate")
    address = RedisAddress(tls=True, ssl_ca_certs=str(tmp_path / "ca.pem"), password="se-cret")
    with pytest.raises(ConfigError, match="ssl_ca_certs") as caught:
        upstream.tls_context(address)
    assert "se-cret" not in str(caught.value)


async def test_one_read_is_delivered_once_whatever_its_size(server):
    """A burst is what one read brings. With a delivery for each slice of 16 KiB, each client cost four sends."""
    link = server.link()
    visit = await server.visit()
    await until(lambda: link.up)
    heard = []
    link.deliver = lambda: heard.append(link.heard.events.qsize())
    message = b"*3\r\n$7\r\nmessage\r\n$6\r\nrun1:a\r\n$1000\r\n" + b"x" * 1000 + b"\r\n"
    data = message * 60
    link.get_buffer(-1)[: len(data)] = data
    link.buffer_updated(len(data))
    assert heard == [60]
    visit.hang_up()


def full_read(link):
    """As much as one read takes, of messages on a channel that nobody watches."""
    data = b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$989\r\n" + b"x" * 989 + b"\r\n"
    data *= upstream.READ_SIZE // len(data)
    data += b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$%d\r\n" % 1000  # the rest of it is still on its way
    data += b"x" * (upstream.READ_SIZE - len(data))
    assert len(data) == upstream.READ_SIZE
    link.get_buffer(-1)[:] = data
    link.buffer_updated(len(data))


async def test_after_a_full_read_all_others_have_their_turn(server):
    """libuv would read 2 MiB in a row: a burst that closes clients which had no chance to take any of it."""
    link = server.link()
    visit = await server.visit()
    await until(lambda: link.up)
    assert link._transport.is_reading()
    full_read(link)
    assert not link._transport.is_reading()
    await until(link._transport.is_reading)
    visit.hang_up()


async def test_after_a_read_that_leaves_deliveries_behind_all_others_have_their_turn(server):
    link = server.link()
    visit = await server.visit()
    await until(lambda: link.up)
    rig = Rig()
    rig.join(b"t")
    link.core, link.service = rig.core, rig.service
    link.deliver = lambda: None
    message = resp(b"message", b"t", b"x" * 60_000)
    for _ in range(3):
        assert link._transport.is_reading()
        assert not rig.core.pressing
        link.get_buffer(-1)[: len(message)] = message
        link.buffer_updated(len(message))
    assert rig.core.pressing
    assert not link._transport.is_reading()
    visit.hang_up()
    rig.flush()  # what presses is counted for the process, and other tests look at that
    assert not rig.core.pressing
    rig.close()


async def test_deliveries_that_are_behind_hold_up_reading_for_a_while_and_not_for_ever(server, monkeypatch):
    monkeypatch.setattr(upstream, "REST", 0.05)
    link = server.link()
    visit = await server.visit()
    await until(lambda: link.up)
    monkeypatch.setattr(link, "behind", lambda: True)
    full_read(link)
    for _ in range(3):
        await asyncio.sleep(0)
        assert not link._transport.is_reading()
    await until(link._transport.is_reading)
    visit.hang_up()


async def test_a_connection_made_anew_is_read_though_the_old_one_was_not(server, monkeypatch):
    link = server.link()
    monkeypatch.setattr(link, "behind", lambda: True)
    visit = await server.visit()
    await until(lambda: link.up)
    full_read(link)
    visit.hang_up()
    link.abort("the test says so")
    await until(lambda: not link.up)
    again = await server.visit()
    await until(lambda: link.up)
    await until(link._transport.is_reading)
    again.hang_up()
