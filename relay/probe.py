"""The proof that the subscription link delivers: a message of our own, sent the way workers send theirs.

A connection that answers PING may still deliver nothing: systems of this kind have sat for hours on one, after a
failover or behind a proxy that chose another node, with green health checks. So where no message has come for a while
one is published on the command connection, on a channel that only this link knows. Accepted and not back in time, the
link is deaf and is made anew.

    new, or quiet 8 s -> PUBLISH -> accepted -> back on the link within 5 s: proved
                            |           └-> not back: the link is thrown away
                            ├-> refused (NOPERM, READONLY, MISCONF): off until either connection is made anew
                            └-> not sent, not answered, another error: tried again after the next quiet interval
"""

import asyncio
import logging
import secrets
from collections.abc import Callable

import hiredis

from relay.upstream import Commands

QUIET = 8.0  # seconds without a message until one of our own is sent
DEADLINE = 5.0  # seconds from Redis' "accepted" until it must be back
EVERY = 0.5  # seconds between two looks
STALLED = 1.0  # seconds by which a look comes late where this process, not Redis, stood still
PREFIX = b"__relay__:probe:"  # no run or channel may begin with `__` (contract, section 6)
_REFUSED = ("NOPERM", "READONLY", "MISCONF")


class Probe:
    """Of one link.

    Args:
        commands: the connection it publishes on.
        arrived: how many messages have come on the link so far.
        deaf: called with a sentence when the link accepts and does not deliver.
        log: of the service's link.
    """

    def __init__(
        self, commands: Commands, arrived: Callable[[], int], deaf: Callable[[str], None], log: logging.Logger
    ) -> None:
        self.commands = commands
        self.channel = b""
        self.off = ""  # why Redis does not let us, where it does not
        self.sent = 0
        self._said = ""
        self._subscribed = False
        self._arrived = arrived
        self._deaf = deaf
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._first = self._seen = 0  # messages when the link came up, and at the last look
        self._proved_at = 0.0  # since when the newest message may have been the last
        self._looked_at = self._sent_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._pending: asyncio.Future[object] | None = None  # a PUBLISH that Redis has not answered
        self._due = 0.0  # until when the accepted one must be back; 0: none is under way

    def start(self) -> bytes:
        """The link is up: a new channel, to be subscribed by a SUBSCRIBE of its own."""
        self.stop()
        self.channel = PREFIX + secrets.token_hex(8).encode()
        self.off = ""
        self._first = self._seen = self._arrived()
        self._proved_at = self._looked_at = self._loop.time()
        self._timer = self._loop.call_later(EVERY, self._look)
        return self.channel

    def stop(self) -> None:
        """The link is down."""
        if self._timer:
            self._timer.cancel()
        self._timer = self._pending = None
        self._subscribed = False
        self._due = 0.0

    @property
    def age(self) -> float:
        """Seconds since a message was last known to have come: at most QUIET + DEADLINE and a little."""
        return self._loop.time() - self._proved_at

    @property
    def proved(self) -> bool:
        """Whether a message has come since the link is up, or none of ours may be sent."""
        return bool(self.off) or self._arrived() != self._first

    def subscribed(self) -> None:
        """Redis has confirmed the channel: from now on a message must come back, and the first is sent at once."""
        self._subscribed = True
        self._publish()

    def refused(self, why: str) -> None:
        """Redis does not let this user subscribe or publish the probe: PING alone has to do (said once)."""
        self.off = why
        if why != self._said:
            self._said = why
            self._log.warning(
                f"the probe of the subscription link is off: {why}. A link that answers PING but delivers nothing "
                f"stays unnoticed. Mend it: let the relay's user publish and subscribe {PREFIX.decode()}*"
            )

    def retry(self) -> None:
        """The command connection is made anew, perhaps to another server: prove the link to it now."""
        if self._subscribed:
            self.off = ""
            self._publish()

    def _look(self) -> None:
        now = self._loop.time()
        before, self._looked_at = self._looked_at, now
        late = now - before - EVERY > STALLED
        self._timer = self._loop.call_later(EVERY, self._look)
        if (arrived := self._arrived()) != self._seen:
            self._seen = arrived
            # It may have come right after the look before and been the last: a gap that began with this look was up to
            # half a second late, and the lines of that time were missing unsaid.
            self._proved_at = before
            self._due = 0.0
        elif late and self._due:
            self._due = max(self._due, now + EVERY)  # what has come meanwhile is not read yet
        elif self._due and now >= self._due:
            self._deaf(f"Redis accepted a message and did not deliver it in {DEADLINE:g} s: this connection is deaf")
        elif late or now - max(self._proved_at, self._sent_at) >= QUIET:
            self._publish()

    def _publish(self) -> None:
        if self.off or not self._subscribed or self._due or self._pending or not self.commands.up:
            return
        self.sent += 1
        self._sent_at = self._loop.time()
        self._pending = answer = self.commands.call(b"PUBLISH", self.channel, b"")
        answer.add_done_callback(self._on_answer)

    def _on_answer(self, answer: "asyncio.Future[object]") -> None:
        error = None if answer.cancelled() else answer.exception()
        if answer is not self._pending:
            return  # of a link that is gone
        self._pending = None
        if isinstance(error, hiredis.ReplyError) and str(error).startswith(_REFUSED):
            self.refused(str(error))
        elif isinstance(error, hiredis.ReplyError):
            self.commands.report(logging.WARNING, f"Redis did not publish the probe of the subscription link: {error}")
        elif error is None and not answer.cancelled() and self._arrived() == self._seen:
            self._due = self._loop.time() + DEADLINE
