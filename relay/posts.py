"""Messages that are published by POST: the bodies, and what becomes of them."""

import asyncio
import json
from typing import Protocol

from hiredis import ReplyError

from relay._fanout import Core
from relay.handshake import busy, plain
from relay.settings import ServiceSettings
from relay.upstream import Commands


class Service(Protocol):
    """What is posted to."""

    settings: ServiceSettings
    commands: Commands


class Posts:
    """Those whose body is yet to come.

    Args:
        core: whose clients they are.
        most: at once; the oldest gives way, who may have gone since.
    """

    def __init__(self, core: Core, most: int) -> None:
        self._core = core
        self._most = most
        self._waiting: dict[int, tuple[Commands, bytes]] = {}

    def take(self, client: int, service: Service, length: int, channel: bytes) -> None:
        """A client that may publish on a channel, and has said how long its body is."""
        most = service.settings.max_message_size
        if length > most:
            sentence = (
                f"A body of {length} bytes is more than {service.settings.name.upper()}_MAX_MESSAGE_SIZE={most}.\n"
            )
            self._core.refuse(client, plain("413 Content Too Large", sentence))
            return
        if len(self._waiting) >= self._most:
            self._waiting.pop(next(iter(self._waiting)))
        self._waiting[client] = service.commands, channel
        self._core.await_body(client, length)

    def publish(self, client: int, body: bytes) -> None:
        """The body is there: published, and answered with the number of receivers."""
        commands, channel = self._waiting.pop(client, (None, b""))
        if commands is None:
            self._core.refuse(client, busy("Too many are posting at once."))
        else:
            commands.call(b"PUBLISH", channel, body).add_done_callback(lambda answer: self._tell(client, answer))

    def _tell(self, client: int, answer: "asyncio.Future[object]") -> None:
        error = None if answer.cancelled() else answer.exception()
        if isinstance(error, ReplyError):
            self._core.refuse(client, plain("403 Forbidden", f"Redis refuses it: {error}\n"))
        elif error or answer.cancelled():
            self._core.refuse(client, busy("Redis is away; a message that was on its way may have been published."))
        else:
            told = json.dumps({"receivers": answer.result()}) + "\n"
            self._core.refuse(client, plain("200 OK", told, kind="application/json"))
