"""Status: a topic for each channel `<run>:<channel>`, a frame for each message on it (contract, section 5)."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from relay._fanout import Core
from relay.handshake import plain
from relay.link import READY, Link, gap
from relay.settings import ProcessSettings, ServiceSettings
from relay.upstream import Commands

CONFIRM_WAIT = 1.0  # seconds that a link believed up may leave a handshake waiting (contract, section 5)

NOT_PERMITTED = "Redis does not permit the relay to read this channel.\n"


@dataclass(slots=True)
class _Parked:
    """Handshakes that wait for a SUBSCRIBE to be confirmed."""

    until: float  # of the loop's clock
    clients: list[int]


class Status:
    """The service.

    Args:
        core: whose topics it fills.
        settings: of the service.
        make_link: makes its link from the core's number of the service.
        commands: its command connection.
        process: the settings of the whole process.
    """

    name = "status"

    def __init__(
        self,
        core: Core,
        settings: ServiceSettings,
        make_link: Callable[[int], Link],
        commands: Commands,
        process: ProcessSettings,
    ) -> None:
        self.core = core
        self.settings = settings
        self.index = core.add_service(
            prefix=b'{"type":"status","data":"',
            suffix=b'"}',
            notice=gap("size"),
            ping_interval=settings.ping_interval,
            pong_timeout=settings.pong_timeout,
            write_timeout=settings.write_timeout,
            max_message=settings.max_message_size,
            max_backlog=process.max_backlog,
            max_published=process.max_published_size,
            max_fragments=process.max_fragments,
            frame_rate=process.frame_rate,
            frame_burst=process.frame_burst,
        )
        self.link = make_link(self.index)
        self.link.listener = self
        self.commands = commands
        self._parked: dict[bytes, _Parked] = {}  # oldest first
        self._timer: asyncio.TimerHandle | None = None  # for all of them: one each cost a tenth of a handshake

    # ---- from the clients ----

    def join(self, client: int, channel: bytes) -> None:
        """Attaches an accepted client once its channel is subscribed, at once where the link is known to be down."""
        if self.link.subscribed(channel):
            self.core.attach(client, channel, notice=READY)
            self.core.confirm(self.index, channel)
        elif not self.link.up:
            self.core.attach(client, channel, notice=gap("link", time.time()))
        elif channel in self._parked:
            self._parked[channel].clients.append(client)
        else:
            loop = asyncio.get_running_loop()
            self._parked[channel] = _Parked(loop.time() + CONFIRM_WAIT, [client])
            self._timer = self._timer or loop.call_later(CONFIRM_WAIT, self._wait_no_longer)
        self.link.want(channel)

    def idle(self, channel: bytes) -> None:
        """The channel has lost its last client."""
        if channel not in self._parked and not self.core.watched(self.index, channel):
            self.link.drop(channel)

    def _wait_no_longer(self) -> None:
        loop = asyncio.get_running_loop()
        for channel in [c for c, parked in self._parked.items() if parked.until <= loop.time()]:
            self._release(channel, b"")
        oldest = next(iter(self._parked.values()), None)
        self._timer = loop.call_at(oldest.until, self._wait_no_longer) if oldest else None

    def _release(self, channel: bytes, notice: bytes) -> None:
        parked = self._parked.pop(channel, None)
        if parked:
            for client in parked.clients:
                self.core.attach(client, channel, notice=notice)
        self.idle(channel)  # who was parked may be gone by now

    # ---- from the link ----

    def on_subscribed(self, channel: bytes) -> None:
        """Of link.Listener. Who is in the topic already joined while the link was down, or has waited for it since."""
        self.core.publish(self.index, channel, READY, 2)
        self._release(channel, READY)
        self.core.confirm(self.index, channel)

    def on_refused(self, channel: bytes, why: str) -> None:
        """Of link.Listener."""
        parked = self._parked.pop(channel, None)
        if parked:
            for client in parked.clients:
                self.core.refuse(client, plain("403 Forbidden", NOT_PERMITTED))
        self.core.close_topic(self.index, channel, 1008, b"Redis does not permit this channel")

    def on_event(self, channel: bytes, payload: bytes) -> None:
        """Of link.Listener: a message that came after the last client had left."""

    def on_down(self, since: float) -> None:
        """Of link.Listener: a hole for everybody, and who waits is let in."""
        notice = gap("link", since)
        self.core.revoke(self.index)
        self.core.announce_gap(self.index, notice)
        self.link.deliver()
        for channel in list(self._parked):
            self._release(channel, notice)
