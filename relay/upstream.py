"""A connection to Redis that is made again for as long as the relay runs, and the one of the two that carries commands.

Both are RESP2 over `hiredis.Reader`, kept alive by the same loop: resolve, connect, greet, watch, and when it breaks
try again for ever. RESP2, because there a subscription needs no HELLO (which Redis before 6 and some least-rights
users refuse), a message is a plain list of three, and the core tells it apart without asking for its type.

Answers come in the order of the commands (Redis pipelining), so what is in flight is a queue, and an error reply
belongs to its first entry. A connection that broke that order, or let a deadline pass, is thrown away whole.
"""

import asyncio
import contextlib
import logging
import random
import re
import socket
import ssl
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable
from typing import cast

import hiredis

from relay._fanout import FEED_SIZE
from relay.errors import ConfigError, RedisGivenUp, RelayError
from relay.settings import ServiceSettings
from relay.values import RedisAddress

READ_SIZE = 65536  # of one read from Redis: the longest burst that a read can make
MAX_REPLY = 32 << 20  # bytes of a reply, where nothing else is said (docs/architecture.md, "Bounds")
PIPELINE = 64  # commands in flight
PING_EVERY = 5.0  # seconds
REFUSED_RETRY_MAX = 30.0  # seconds between two tries where Redis answers but refuses us (contract, section 6)
USER_TIMEOUT = 10_000  # ms that sent bytes may stay unacknowledged: TCP_USER_TIMEOUT
REST = 0.1  # seconds for which deliveries that are behind may hold up one read
# Seconds for which they may hold up reading in all, and how fast these are earned back: that all other channels wait is
# worth it for a flood that clients can take in half a second, and not for more.
PATIENCE = 0.5
PATIENCE_RATE = 0.1
LOG_EVERY = 60.0  # seconds between two lines about the same trouble

Resolver = Callable[[RedisAddress], Awaitable[RedisAddress]]
_FATAL = ("WRONGPASS", "NOAUTH", "ERR invalid password", "ERR Client sent AUTH, but no password", "ERR AUTH <password>")

_PASSING = ("LOADING", "BUSY", "MASTERDOWN", "TRYAGAIN")  # as if Redis were away for a moment


class Lost(Exception):  # noqa: N818 - what happened to the connection
    """Why a connection to Redis ended, as a sentence."""


class Refused(Lost):
    """Redis answers but does not let us in.

    Attributes:
        fatal: whether trying again cannot help, at the start.
    """

    def __init__(self, sentence: str, *, fatal: bool) -> None:
        super().__init__(sentence)
        self.fatal = fatal


async def fixed(address: RedisAddress) -> RedisAddress:
    """The resolver for one server that stays where it is; asked before every connect all the same."""
    return address


def encode(*parts: bytes) -> bytes:
    """A command as an array of bulk strings (RESP)."""
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


