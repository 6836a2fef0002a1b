"""`relay doctor`: a Redis as the services see it, with their URL, their user and their TLS.

Nothing is written there. What a user may do is found by doing it, on names of the doctor's own that nobody watches: ACL
DRYRUN would be a right more to give.
"""

import asyncio
import re
import secrets
import shlex
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, Self

import hiredis

from relay.cli.doctor_finding import Finding
from relay.cli.reach import DEADLINE, resolve, why
from relay.cli.terminal import quoted
from relay.errors import ConfigError
from relay.probe import PREFIX
from relay.settings import ServiceSettings, Settings
from relay.upstream import Lost, Refused, encode, tls_context, verdict
from relay.values import RedisAddress

RUN = "doctor"  # of the channel and the key that are tried
PROBE_SECONDS = 3.0  # for a message to come back from Redis itself
OLDEST = 6  # major version: no users with rights before it
HARD, SOFT = 32 << 20, 8 << 20  # Redis' own client-output-buffer-limit for pubsub
UNKNOWN_AUTHORITY = range(18, 22)  # of OpenSSL's X509_V_ERR: self-signed, or signed by who is not known here
DATABASE_0 = "PREFLIGHT_REDIS_URL=redis://.../0, where workers write"
FULL = 0.9  # of maxmemory
CLOCKS = 2.0  # seconds by which two may differ

Check = Callable[[], Awaitable[list[Finding]]]


class Refusal(Exception):  # noqa: N818 - what Redis does
    """Redis answers and refuses; its words, without a secret."""


class Line:
    """A connection to Redis, made and greeted as the relay's own are (relay/upstream.py); `async with` ends it.

    Args:
        address: where, and as whom.
        ping: see whether it answers; a worker's user may not ask.

    Raises:
        ConfigError: the TLS files of the URL cannot be used.
        Refusal: Redis does not let us in.
        OSError, TimeoutError, Lost, hiredis.ProtocolError: there is no Redis.
    """

    def __init__(self, address: RedisAddress, *, ping: bool = True) -> None:
        self.address = address
        self._ping = ping
        self._parser = hiredis.Reader()

    async def __aenter__(self) -> Self:
        address = self.address
        context = tls_context(address) if address.tls else None
        if address.path:
            streams = await asyncio.open_unix_connection(address.path)
        else:
            streams = await asyncio.open_connection(address.host, address.port, ssl=context)
        self._reader, self._writer = streams
        try:
            if address.password is not None:
                await self.ask("AUTH", *([address.username] if address.username else []), address.password)
            if self._ping:
                await self.ask("PING")
        except BaseException:
            self._writer.transport.abort()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.transport.abort()

    async def ask(self, *command: str) -> Any:
        """The reply to a command: bytes, int, None or a list of these.

        Raises:
            Refusal: it is an error.
            OSError, Lost, hiredis.ProtocolError: it does not come.
        """
        self._writer.write(encode(*(part.encode() for part in command)))
        return await self.reply()

    async def reply(self) -> Any:
        """The next reply, asked for or published."""
        while (reply := self._parser.gets()) is False:
            data = await self._reader.read(65536)
            if not data:
                raise Lost("Redis closed the connection")
            self._parser.feed(data)
        if isinstance(reply, hiredis.ReplyError):
            # Redis repeats a command that it does not know, and where AUTH is renamed that is the password.
            text = str(reply).partition(", with args beginning with")[0]
            raise Refusal(quoted(self.address.redacted(text)))
        return reply


async def open_line(address: RedisAddress, *, ping: bool = True) -> Line:
    """A Line within the deadline, and within one of its own for the name of the host; to be ended with `__aexit__`."""
    if not address.path:
        await resolve(address.host, address.port)
    async with asyncio.timeout(DEADLINE):
        return await Line(address, ping=ping).__aenter__()


