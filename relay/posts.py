"""Messages that are published by POST: the bodies, and what becomes of them."""

import asyncio
import json
from collections.abc import Iterable
from typing import Protocol

from hiredis import ReplyError

from relay._fanout import Core
from relay.handshake import Busy, Refused, plain
from relay.settings import ServiceSettings
from relay.upstream import Commands

Headers = Iterable[tuple[str, str]]


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
        self._waiting: dict[int, tuple[Commands, bytes, Headers]] = {}

    def take(self, client: int, service: Service, length: int, channel: bytes, extra: Headers) -> None:
        """A client that may publish on a channel, has said how long its body is, and gets these headers.

        Raises:
            Refused: that is too long.
        """
        most = service.settings.max_message_size
        if length > most:
            name = f"{service.settings.name.upper()}_MAX_MESSAGE_SIZE"
            raise Refused("413 Content Too Large", f"A body of {length} bytes is more than {name}={most}.")
        if len(self._waiting) >= self._most:
            oldest = next(iter(self._waiting))
            self._refuse(oldest, self._waiting.pop(oldest)[2], Busy("Too many are posting at once."))
        self._waiting[client] = service.commands, channel, extra
        self._core.await_body(client, length)

    def publish(self, client: int, body: bytes) -> None:
        """The body is there: published, and answered with the number of receivers."""
        commands, channel, extra = self._waiting.pop(client)
        if not commands.up:
            self._refuse(client, extra, Busy("Redis is away: the message was not published."))
            return
        commands.call(b"PUBLISH", channel, body).add_done_callback(lambda answer: self._tell(client, extra, answer))

    def _tell(self, client: int, extra: Headers, answer: "asyncio.Future[object]") -> None:
        error = None if answer.cancelled() else answer.exception()
        if isinstance(error, ReplyError):
            permitted = not str(error).startswith("NOPERM")
            sentence = f"Redis refuses it: {error}"
            self._refuse(client, extra, Busy(sentence) if permitted else Refused("403 Forbidden", sentence))
        elif error or answer.cancelled():
            self._refuse(client, extra, Busy("The connection to Redis broke: the message may have been published."))
        else:
            told = json.dumps({"receivers": answer.result()}) + "\n"
            self._core.refuse(client, plain("200 OK", told, extra, kind="application/json"))

    def _refuse(self, client: int, extra: Headers, refused: Refused) -> None:
        self._core.refuse(client, refused.answer_with(extra, head=False))
