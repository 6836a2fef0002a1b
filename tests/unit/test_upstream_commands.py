"""The command connection, against a Redis that says what the test says."""

import asyncio

import hiredis
import pytest

from relay import upstream
from relay.upstream import Lost
from tests.unit.scripted import PONG, Server, soon, until


@pytest.fixture
async def server(monkeypatch):
    monkeypatch.setattr(upstream, "REFUSED_RETRY_MAX", 0.002)
    async with Server() as fake:
        yield fake


@pytest.fixture
def fast_ping(monkeypatch):
    monkeypatch.setattr(upstream, "PING_EVERY", 0.02)


@pytest.fixture
async def commanding(server):
    """A command connection that is up, behind its first PING, and its server's side."""
    commands = server.commands()
    visit = await server.visit()
    assert await visit.command() == [b"PING"]
    visit.say(PONG)
    return commands, visit


async def test_answers_belong_to_their_commands_whatever_they_are(commanding):
    commands, visit = commanding
    calls = [commands.call(b"GET", b"%d" % number) for number in range(4)]
    assert [await visit.command() for _ in calls] == [[b"GET", b"%d" % number] for number in range(4)]
    visit.say(b"$1\r\nx\r\n", b"-WRONGTYPE no\r\n", b"*2\r\n$-1\r\n:7\r\n", b"$-1\r\n")
    assert await soon(calls[0]) == b"x"
    with pytest.raises(hiredis.ReplyError, match="WRONGTYPE"):
        await soon(calls[1])
    assert await soon(calls[2]) == [None, 7]
    assert await soon(calls[3]) is None


async def test_at_most_64_in_flight(commanding):
    commands, visit = commanding
    calls = [commands.call(b"GET", b"%d" % number) for number in range(200)]
    asked = 0
    while asked < 200:
        in_flight = 0
        for _ in range(min(64, 200 - asked)):
            assert await visit.command() == [b"GET", b"%d" % (asked + in_flight)]
            in_flight += 1
        assert await visit.silent(), "more than 64 in flight"
        visit.say(*[b":%d\r\n" % number for number in range(asked, asked + in_flight)])
        asked += in_flight
    assert await soon(asyncio.gather(*calls)) == list(range(200))


async def test_who_gave_up_waiting_costs_no_other_its_answer(commanding):
    commands, visit = commanding
    calls = [commands.call(b"GET", b"%d" % number) for number in range(66)]
    calls[0].cancel()  # in flight: its answer is passed over
    calls[64].cancel()  # not sent yet: never sent
    for number in range(64):
        assert await visit.command() == [b"GET", b"%d" % number]
    visit.say(*[b":%d\r\n" % number for number in range(64)])
    assert await soon(calls[1]) == 1
    assert await visit.command() == [b"GET", b"65"]
    visit.say(b":65\r\n")
    assert await soon(calls[65]) == 65


async def test_a_missing_answer_throws_the_connection_away_and_nothing_is_sent_again(server, caplog):
    commands = server.commands(redis_request_timeout=0.5)
    visit = await server.visit()
    assert await visit.command() == [b"PING"]
    visit.say(PONG)
    calls = [commands.call(b"GET", b"%d" % number) for number in range(100)]
    for call in calls:
        with pytest.raises(Lost):
            await soon(call)
    assert "no answer in 0.5 s" in caplog.text
    again = await server.visit()
    assert await again.command() == [b"PING"]
    assert await again.silent()


@pytest.mark.parametrize("asks", [False, True])
async def test_when_it_was_sure_last(commanding, asks):
    """Behind a lost connection a hole begins where silence did, and no later than the question that has no answer."""
    commands, visit = commanding
    answered = commands.call(b"GET", b"1")
    assert await visit.command() == [b"GET", b"1"]
    clock = asyncio.get_running_loop().time
    before = clock()
    visit.say(b":1\r\n")
    assert await soon(answered) == 1
    heard = clock()
    await asyncio.sleep(0.1)
    unanswered = [commands.call(b"GET", b"2"), commands.call(b"GET", b"3")] if asks else []
    visit.hang_up()
    await until(lambda: commands.sure)
    assert before <= commands.sure <= heard
    for each in unanswered:
        with pytest.raises(Lost):
            await soon(each)


async def test_with_redis_away_a_command_fails_at_once(server):
    commands = server.commands(port=1)
    with pytest.raises(Lost):
        await commands.call(b"GET", b"x")


async def test_an_answer_to_nothing_ends_the_connection(commanding, server):
    commands, visit = commanding
    assert await visit.silent(), "what it asks when it is up has been answered"
    await until(lambda: not commands._sent)
    assert commands.up
    visit.say(b"+OK\r\n")
    await server.visit()
    assert commands.failed == []


async def test_who_asked_hears_of_each_connect(server):
    ready = []
    commands = server.commands()
    commands.on_ready.append(lambda: ready.append(commands.up))
    (await server.visit()).hang_up()
    await server.visit()
    await until(lambda: len(ready) == 2)
    assert ready == [True, True]


async def test_a_connection_that_nobody_uses_is_proven_alive_too(server, fast_ping):
    server.commands(redis_request_timeout=1.0)
    visit = await server.visit()
    for _ in range(3):
        assert await visit.command() == [b"PING"]
        visit.say(PONG)
    while await visit.command() == [b"PING"]:
        pass  # unanswered, until it hangs up
    await server.visit()


async def test_no_ping_is_left_over_from_a_connection_before(server, monkeypatch):
    monkeypatch.setattr(upstream, "PING_EVERY", 0.4)
    server.commands()
    for _ in range(5):
        (await server.visit()).hang_up()
    visit = await server.visit()
    for _ in range(2):  # one at once, one when its time has come
        assert await visit.command() == [b"PING"]
        visit.say(PONG)
    assert await visit.silent()