def cli(address: RedisAddress, *, login: bool = False) -> str:
    """How redis-cli is called there, as the user of the URL; it asks for a password, where there is one or `login`."""
    where = ["-s", address.path] if address.path else ["-h", address.host, "-p", str(address.port)]
    if address.tls:
        files = {"--cacert": address.ssl_ca_certs, "--cert": address.ssl_certfile, "--key": address.ssl_keyfile}
        where += ["--tls", *(word for option, file in files.items() if file for word in (option, file))]
        where += ["--insecure"] if address.ssl_cert_reqs == "none" else []
    if login or address.password:  # without one redis-cli prints NOAUTH, with exit code 0
        where += [*(["--user", address.username] if address.username else []), "--askpass"]
    return shlex.join(["redis-cli", *where])


async def examine(address: RedisAddress, services: Sequence[ServiceSettings], process: Settings) -> list[Finding]:
    """What is the matter with one Redis.

    Args:
        address: where it is, and the user that is let in.
        services: that use it so.
        process: the settings of the relay.
    """
    began = time.perf_counter()
    try:
        line = await open_line(address)
    except (ConfigError, Refusal, OSError, TimeoutError, Lost, hiredis.ProtocolError, UnicodeError) as error:
        return [_unreached(address, error), Finding("skipped", "all else of this Redis", "it is not reached")]
    took = f"{(time.perf_counter() - began) * 1000:.1f} ms"
    found = [Finding("ok", "login", f"as {address.username or 'default'}, in {took}")]
    try:
        for name, check in Examination(line, services, process).checks():
            try:
                async with asyncio.timeout(DEADLINE):
                    found += await check()
            except Refusal as refusal:
                found.append(Finding("skipped", name, f"this user may not ask: {refusal}"))
            except (ValueError, TypeError, LookupError, AttributeError):  # a proxy that speaks a Redis of its own
                found.append(Finding("skipped", name, "the answer is not understood"))
    except (OSError, TimeoutError, Lost, hiredis.ProtocolError) as error:
        found.append(
            Finding(
                "fault",
                name,
                f"Redis stopped answering: {_reason(error)}",
                "What comes after this was not looked at.",
                f"{cli(address)} --latency",
            )
        )
    finally:
        await line.__aexit__()
    return found


def _reason(error: Exception) -> str:
    return "what answers is no Redis" if isinstance(error, hiredis.ProtocolError) else why(error)


def _unreached(address: RedisAddress, error: Exception) -> Finding:
    if isinstance(error, ConfigError):
        return Finding("fault", "login", str(error), "The relay does not start.", "mend the ssl_ options of the URL")
    if isinstance(error, Refusal):
        meant = verdict(str(error))
        fatal = isinstance(meant, Refused) and meant.fatal
        if str(error).startswith("NOPERM"):  # PING is all that was asked
            means = "The relay asks for PING when it connects, and serves nothing new until it is let in."
            return Finding("fault", "login", f"Redis answers and refuses: {error}", means, _grant(address, "+ping"))
        return Finding(
            "fault",
            "login",
            f"Redis answers and refuses: {error}",
            "The relay ends at its start with exit code 3: the user or password of the URL or of *_REDIS_PASSWORD_FILE "
            "is not the one that Redis has."
            if fatal
            else "The relay tries again for ever, and serves nothing new until it is let in.",
            f"{cli(address, login=True)} PING    # then the same user and password for the relay"
            if fatal
            else f"{cli(address)} INFO clients    # and CONFIG GET maxclients",
        )
    return Finding(
        "fault",
        "reach",
        f"{address}: {_reason(error)}",
        "The relay keeps its clients and tries again for ever; nothing that is published comes through.",
        _tls_mend(address, error)
        or f"{cli(address)} PING    # from here; then `bind` in its redis.conf, and the firewall between",
    )


