"""The proof that the link delivers: when it is asked for, what counts as one, and what its absence leads to."""

import asyncio
import logging

import pytest

from relay import probe
from tests.unit.scripted import PONG, Server, ack, until


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(probe, "QUIET", 0.06)
    monkeypatch.setattr(probe, "DEADLINE", 0.06)
    monkeypatch.setattr(probe, "EVERY", 0.01)


@pytest.fixture
async def both():
    """A link with its command connection, both up: (link, its server's side, the commands' server's side)."""
    async with Server() as server:
        link, commands = server.link_with_commands()
        link_side = await server.visit()
        commands.start()
        commands_side = await server.visit()
        await until(lambda: link.up and commands.up)
        assert await link_side.silent(), "the probe is subscribed"
        yield link, link_side, commands_side


def message(channel, text=b""):
    return b"*3\r\n$7\r\nmessage\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(channel), channel, len(text), text)


async def published(side):
    """The next PUBLISH; PINGs on the way get their PONG."""
    while (command := await side.command())[0] != b"PUBLISH":
        side.say(PONG)
    return command


async def test_quiet_it_publishes_where_only_this_link_listens(both):
    link, _, commands_side = both
    verb, channel, payload = await published(commands_side)
    assert (verb, payload) == (b"PUBLISH", b"")
    assert channel == link.probe.channel
    assert channel.startswith(b"__relay__:probe:")


async def test_back_in_time_proves_the_link(both):
    link, link_side, commands_side = both
    for _ in range(3):
        _, channel, _ = await published(commands_side)
        link_side.say(message(channel))
        commands_side.say(b":1\r\n")
    assert link.probe.sent == 3
    assert link.up
    assert link.reconnects == 0


async def test_accepted_and_not_back_ends_the_link(both):
    link, link_side, commands_side = both
    await published(commands_side)
    commands_side.say(b":0\r\n")
    await until(lambda: not link.up)
    await until(lambda: not link.probe.commands.up)
    assert "deaf" in link.trouble
    assert link.listener.events.get_nowait() == "down"
    assert await link_side.command() is None
    assert await commands_side.command() is None, "it may be the one that is with the wrong server"


async def test_up_is_not_proved(both):
    """A link that is with the wrong server comes up again and again, and is none the better for it."""
    link, link_side, commands_side = both
    _, channel, _ = await published(commands_side)
    assert link.up
    assert not link.proved
    link_side.say(message(channel))
    await until(lambda: link.proved)


async def test_messages_of_others_are_proof_enough(both):
    link, link_side, commands_side = both
    clock = link.probe._loop = Clock()

    async def others(text):
        seen = link.probe._seen
        link_side.say(message(b"run1:wepp", text))
        await until(lambda: link.probe._seen > seen)

    await published(commands_side)
    await others(b"ahead of the answer")
    commands_side.say(b":1\r\n")
    await until(lambda: not link.probe._pending)
    for _ in range(30):
        await others(b"x")
        clock.now += probe.QUIET / 4
        await until(lambda: link.probe._looked_at == clock.now)
    assert link.probe.sent == 1
    clock.now += probe.QUIET
    await published(commands_side)
    commands_side.say(b":1\r\n")
    await until(lambda: link.probe._due)
    await others(b"behind a flood the probe itself may be late")
    clock.now += 2 * probe.DEADLINE
    await until(lambda: link.probe._looked_at == clock.now)
    assert link.up


class Clock:
    """What the probe's looks go by; they come as ever."""

    def __init__(self):
        loop = asyncio.get_running_loop()
        self.now, self.call_later = loop.time(), loop.call_later

    def time(self):
        return self.now


@pytest.mark.parametrize("why", ["NOPERM no", "READONLY You can't write", "MISCONF no disk"])
async def test_a_refused_publish_turns_it_off_until_a_connection_is_made_anew(both, why, caplog):
    link, _, commands_side = both
    with caplog.at_level(logging.WARNING, "relay.redis"):
        await published(commands_side)
        commands_side.say(b"-%b\r\n" % why.encode())
        await until(lambda: link.probe.off)
    assert link.state()["probe"]["off"] == why
    assert len([line for line in caplog.messages if "probe" in line]) == 1
    assert await commands_side.silent()
    assert link.up
    link.probe.retry()
    await published(commands_side)


async def test_another_error_is_said_and_tried_again_after_a_quiet_interval(both, caplog, monkeypatch):
    link, _, commands_side = both
    monkeypatch.setattr(probe, "QUIET", 0.3)
    with caplog.at_level(logging.WARNING, "relay.redis"):
        await published(commands_side)
        sent_at = [link.probe._sent_at]
        commands_side.say(b"-ERR unknown command 'PUBLISH'\r\n")
        await until(lambda: caplog.messages)
        for _ in range(2):
            await published(commands_side)
            sent_at.append(link.probe._sent_at)
            commands_side.say(b"-OOM command not allowed\r\n")
        first, second, third = sent_at
        assert min(second - first, third - second) > 0.2, "not with each look"
    assert len([line for line in caplog.messages if "did not publish the probe" in line]) == 1
    assert link.up
    assert not link.probe.off


async def test_refused_to_subscribe_it_is_off_and_the_rest_goes_on():
    async with Server() as server:
        link, commands = server.link_with_commands()
        link.want(b"run1:wepp")
        visit = await server.accept()
        visit.curious = True
        await visit.greet()
        assert (await visit.command())[0] == b"SUBSCRIBE"
        visit.say(b"-NOPERM this user has no permissions to access one of the channels\r\n")
        assert await visit.command() == [b"SUBSCRIBE", b"run1:wepp"]
        visit.say(ack(b"subscribe", b"run1:wepp"))
        assert await link.listener.next() == ("subscribed", b"run1:wepp")
        assert link.probe.off.startswith("NOPERM")
        commands.start()
        side = await server.visit()
        await until(lambda: commands.up)
        assert link.probe.off.startswith("NOPERM"), "the link itself is the same, and may still not subscribe"
        assert await side.command() == [b"PING"]
        assert await side.silent()


async def test_without_a_command_connection_it_waits(both):
    link, _, commands_side = both
    commands_side.hang_up()
    await until(lambda: not link.probe.commands.up or link.probe.commands.reconnects)
    assert link.up


async def test_a_new_command_connection_is_asked_at_once(both, monkeypatch):
    link, link_side, commands_side = both
    _, channel, _ = await published(commands_side)
    monkeypatch.setattr(probe, "QUIET", 1000.0)
    link_side.say(message(channel))
    commands_side.say(b":1\r\n")
    await until(lambda: not link.probe._pending and not link.probe._due)
    sent = link.probe.sent
    link.probe.retry()
    assert link.probe.sent == sent + 1


async def test_a_process_that_stood_still_asks_again_before_it_judges(both, monkeypatch):
    link, link_side, commands_side = both
    monkeypatch.setattr(probe, "STALLED", -1.0)  # every look counts as late
    _, channel, _ = await published(commands_side)
    commands_side.say(b":1\r\n")
    await until(lambda: link.probe._due)
    assert link.up
    link_side.say(message(channel))
    await until(lambda: not link.probe._due)
    assert link.up
