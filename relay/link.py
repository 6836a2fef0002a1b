"""The subscription connection of a service: interest in, messages into the core."""

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeGuard

import hiredis

from relay import upstream
from relay._fanout import Core, Intake
from relay.errors import RelayError
from relay.probe import Probe
from relay.settings import ServiceSettings
from relay.upstream import Commands, Resolver, Upstream, encode, fixed, verdict

BATCH = 512  # channels of one SUBSCRIBE
_COMMAND = " to run the "  # in a NOPERM that speaks of a command, and of no channel: Redis 6 to 8, Valkey
READY = b'{"type":"ready"}'  # for clients of protocol version 2: from here on nothing is missing (docs/protocol.md)


def gap(reason: str, since: float | None = None) -> bytes:
    """A frame for clients of protocol version 2: messages may be missing here (docs/protocol.md).

    Args:
        reason: `link` or `size`.
        since: unix seconds of the last message that is sure to have come; None where one message alone is missing.
    """
    frame = {"type": "gap", "reason": reason} | ({} if since is None else {"since": round(since, 3)})
    return json.dumps(frame, separators=(",", ":")).encode()


class Listener(Protocol):
    """What a service hears from its link."""

    def on_subscribed(self, channel: bytes) -> None:
        """Redis has confirmed the SUBSCRIBE: what is published from now on arrives."""

    def on_refused(self, channel: bytes, why: str) -> None:
        """Redis refuses this channel alone (an ACL)."""

    def on_event(self, channel: bytes, payload: bytes) -> None:
        """A message on a channel that is no topic of the core's."""

    def on_down(self, since: float) -> None:
        """The link broke: what was published since then (unix seconds) may be missing."""