def tls_context(address: RedisAddress) -> ssl.SSLContext:
    """A TLS context from the options of a rediss:// URL.

    Raises:
        ConfigError: a certificate or key file cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=address.ssl_ca_certs)
        context.check_hostname = address.ssl_check_hostname and address.ssl_cert_reqs != "none"
        context.verify_mode = {
            "none": ssl.CERT_NONE,
            "optional": ssl.CERT_OPTIONAL,
            "required": ssl.CERT_REQUIRED,
        }[address.ssl_cert_reqs]
        if address.ssl_certfile:
            context.load_cert_chain(address.ssl_certfile, address.ssl_keyfile)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"the TLS files of {address} cannot be used: {error}; see ssl_ca_certs, ssl_certfile and ssl_keyfile"
        ) from None
    return context


class Upstream(asyncio.BufferedProtocol, ABC):
    """One connection to Redis, made again for as long as the relay runs.

    Args:
        settings: of the service it serves.
        purpose: for the log.
        fatal: called with what ends the relay: a refused password at the start, retries used up.
        resolve: asked for the address before every connect.
        max_reply: bytes of a reply that is not complete yet; with more the connection is made anew.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        purpose: str,
        fatal: Callable[[RelayError], None],
        resolve: Resolver = fixed,
        max_reply: int = MAX_REPLY,
    ) -> None:
        self.settings = settings
        self.max_reply = max_reply
        self.purpose = f"{settings.name} {purpose}"
        self.resolve = resolve
        self.fatal = fatal
        self.up = False
        self.reconnects = 0
        self.failures = 0  # to connect, or of a connection
        self.trouble = "not connected yet"  # why it is down; "" while it is up
        self.large_replies = 0  # for which the connection was thrown away
        self.log = logging.getLogger("relay.redis")
        self._ever_up = self._ever_served = False
        self._changed_at = time.monotonic()
        self._transport: asyncio.Transport | None = None
        self._buffer = memoryview(bytearray(READ_SIZE))
        self.begin()
        self._closed: asyncio.Future[Lost] | None = None
        self._greeting: asyncio.Future[None] | None = None
        self._greetings_due = 0
        self._task: asyncio.Task[None] | None = None
        self._patience = PATIENCE
        self._patient_at = 0.0  # when it was reckoned last
        self._logged_at: dict[int, float] = {}
        self._context = tls_context(settings.redis) if settings.redis.tls else None

    # ---- the life of the connection ----

    def start(self) -> None:
        """Begins to connect, for ever."""
        self._task = asyncio.get_running_loop().create_task(self._keep_connected(), name=f"redis {self.purpose}")

    async def stop(self) -> None:
        """Ends the connection and the trying."""
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._transport:
            self._transport.abort()

    async def _keep_connected(self) -> None:
        failures = 0
        while True:
            try:
                await self._connect()
                why: Exception = await cast("asyncio.Future[Lost]", self._closed)
                if not isinstance(why, Refused) or time.monotonic() - self._changed_at > LOG_EVERY:
                    failures = 0  # let in and then refused what it is there for is one refusal more
            except (Lost, OSError, TimeoutError, ssl.SSLError) as error:
                why = error
            except Exception as error:
                # Nothing that this code knows of. A task that ended would leave everybody in silence, for ever.
                self.log.exception("no Redis for %s: a fault of the relay itself; please report it", self.purpose)
                why = Lost(f"a fault of the relay itself, {error!r}")
            finally:
                self._tear_down()
            failures += 1
            self.failures += 1
            self.trouble = _sentence(why)
            if not self._go_on(why, failures):
                return
            await asyncio.sleep(self._pause(why, failures))

    def _go_on(self, why: Exception, failures: int) -> bool:
        most = self.settings.redis_max_retries
        refused = isinstance(why, Refused)
        if isinstance(why, Refused) and why.fatal and not self._ever_up:
            self.fatal(
                ConfigError(
                    f"Redis at {self.settings.redis} refuses the {self.settings.name} service: {why}; mend the user or "
                    "password in the Redis URL or the password settings"
                )
            )
            return False
        self.report(
            logging.ERROR if refused else logging.WARNING,
            f"no Redis for {self.purpose}: {_sentence(why)}; trying again",
        )
        if most and failures > most:
            self.fatal(
                RedisGivenUp(
                    f"Redis at {self.settings.redis} stayed away for {most} tries: {_sentence(why)}; "
                    f"{self.settings.name.upper()}_REDIS_MAX_RETRIES=0 tries for ever"
                )
            )
            return False
        return True

    def _pause(self, why: Exception, failures: int) -> float:
        """Full jitter, so that relays that lost Redis together do not come back together."""
        most = REFUSED_RETRY_MAX if isinstance(why, Refused) else self.settings.redis_retry_max
        return random.uniform(0, min(most, self.settings.redis_retry_base * 2 ** min(failures, 20)))

    def report(self, level: int, sentence: str) -> None:
        """Logs trouble, at most one line a minute of each level until the connection is made anew."""
        now = asyncio.get_running_loop().time()
        if now - self._logged_at.get(level, -LOG_EVERY) >= LOG_EVERY:
            self._logged_at[level] = now
            self.log.log(level, sentence)

    async def _connect(self) -> None:
        """Connects and greets; up afterwards.

        Raises:
            Lost, OSError, TimeoutError: it could not be done.
        """
        loop = asyncio.get_running_loop()
        self.begin()
        self._closed = loop.create_future()
        self._greeting = loop.create_future()
        self._greetings_due = 0
        async with asyncio.timeout(self.settings.redis_request_timeout):
            address = await self.resolve(self.settings.redis)
            host = address.host if self._context else None
            if address.path:
                await loop.create_unix_connection(lambda: self, address.path)
            else:
                await loop.create_connection(
                    lambda: self, address.host, address.port, ssl=self._context, server_hostname=host
                )
            if self._closed.done():
                raise self._closed.result()
            greetings = self.greetings(address)
            self._greetings_due = len(greetings)
            self.write(b"".join(greetings))
            await self._greeting
        if self._closed.done():
            raise self._closed.result()
        self.up = True
        self.trouble = ""
        self._changed_at = time.monotonic()
        self.reconnects += self._ever_up
        self._ever_up = True
        self.on_up()

    def serves(self) -> None:
        """Redis does what this connection is there for: what goes wrong from now on is a new trouble."""
        if self._ever_served:
            self.log.warning(f"Redis is back for {self.purpose}")
        else:
            self.log.info(f"Redis is there for {self.purpose}")
        self._ever_served = True
        self._logged_at.clear()

    def greetings(self, address: RedisAddress) -> list[bytes]:
        """AUTH where there is a password, and a PING that shows whether one is wanted."""
        if address.password is None:
            return [encode(b"PING")]
        user = [address.username.encode()] if address.username else []
        return [encode(b"AUTH", *user, address.password.encode()), encode(b"PING")]

    def greeted(self, reply: object) -> bool:
        """Whether the reply was one to a greeting, and is used up."""
        if not self._greetings_due:
            return False
        self._greetings_due -= 1
        if self._greeting and not self._greeting.done():
            if isinstance(reply, hiredis.ReplyError):
                self._not_greeted(verdict(self.told(reply)))
            elif not self._greetings_due:
                self._greeting.set_result(None)
        return True

    def _tear_down(self) -> None:
        was_up, self.up = self.up, False
        if self._transport:
            self._transport.abort()
            self._transport = None
        if was_up:
            self._changed_at = time.monotonic()
            self.on_lost()

    def abort(self, why: str | Lost) -> None:
        """Throws the connection away; it is made anew."""
        self._end(Lost(why) if isinstance(why, str) else why)
        if self._transport:
            self._transport.abort()

    def unasked(self, reply: object) -> None:
        """An answer to nothing: beyond maxclients Redis says so on accept, ahead of our greeting, and closes."""
        told = self.told(reply)
        self.abort(verdict(told) if isinstance(reply, hiredis.ReplyError) else f"an answer to nothing: {told}")

    def told(self, reply: object) -> str:
        """A reply, fit for a log: the text of an error, of all others what they are and not what they hold.

        Redis repeats a command that it does not know, 128 bytes of it, and where AUTH is renamed that is the password.
        """
        if not isinstance(reply, hiredis.ReplyError):
            return f"{type(reply).__name__} of {len(reply)}" if isinstance(reply, bytes | list) else repr(reply)
        return self.settings.redis.redacted(str(reply).partition(", with args beginning with")[0])

    def _end(self, why: Lost) -> None:
        self._not_greeted(why)
        if self._closed and not self._closed.done():
            self._closed.set_result(why)

    def _not_greeted(self, why: Lost) -> None:
        if self._greeting and not self._greeting.done():
            self._greeting.set_exception(why)
            self._greeting.exception()  # looked at, so that asyncio does not report it where nobody waits any more

    # ---- asyncio's side ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of asyncio.BaseProtocol."""
        self._transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT)

    def connection_lost(self, exc: Exception | None) -> None:
        """Of asyncio.BaseProtocol."""
        self._end(Lost(f"the connection was lost: {exc}" if exc else "Redis closed the connection"))

    def too_large(self) -> None:
        """Ends a connection whose unfinished reply is above its bound."""
        self.large_replies += 1
        self.abort(f"a reply of more than {self.max_reply} bytes; see RELAY_MAX_REPLY_SIZE")

    def unreadable(self, error: Exception) -> None:
        """Ends a connection that sends what is no reply."""
        self.abort(f"Redis sent what is no reply: {error or 'longer than there is memory'}")

    def rest(self) -> None:
        """Gives all others their turn before the next read.

        libuv reads up to 32 times in a row: 2 MiB, of which a client that is quick had no chance to take any.
        """
        if self._transport and not self._transport.is_closing():
            loop = asyncio.get_running_loop()
            now = loop.time()
            self._patience = min(PATIENCE, self._patience + PATIENCE_RATE * (now - self._patient_at))
            self._patient_at = now
            self._transport.pause_reading()
            loop.call_soon(self._read_on, self._transport, now + min(REST, self._patience))

    def _read_on(self, transport: asyncio.Transport, until: float) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self.behind() and now < until:
            self._patience -= now - self._patient_at
            self._patient_at = now
            loop.call_soon(self._read_on, transport, until)
        elif not transport.is_closing():
            transport.resume_reading()

    def write(self, data: bytes) -> None:
        """Sends bytes, if there is a connection."""
        if self._transport and not self._transport.is_closing():
            self._transport.write(data)

    def state(self) -> dict[str, object]:
        """For operators, fit for JSON: whether it is up, for how many seconds it has been so or not, and why not."""
        seconds = round(time.monotonic() - self._changed_at, 1)
        return {"up": self.up, "seconds": seconds, "trouble": self.trouble, "reconnects": self.reconnects}

    # ---- what the two kinds do ----

    def begin(self) -> None:
        """Forgets what an earlier connection has sent in part."""
        self._reader = hiredis.Reader()

    def behind(self) -> bool:
        """Whether what was read should be delivered before more is."""
        return False

    @abstractmethod
    def on_up(self) -> None:
        """The connection stands and is let in."""

    @abstractmethod
    def on_lost(self) -> None:
        """A connection that stood is gone."""


