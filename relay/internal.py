"""What operators see, on listeners of their own: RELAY_INTERNAL_ADDR and RELAY_METRICS_ADDR.

    /livez     200 while the loop turns
    /readyz    200 or 503, and for each service what is wrong
    /metrics   as on a service's port, whatever METRICS_ENABLED says
    /debug     counters, the topics with most clients, the clients for whom most waits

A service's port says ready or not and no more: who may watch a run need not know where Redis is and what it complains
of. Here nothing is asked for either, so the address should be a Unix socket or one that only operators reach. Topics
and addresses are shown; payloads, tokens and passwords are not even known here.
"""

import ipaddress
import json
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple, Protocol

from relay import handshake
from relay._fanout import BUILD, Core
from relay.handshake import Refused, plain
from relay.preflight import Preflight
from relay.scoreboard import Row
from relay.status import Status

MOST = 10  # topics and clients shown

Service = Status | Preflight


class Page(NamedTuple):
    """What is answered with 200, or with 503 where it is not `good`."""

    body: str | bytes
    kind: str = "text/plain; charset=utf-8"
    good: bool = True


class Internal:
    """The pages of one listener, a service of the core like the others.

    Args:
        core: that it is made a service of.
        name: of the listener, for the log.
        pages: path -> what makes its page.
    """

    def __init__(self, core: Core, name: str, pages: Mapping[str, Callable[[], Page]]) -> None:
        self.index = core.add_service()
        self.name = name
        self._pages = pages

    def answer(self, head: bytes) -> bytes:
        """The whole HTTP answer to a request head; there is room for it even where no client is let in any more."""
        try:
            request = handshake.read(head)
        except Refused as refused:
            return refused.answer_with(head=head.startswith(b"HEAD "))
        without_body = request.method == "HEAD"
        if request.upgrade:
            return plain("400 Bad Request", "This listener is for operators and has no websockets.\n")
        if request.path not in self._pages:
            sentence = f"There is no {request.path[:100]} on this listener, but {', '.join(self._pages)}.\n"
            return plain("404 Not Found", sentence, head=without_body)
        page = self._pages[request.path]()
        status = "200 OK" if page.good else "503 Service Unavailable"
        return plain(status, page.body, kind=page.kind, head=without_body)


def obstacles(service: Service, draining: bool) -> list[str]:
    """Why new clients of a service would not be well served here, in sentences; empty where they would be."""
    found = ["the relay is draining"] if draining else []
    down = [connection for connection in (service.link, service.commands) if not connection.up]
    found += [f"no Redis for {each.purpose}: {each.trouble or 'not connected yet'}" for each in down]
    if service.link.up and not service.link.proved:
        found.append(f"nothing that is published comes back over Redis for {service.link.purpose} yet")
    if isinstance(service, Preflight) and service.refused:
        found.append(f"Redis refuses to read runs: {service.refused}")
    return found


class Whole(Protocol):
    """All processes that serve together, as far as operators are told of them."""

    def why(self, service: str) -> list[str]:
        """Why newcomers of a service would not be well served, in sentences; empty where they would be."""

    def rows(self) -> Sequence[Row]:
        """What each process says of itself; none where there is but one."""