class Link(Intake, Upstream):
    """The subscription connection: interest in, messages into the core.

    A channel has at most one command in flight: what is wanted meanwhile is settled when its answer comes. So an
    acknowledgement always speaks of the newest wish that Redis has heard.

    Args:
        settings: of the service.
        core: messages for its topics go into it.
        service: number of the service in the core.
        deliver: called once for each read from Redis, behind the last message.
        commands: the connection on which the link is proved.
        fatal: see Upstream.
        resolve: see Upstream.
        max_reply: see Upstream.
    """

    ASKED, ON, LEAVING = range(3)

    def __init__(
        self,
        settings: ServiceSettings,
        core: Core,
        service: int,
        deliver: Callable[[], None],
        commands: Commands,
        fatal: Callable[[RelayError], None],
        resolve: Resolver = fixed,
        max_reply: int = upstream.MAX_REPLY,
    ) -> None:
        super().__init__(settings, "subscriptions", fatal, resolve, max_reply)
        self.core = core
        self.service = service
        self.deliver = deliver
        self.listener: Listener | None = None
        self.gaps = 0  # how often what was published may have been missed
        self._wanted: dict[bytes, None] = {}
        self._state: dict[bytes, int] = {}
        self._alone: dict[bytes, None] = {}  # refused once: never part of a batch again
        self._outbox: dict[bytes, None] = {}  # whose wish and state may differ, for the end of this turn
        self._sent: deque[tuple[bytes, deque[bytes]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._pinged = False
        self._loop = asyncio.get_running_loop()
        self._commands = commands
        self.probe = Probe(commands, lambda: core.arrived(service), self._on_deaf, self.log)
        commands.on_ready.append(self.probe.retry)

    # ---- interest ----

    def want(self, channel: bytes) -> None:
        """Raises interest: SUBSCRIBE, at the end of this turn of the loop and with all others of it."""
        if channel not in self._wanted:
            self._wanted[channel] = None
            self._settle(channel)

    def drop(self, channel: bytes) -> None:
        """Lowers interest: UNSUBSCRIBE, if nobody raises it again before."""
        self._wanted.pop(channel, None)
        self._settle(channel)

    def subscribed(self, channel: bytes) -> bool:
        """Whether Redis has confirmed the subscription and no UNSUBSCRIBE is under way."""
        return self._state.get(channel) == self.ON

    @property
    def channels(self) -> int:
        """How many are wanted."""
        return len(self._wanted)

    def _settle(self, channel: bytes) -> None:
        if not self.up:
            return
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._send_outbox)
        self._outbox[channel] = None

    def _send_outbox(self) -> None:
        outbox, self._outbox = self._outbox, {}
        if not self.up:
            return
        self._subscribe([c for c in outbox if c in self._wanted and c not in self._state])
        leaving = [c for c in outbox if c not in self._wanted and self._state.get(c) == self.ON]
        for channel in leaving:
            self._state[channel] = self.LEAVING
        for start in range(0, len(leaving), BATCH):
            self._send(b"UNSUBSCRIBE", leaving[start : start + BATCH])

    def _subscribe(self, channels: Sequence[bytes]) -> None:
        for channel in channels:
            self._state[channel] = self.ASKED
        together = [c for c in channels if c not in self._alone]
        for start in range(0, len(together), BATCH):
            self._send(b"SUBSCRIBE", together[start : start + BATCH])
        for channel in channels:
            if channel in self._alone:
                self._send(b"SUBSCRIBE", [channel])

    def _send(self, verb: bytes, channels: Iterable[bytes] = ()) -> None:
        names = deque(channels)
        self._sent.append((verb, names))
        self.write(encode(verb, *names))

    @property
    def proved(self) -> bool:
        """Whether it is up and has delivered: one that is with the wrong server comes up again and again."""
        return self.up and self.probe.proved

    @property
    def unconfirmed(self) -> int:
        """How many of them Redis has not confirmed."""
        return sum(1 for channel in self._wanted if self._state.get(channel) != self.ON)

    def state(self) -> dict[str, object]:
        """Of Upstream, with channels, and the probe: `off` says why it is, `age` seconds since the last proof."""
        probe = {
            "proved": self.proved,
            "off": self.probe.off,
            "sent": self.probe.sent,
            "age": round(self.probe.age, 1) if self.up else None,
        }
        return {**super().state(), "channels": self.channels, "unconfirmed": self.unconfirmed, "probe": probe}

    # ---- replies ----

    def begin(self) -> None:
        """Of Upstream: messages go into the core, the rest is heard here, in order."""
        super().begin()
        self.read_by(self._reader, self._buffer, self._on_reply)

    def behind(self) -> bool:
        """Of Upstream: reading on would end clients that are quick."""
        return self.core.pressing

    def _on_reply(self, reply: object) -> None:
        if _is_message(reply):
            if self.listener and reply[1] != self.probe.channel:
                self.listener.on_event(reply[1], reply[2])
        elif self._greetings_due and self.greeted(reply):
            return
        elif not self._sent:
            self.unasked(reply)
        elif isinstance(reply, hiredis.ReplyError):
            self._on_error(self.told(reply))
        else:
            self._on_answer(reply)

    def _on_answer(self, reply: object) -> None:
        """The next acknowledgement of the oldest command. PONG has two forms: `PONG`, or a list when subscribed."""
        verb, names = self._sent[0]
        if verb == b"PING":
            right = reply in (b"PONG", [b"pong", b""])
        else:
            right = isinstance(reply, list) and reply[:2] == [verb.lower(), names[0]]
        if not right:
            return self.abort(f"{self.told(reply)} is no answer to {verb.decode()}")
        if verb == b"PING":
            self._sent.popleft()
            self._pinged = False
            return None
        channel = names.popleft()
        if not names:
            self._sent.popleft()
        if channel == self.probe.channel:
            self.serves()
            return self.probe.subscribed()
        wanted = channel in self._wanted
        if verb == b"SUBSCRIBE":
            self._state[channel] = self.ON
        else:
            del self._state[channel]
        if wanted != (verb == b"SUBSCRIBE"):
            self._settle(channel)
        elif wanted and self.listener:
            self.listener.on_subscribed(channel)
        return None

    def _on_error(self, why: str) -> None:
        """One refused name rejects a whole SUBSCRIBE and silences the others: seen on Redis 7.0 and Valkey 9.1."""
        verb, names = self._sent.popleft()
        if verb != b"SUBSCRIBE" or not why.startswith("NOPERM") or _COMMAND in why:
            # Nothing about a channel, so nothing that one channel could be blamed for. SUBSCRIBE taken from a user in
            # the middle closed every websocket for good, as if all their channels were forbidden.
            self.abort(verdict(why))
        elif len(names) > 1:
            for channel in names:
                self._send(b"SUBSCRIBE", [channel])
        elif names[0] == self.probe.channel:
            self.serves()
            self.probe.refused(why)
        else:
            channel = names[0]
            del self._state[channel]
            self._wanted.pop(channel, None)
            if len(self._alone) >= 10_000:
                self._alone.pop(next(iter(self._alone)))
            self._alone[channel] = None
            self.report(logging.ERROR, f"Redis refuses a subscription of the {self.settings.name} service: {why}")
            if self.listener:
                self.listener.on_refused(channel, why)

    # ---- up and down ----

    def on_up(self) -> None:
        """Whatever is wanted is subscribed again."""
        self.heard_at = self._loop.time()
        self._send(b"SUBSCRIBE", [self.probe.start()])
        self._subscribe(list(self._wanted))
        self._timer = asyncio.get_running_loop().call_later(upstream.PING_EVERY, self._ping)

    def on_lost(self) -> None:
        """All subscriptions are gone with the connection."""
        self.gaps += 1
        # A PONG proves nothing about messages, unless there is no better witness.
        silent = self._loop.time() - self.heard_at if self.probe.off else self.probe.age
        self.probe.stop()
        self._state.clear()
        self._sent.clear()
        self._outbox.clear()
        self._pinged = False
        if self._timer:
            self._timer.cancel()
        if self.listener:
            self.listener.on_down(time.time() - silent)

    def _on_deaf(self, why: str) -> None:
        """Both connections go: nobody knows which of them is with the wrong server, a master cut off by a failover."""
        self.abort(why)
        self._commands.abort("what it published did not come back on the subscriptions")

    def _ping(self) -> None:
        """PING with a deadline: redis-py only sends its PING and never misses the PONG."""
        loop = asyncio.get_running_loop()
        self._pinged = True
        self._send(b"PING")
        self._timer = loop.call_later(
            self.settings.redis_request_timeout, self._judge, loop.time() + self.settings.redis_request_timeout
        )

    def _judge(self, due: float) -> None:
        loop = asyncio.get_running_loop()
        timeout = self.settings.redis_request_timeout
        if self._pinged and loop.time() - self.heard_at < timeout:
            # The PONG comes behind what Redis has said before, which takes long while a flood is read with pauses.
            # A link that was thrown away for it lost 64 of 150 messages of another channel.
            self._timer = loop.call_at(self.heard_at + timeout, self._judge, self.heard_at + timeout)
        elif self._pinged and loop.time() - due > 1.0:
            # This process stood still: the PONG may lie unread in the socket. One more look, once it has been read.
            self._timer = loop.call_later(0.5, self._judge, loop.time() + 0.5)
        elif self._pinged:
            self.abort(f"no PONG in {self.settings.redis_request_timeout:g} s")
        else:
            self._timer = loop.call_later(
                max(0.0, upstream.PING_EVERY - self.settings.redis_request_timeout), self._ping
            )


def _is_message(reply: object) -> TypeGuard[list[bytes]]:
    """Three byte strings, `message` first: what of the messages the core has left to us."""
    return (
        isinstance(reply, list)
        and len(reply) == 3
        and reply[0] == b"message"
        and all(isinstance(part, bytes) for part in reply)
    )