def _tls_mend(address: RedisAddress, error: Exception) -> str:
    """What to write into the URL, where it and the port seem to be of two minds about TLS; else ""."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code not in UNKNOWN_AUTHORITY:
            return ""
        return "?ssl_ca_certs=/path/to/ca.pem behind the URL    # of the authority that has signed its certificate"
    if address.tls and isinstance(error, TimeoutError | ssl.SSLError | ConnectionResetError):
        return f"redis:// in the URL, and not rediss://, if the port speaks no TLS; {cli(address)} PING    # says so"
    ended = isinstance(error, ConnectionResetError | Lost | hiredis.ProtocolError)
    if ended and not (address.tls or address.path):
        secure = cli(replace(address, tls=True))
        return f"rediss:// in the URL, and not redis://, if the port speaks TLS; {secure} PING    # says so"
    return ""


def _grant(address: RedisAddress, rights: str) -> str:
    """The command that gives them to the user; as `default`, for one that lacks rights may give none."""
    user = shlex.quote(address.username or "default")
    giver = cli(replace(address, username=address.username and "default"))
    return f"{giver} ACL SETUSER {user} {rights}    # as one who may; and in its redis.conf: deploy/redis-acl.conf"


class Examination:
    """The checks of one Redis that was reached.

    Args:
        line: to it.
        services: that use it as this user.
        process: the settings of the relay.
    """

    def __init__(self, line: Line, services: Sequence[ServiceSettings], process: Settings) -> None:
        self._line = line
        self._services = services
        self._process = process
        self._cli = cli(line.address)

    def checks(self) -> list[tuple[str, Check]]:
        """All of them by name: each returns what it found, or raises what `Line.ask` does."""
        own: list[tuple[str, Check]] = [
            ("version", self.version),
            ("clock", self.clock),
            ("eviction", self.eviction),
            ("output buffer", self.buffer),
            ("probe", self.probe),
        ]
        if any(service.name == "status" for service in self._services):
            own.append(("status rights", self.status_rights))
        for service in self._services:
            if service.name == "preflight":
                own += [("preflight rights", self.preflight_rights), ("key events", self.key_events)]
        return own

    async def version(self) -> list[Finding]:
        """What it is, and that it is one server."""
        said = (await self._line.ask("INFO", "server")).decode("utf-8", "replace")
        facts = dict(line.split(":", 1) for line in said.splitlines() if ":" in line)
        name = "Valkey" if "valkey_version" in facts else "Redis"
        version = facts.get("valkey_version") or facts.get("redis_version", "?")
        if facts.get("redis_mode") == "cluster":
            return [
                Finding(
                    "fault",
                    "version",
                    f"{name} {version}, in a cluster",
                    "A checklist is on one of its nodes and the relay asks one: most runs cannot be read.",
                    "give the URL of a single server",
                )
            ]
        major = re.match(r"\d+", version)
        if major and name == "Redis" and int(major[0]) < OLDEST:
            return [
                Finding(
                    "warning",
                    "version",
                    f"{name} {version}",
                    f"Before {OLDEST} there are no users with rights of their own (deploy/redis-acl.conf).",
                    "upgrade it: nothing in it must survive a restart",
                )
            ]
        return [Finding("ok", "version", f"{name} {version}")]

    async def clock(self) -> list[Finding]:
        """Its clock against the one here, as well as the way there lets it be known."""
        before = time.time()
        seconds, micro = await self._line.ask("TIME")
        after = time.time()
        ahead = int(seconds) + int(micro) / 1e6 - (before + after) / 2
        if abs(ahead) <= CLOCKS + (after - before) / 2:
            return [Finding("ok", "clock", f"{abs(ahead):.1f} s apart")]
        return [
            Finding(
                "warning",
                "clock",
                f"that of Redis is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the one here",
                "One of them is wrong. Tokens expire and gaps are dated by the clock here, and checklists compare the "
                "seconds of several workers: steps look done out of order.",
                "timedatectl set-ntp true    # on the host that is wrong; timedatectl timesync-status says which",
            )
        ]

    async def eviction(self) -> list[Finding]:
        """Whether it throws hashes of runs away, or soon refuses to write them."""
        most = int(await self._setting("maxmemory") or 0)
        policy = await self._setting("maxmemory-policy")
        if not most:
            return [Finding("ok", "eviction", "none: maxmemory is 0")]
        if policy.startswith("allkeys"):
            return [
                Finding(
                    "warning",
                    "eviction",
                    f"maxmemory-policy is {policy}, maxmemory {most}",
                    "Where memory ends Redis throws hashes of runs away without a word: checklists fall back.",
                    f"{self._cli} CONFIG SET maxmemory-policy noeviction",
                )
            ]
        said = await self._line.ask("INFO", "memory")
        used = re.search(rb"used_memory:(\d+)", said)
        if used and int(used[1]) > FULL * most:
            return [
                Finding(
                    "warning",
                    "eviction",
                    f"{int(used[1])} of maxmemory {most} bytes are used",
                    "At the bound Redis refuses what workers write, and checklists stand still.",
                    f"{self._cli} CONFIG SET maxmemory {2 * most}",
                )
            ]
        return [Finding("ok", "eviction", f"{policy}, maxmemory {most}")]

    async def buffer(self) -> list[Finding]:
        """What may wait in Redis for the subscriptions of a relay that is busy or stopped for a moment."""
        limits = (await self._setting("client-output-buffer-limit")).split()
        if "pubsub" not in limits:
            return [Finding("skipped", "output buffer", "Redis does not say")]
        at = limits.index("pubsub") + 1
        hard, soft, seconds = (int(number) for number in limits[at : at + 3])
        found = f"{hard} bytes, or {soft} for {seconds} s (client-output-buffer-limit pubsub)"
        mend = f"{self._cli} CONFIG SET client-output-buffer-limit 'pubsub 64mb 16mb 60'"
        largest = self._process.max_published_size
        if 0 < hard < largest:
            means = (
                f"One message of RELAY_MAX_PUBLISHED_SIZE={largest} bytes ends the relay's connection: lines of all "
                "channels are lost until it is made anew."
            )
            return [Finding("fault", "output buffer", found, means, mend)]
        if 0 < hard < HARD or 0 < soft < SOFT:
            means = "Less than Redis itself has: a relay that is held up for a moment loses its connection, and lines."
            return [Finding("warning", "output buffer", found, means, mend)]
        if not hard and not soft:
            means = "No bound: a relay that is stuck fills the memory of Redis."
            return [Finding("warning", "output buffer", found, means, mend)]
        return [Finding("ok", "output buffer", found)]

    async def probe(self) -> list[Finding]:
        """Whether what this user publishes comes back on another connection: the relay proves its link so."""
        channel = f"{PREFIX.decode()}{secrets.token_hex(8)}"
        async with Line(self._line.address) as subscriber:
            try:
                await subscriber.ask("SUBSCRIBE", channel)
                await self._line.ask("PUBLISH", channel, "")
            except Refusal as refusal:
                return [
                    Finding(
                        "warning",
                        "probe",
                        str(refusal),
                        "The relay cannot prove that its subscriptions deliver: where they do not, nobody notices.",
                        self._grant(refusal, "+subscribe +publish", f"'&{PREFIX.decode()}*'"),
                    )
                ]
            try:
                await asyncio.wait_for(subscriber.reply(), PROBE_SECONDS)
            except TimeoutError:
                return [
                    Finding(
                        "fault",
                        "probe",
                        f"a published message did not come back in {PROBE_SECONDS:g} s",
                        "Two connections to this address end at two servers (a proxy, a failover): the relay finds its "
                        "link deaf and makes it anew, for ever.",
                        f"{self._cli} INFO server    # several times: run_id must be the same",
                    )
                ]
        return [Finding("ok", "probe", "a published message comes back")]

    async def status_rights(self) -> list[Finding]:
        """Whether this user may subscribe to channels of runs."""
        channel = f"{RUN}:{secrets.token_hex(4)}"
        async with Line(self._line.address) as subscriber:
            try:
                await subscriber.ask("SUBSCRIBE", channel)
            except Refusal as refusal:
                return [
                    Finding(
                        "fault",
                        "status rights",
                        str(refusal),
                        "Clients of status get 403: the relay may not subscribe to channels of runs.",
                        self._grant(refusal, "+subscribe +unsubscribe", "'&[^_]*:*' '&_[^_]*:*' '&_:*'"),
                    )
                ]
        return [Finding("ok", "status rights", "SUBSCRIBE to channels of runs")]

    async def preflight_rights(self) -> list[Finding]:
        """Whether this user may read hashes of runs and hear of their key events."""
        [db] = [service.redis.db for service in self._services if service.name == "preflight"]
        events = f"__keyspace@{db}__:"
        tried = [
            (
                ("SUBSCRIBE", events + RUN),
                "Clients of preflight are closed with 1008: the relay may not hear of the changes of runs.",
                ("+subscribe +unsubscribe", f"'&{events}*'"),
            ),
            (("HGETALL", RUN), "Clients get no checklist: the relay may not read runs.", ("+hgetall", "'%R~*'")),
        ]
        if db:
            tried.insert(0, (("SELECT", str(db)), "The relay does not come in at all.", ("+select", "")))
        found = []
        for command, means, rights in tried:
            async with Line(replace(self._line.address, db=0)) as other:
                try:
                    await other.ask(*command)
                except Refusal as refusal:
                    found.append(
                        Finding("fault", "preflight rights", str(refusal), means, self._grant(refusal, *rights))
                    )
        if db and not found:
            return [
                Finding(
                    "warning",
                    "preflight rights",
                    f"the relay reads database {db}",
                    "Workers write runs to database 0: unless yours do otherwise, every checklist stays empty.",
                    DATABASE_0,
                )
            ]
        return found or [Finding("ok", "preflight rights", f"SUBSCRIBE to key events of database {db}, HGETALL")]

    async def key_events(self) -> list[Finding]:
        """Whether Redis announces what is done to hashes."""
        flags = await self._setting("notify-keyspace-events")
        has = set(flags) | (set("ghx") if "A" in flags else set())
        needed, advised = ("".join(flag for flag in wish if flag not in has) for wish in ("Kh", "gx"))
        mend = f"{self._cli} CONFIG SET notify-keyspace-events {shlex.quote(_joined(flags, 'Kghx'))}"
        if needed and self._process.set_keyspace_events:
            means = "The relay sets it when it connects (RELAY_SET_KEYSPACE_EVENTS)."
            return [Finding("warning", "key events", f"notify-keyspace-events is '{flags}', without {needed}", means)]
        if needed:
            means = "Redis does not announce writes to hashes: checklists are up to 50 s late."
            return [
                Finding("fault", "key events", f"notify-keyspace-events is '{flags}', without {needed}", means, mend)
            ]
        if advised:
            means = "A run that is deleted, renamed or expires is noticed up to 50 s late."
            return [
                Finding("warning", "key events", f"notify-keyspace-events is '{flags}', without {advised}", means, mend)
            ]
        return [Finding("ok", "key events", f"notify-keyspace-events is '{flags}'")]

    async def _setting(self, name: str) -> str:
        """A setting of Redis; "" where it knows none of that name."""
        reply = await self._line.ask("CONFIG", "GET", name)
        return quoted(reply[1].decode("utf-8", "replace")) if reply else ""

    def _grant(self, refusal: Refusal, commands: str, patterns: str) -> str:
        """What is missing, and not both: a pattern behind one that allows all is an error to Redis."""
        if "DB index is out of range" in str(refusal):
            return f"{DATABASE_0}    # or a higher `databases` in its redis.conf"
        return _grant(self._line.address, commands if "command" in str(refusal) else patterns)


def _joined(flags: str, more: str) -> str:
    return flags + "".join(flag for flag in more if flag not in flags)