class Facts:
    """What the pages show.

    Args:
        core: of the process.
        services: that it serves.
        draining: whether it takes leave of its clients.
        whole: of which this process is all, or one of several.
    """

    def __init__(
        self, core: Core, services: Sequence[Service], draining: Callable[[], bool], whole: Callable[[], Whole]
    ) -> None:
        self._core = core
        self._services = services
        self._draining = draining
        self._whole = whole
        self._started = time.monotonic()
        self._version = metadata.version("weppcloud-relay")

    def live(self) -> Page:
        """`/livez`."""
        return Page("OK")

    def ready(self) -> Page:
        """`/readyz`: ready where every service is, with the states of both its connections (of the process asked)."""
        services = {service.name: self._readiness(service) for service in self._services}
        good = all(state["ready"] for state in services.values())
        page = {"ready": good, "draining": self._draining(), **self._process(), "services": services}
        if rows := self._whole().rows():
            page["workers"] = [
                {**_named(row), "accepting": row.accepting, "draining": row.draining, "why": row.why} for row in rows
            ]
        return _json(page, good)

    def _readiness(self, service: Service) -> dict[str, Any]:
        why = self._whole().why(service.name)
        state = {"ready": not why, "why": why, "link": service.link.state(), "commands": service.commands.state()}
        return {**state, "key_events": service.events} if isinstance(service, Preflight) else state

    def debug(self) -> Page:
        """`/debug`: of all processes, and what each has of it."""
        rows = self._whole().rows()
        page = {**self._process(), **_together([row.counts for row in rows] or [self.counts()])}
        if rows:
            page["workers"] = [{**_named(row), **_outline(row.counts)} for row in rows]
        return _json(page)

    def counts(self) -> dict[str, Any]:
        """What `/debug` shows of this process."""
        names = [service.name for service in self._services]
        slowest = [
            {"service": names[number], "address": _address(address), "waiting_bytes": size, "oldest_seconds": waited}
            for size, waited, number, address in self._core.slowest(MOST)
        ]
        services = {service.name: self._counters(service) for service in self._services}
        return {"totals": self._core.totals(), "services": services, "slowest": slowest}

    def _counters(self, service: Service) -> dict[str, Any]:
        largest = [
            {"topic": name.decode(), "clients": clients, "undelivered_bytes": waiting}
            for clients, waiting, name in self._core.largest(service.index, MOST)
        ]
        counters = {k: v for k, v in self._core.stats(service.index).items() if isinstance(v, int | dict)}
        messages = self._core.arrived(service.index)  # from Redis; for preflight, key events
        return {**counters, "messages": messages, "largest": largest}

    def _process(self) -> dict[str, Any]:
        seconds = round(time.monotonic() - self._started, 1)
        return {"version": self._version, "build": BUILD, "seconds": seconds}


def _named(row: Row) -> dict[str, Any]:
    return {"slot": row.slot, "pid": row.pid}


def _outline(counts: Mapping[str, Any]) -> dict[str, Any]:
    services = {
        name: {key: of[key] for key in ("connections", "topics", "messages", "frames", "bytes")}
        for name, of in counts["services"].items()
    }
    return {**counts["totals"], "services": services}


def _together(counts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The counts of several processes as those of one; a topic that several watch is one with all its clients."""
    found: dict[str, Any] = _sum(counts)
    for service in found["services"].values():
        topics: dict[str, list[dict[str, Any]]] = {}
        for each in service["largest"]:
            topics.setdefault(each["topic"], []).append(each)
        merged = [{**_sum([{**each, "topic": 0} for each in of]), "topic": topic} for topic, of in topics.items()]
        service["largest"] = sorted(merged, key=lambda each: -each["clients"])[:MOST]
    found["slowest"] = sorted(found["slowest"], key=lambda each: -each["waiting_bytes"])[:MOST]
    return found


def _sum(values: Sequence[Any]) -> Any:
    """Numbers are added, lists joined, and dictionaries summed key by key."""
    first = values[0]
    if isinstance(first, Mapping):
        keys = dict.fromkeys(key for value in values for key in value)
        return {key: _sum([value[key] for value in values if key in value]) for key in keys}
    return [each for value in values for each in value] if isinstance(first, list) else sum(values)


def _json(value: Mapping[str, Any], good: bool = True) -> Page:
    return Page(json.dumps(value, indent=2) + "\n", "application/json", good)


def _address(packed: bytes) -> str:
    """As it is written; a client on a Unix socket has none."""
    address = ipaddress.IPv6Address(packed)
    return str(address.ipv4_mapped or address) if any(packed) else "unix"