class Commands(Upstream):
    """The command connection: at most 64 commands in flight, the others wait; an answer has a deadline.

    Args:
        settings: of the service.
        fatal: see Upstream.
        resolve: see Upstream.
        max_reply: see Upstream.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        fatal: Callable[[RelayError], None],
        resolve: Resolver = fixed,
        max_reply: int = MAX_REPLY,
    ) -> None:
        super().__init__(settings, "commands", fatal, resolve, max_reply)
        self.on_ready: list[Callable[[], None]] = []
        self.on_gone: list[Callable[[], None]] = []
        self.sure = 0.0  # of the loop's clock: what was asked until then has been answered, when the connection broke
        self._heard = 0.0
        self.instance = ""  # Redis' run_id; "" where it is not known
        self.instances = 0  # how many there have been: Redis was started anew, or another one answers now
        self._sent: deque[tuple[asyncio.Future[object], float]] = deque()
        self._waiting: deque[tuple[asyncio.Future[object], bytes]] = deque()
        self._pinger: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None

    def greetings(self, address: RedisAddress) -> list[bytes]:
        """SELECT too, where it is another database than the one a connection begins with. Pub/Sub needs none."""
        select = [encode(b"SELECT", str(address.db).encode())] if address.db else []
        return super().greetings(address) + (select if self.settings.name == "preflight" else [])

    def call(self, *parts: bytes) -> "asyncio.Future[object]":
        """Sends a command; its reply as bytes, int, None or a list of these.

        Raises (in the future):
            Lost: no connection, or it broke before the answer came.
            hiredis.ReplyError: Redis refuses the command.
        """
        answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        if not self.up:
            answer.set_exception(Lost("Redis is away"))
        else:
            self._waiting.append((answer, encode(*parts)))
            self._send_more()
        return answer

    def _send_more(self) -> None:
        out = []
        now = asyncio.get_running_loop().time()
        while self._waiting and len(self._sent) < PIPELINE:
            answer, command = self._waiting.popleft()
            if not answer.done():
                self._sent.append((answer, now + self.settings.redis_request_timeout))
                out.append(command)
        if out:
            self.write(b"".join(out))
        self._watch()

    def _watch(self) -> None:
        if self._sent and not self._timer:
            self._timer = asyncio.get_running_loop().call_at(self._sent[0][1], self._judge)

    def _judge(self) -> None:
        self._timer = None
        if self._sent and asyncio.get_running_loop().time() >= self._sent[0][1]:
            self.abort(f"no answer in {self.settings.redis_request_timeout:g} s")
        else:
            self._watch()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Of asyncio.BufferedProtocol."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Of asyncio.BufferedProtocol: each reply settles the oldest command."""
        self._heard = asyncio.get_running_loop().time()
        try:
            for start in range(0, nbytes, FEED_SIZE):
                self._reader.feed(self._buffer, start, min(FEED_SIZE, nbytes - start))  # type: ignore[arg-type]
                self._settle_replies()
            if self._reader.len() > self.max_reply:
                self.too_large()
        except (hiredis.ProtocolError, MemoryError, TypeError) as error:  # the last: a map with a list for a key
            self.unreadable(error)
        if nbytes == READ_SIZE:
            self.rest()

    def _settle_replies(self) -> None:
        while (reply := self._reader.gets()) is not False:
            if self.greeted(reply):
                continue
            if not self._sent:
                return self.unasked(reply)
            answer, _ = self._sent.popleft()
            if answer.done():
                continue
            if isinstance(reply, hiredis.ReplyError):
                answer.set_exception(hiredis.ReplyError(self.told(reply)))
            else:
                answer.set_result(reply)
        return self._send_more()

    def on_up(self) -> None:
        """Who asked to know hears of it."""
        self.serves()
        self._ping()
        self.call(b"INFO", b"server").add_done_callback(self._on_info)
        for hear in self.on_ready:
            hear()

    def _on_info(self, answer: "asyncio.Future[object]") -> None:
        """Redis' own name for this run of it. A user that may not ask (NOPERM) gets none, and that is no failure."""
        if answer.cancelled() or answer.exception() is not None:
            return
        found = re.search(rb"run_id:([0-9a-f]+)", cast(bytes, answer.result()))
        instance = found[1].decode() if found else ""
        if instance and instance != self.instance:
            if self.instance:
                self.log.warning(f"another Redis answers {self.purpose}: restarted, or a failover")
            self.instance = instance
            self.instances += 1

    def state(self) -> dict[str, object]:
        """Of Upstream, and which Redis answers."""
        return {**super().state(), "instance": self.instance, "instances": self.instances, "in_flight": len(self._sent)}

    def _ping(self) -> None:
        """A PING like any other command, so that a connection nobody uses is known to live too."""
        self.call(b"PING").add_done_callback(_heard)
        self._pinger = asyncio.get_running_loop().call_later(PING_EVERY, self._ping)

    def on_lost(self) -> None:
        """Nothing that was in flight is sent again: it may have been carried out."""
        asked = self._sent[0][1] - self.settings.redis_request_timeout if self._sent else self._heard
        self.sure = min(self._heard, asked)
        for timer in (self._timer, self._pinger):
            if timer:
                timer.cancel()
        self._timer = self._pinger = None
        lost = Lost("the connection to Redis was lost")
        for answer in [answer for answer, _ in self._sent] + [answer for answer, _ in self._waiting]:
            if not answer.done():
                answer.set_exception(lost)
        self._sent.clear()
        self._waiting.clear()
        for hear in self.on_gone:
            hear()


def _heard(answer: "asyncio.Future[object]") -> None:
    """Looks at a PING's answer, which is then not reported as never looked at. What it means, the deadline judges."""
    if not answer.cancelled():
        answer.exception()


def verdict(error: str) -> Lost:
    """What an error reply means for the connection: a refusal, or a trouble that is over soon."""
    if error.startswith(_PASSING):
        return Lost(error)
    return Refused(error, fatal=error.startswith(_FATAL))


def _sentence(why: Exception) -> str:
    if isinstance(why, TimeoutError):
        return "no answer in time"
    return str(why) or type(why).__name__
