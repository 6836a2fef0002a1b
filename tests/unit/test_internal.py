"""The pages of operators, without a relay around them."""

import json
from types import SimpleNamespace

import pytest

from relay import internal
from relay._fanout import BUILD
from relay.internal import Facts, Internal, Page, obstacles
from relay.scoreboard import Row
from tests.integration.peers import Answer, head, upgrade
from tests.unit.rig import Rig


@pytest.fixture
def rig():
    rig = Rig()
    yield rig
    rig.close()


@pytest.fixture
def room(rig):
    return Internal(rig.core, "internal", {"/livez": lambda: Page("OK"), "/bad": lambda: Page("no", good=False)})


def asked(room, data):
    top, _, body = room.answer(data).partition(b"\r\n\r\n")
    return Answer(top, body)


def test_it_is_a_service_of_the_core(rig, room):
    assert room.index == rig.service + 1


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (head("/livez"), 200),
        (head("/livez?x=1"), 200),
        (head("http://x/livez"), 200),
        (head("/livez", version="HTTP/1.0"), 200),
        (head("/bad"), 503),
        (head("/livez/"), 404),
        (head("/"), 404),
        (head("/r1:wepp"), 404),
        (head("/health"), 404),
        (head("/" + "x" * 500), 404),
        (head("/LIVEZ"), 404),
        (head("/%6civez"), 404),
        (head("/../livez"), 404),
        (upgrade("/livez"), 400),
        (upgrade("/r1:wepp"), 400),
        (head("/livez", method="POST"), 405),
        (head("/livez", method="DELETE"), 405),
        (head("/livez", method="OPTIONS"), 405),
        (head("/livez", host=None), 400),
        (b"\x16\x03\x01\x02\r\n\r\n", 400),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_answered(room, data, status):
    answer = asked(room, data)
    assert answer.status == status
    assert len(answer.body) == int(answer.headers["content-length"])
    assert answer.headers["connection"] == "close"


def test_a_path_that_is_none_says_which_are(room):
    assert asked(room, head("/x")).body == b"There is no /x on this listener, but /livez, /bad.\n"


@pytest.mark.parametrize("path", ["/livez", "/bad", "/x"])
def test_head_is_get_without_its_body(room, path):
    got, asked_for = asked(room, head(path)), asked(room, head(path, method="HEAD"))
    assert (asked_for.status, asked_for.body) == (got.status, b"")
    assert asked_for.headers["content-length"] == got.headers["content-length"]


def connection(purpose, up, trouble=""):
    return SimpleNamespace(
        purpose=purpose, up=up, proved=up, trouble=trouble, state=lambda: {"up": up, "trouble": trouble}
    )


def service(up=True, trouble="", index=0, name="status"):
    return SimpleNamespace(
        name=name,
        index=index,
        link=connection("status subscriptions", up, trouble),
        commands=connection("status commands", True),
    )


def alone(rig, *services):
    """The facts of a process that is all there is."""
    whole = SimpleNamespace(
        why=lambda name: next(obstacles(each, False) for each in services if each.name == name), rows=list
    )
    return Facts(rig.core, services, lambda: False, lambda: whole)


def row(slot, counts, **values):
    given = {"number": slot + 1, "at": 0.0, "pid": 100 + slot, "accepting": True, "draining": False, "why": {}}
    return Row(slot=slot, readings=[], bounds=[], lag=None, process={}, counts=counts, **(given | values))


def test_debug_of_several_processes_is_of_all_and_of_each(rig):
    def counts(connections, *largest):
        stats = {
            "connections": connections,
            "topics": 1,
            "messages": 2,
            "frames": 5,
            "bytes": 50,
            "closes": {1012: connections},
        }
        topics = [{"topic": name, "clients": n, "undelivered_bytes": 1} for name, n in largest]
        slow = [{"service": "status", "address": "unix", "waiting_bytes": connections, "oldest_seconds": 1}]
        return {
            "totals": {"sockets": connections},
            "services": {"status": {**stats, "largest": topics}},
            "slowest": slow,
        }

    facts = alone(rig, service(index=rig.service))
    rows = [row(0, counts(3, ("a:x", 2), ("b:x", 1))), row(1, counts(4, ("a:x", 4)))]
    facts._whole().rows = lambda: rows
    said = json.loads(facts.debug().body)
    assert said["totals"] == {"sockets": 7}
    status = said["services"]["status"]
    assert (status["connections"], status["frames"], status["closes"]) == (7, 10, {"1012": 7})
    assert status["largest"] == [
        {"topic": "a:x", "clients": 6, "undelivered_bytes": 2},
        {"topic": "b:x", "clients": 1, "undelivered_bytes": 1},
    ]
    assert [each["waiting_bytes"] for each in said["slowest"]] == [4, 3]
    assert [(each["slot"], each["pid"], each["sockets"]) for each in said["workers"]] == [(0, 100, 3), (1, 101, 4)]


def test_what_keeps_a_service_from_being_ready():
    assert obstacles(service(), draining=False) == []
    assert obstacles(service(), draining=True) == ["the relay is draining"]
    assert obstacles(service(up=False), draining=False) == ["no Redis for status subscriptions: not connected yet"]
    assert obstacles(service(up=False, trouble="NOAUTH"), draining=True) == [
        "the relay is draining",
        "no Redis for status subscriptions: NOAUTH",
    ]
    unproved = service()
    unproved.link.proved = False
    assert obstacles(unproved, draining=False) == [
        "nothing that is published comes back over Redis for status subscriptions yet"
    ]


@pytest.mark.parametrize("up", [True, False])
def test_ready_is_what_every_service_is(rig, up):
    facts = alone(rig, service(), service(up=up, trouble="refused", name="preflight"))
    page = facts.ready()
    said = json.loads(page.body)
    assert (page.good, said["ready"], said["draining"], said["build"]) == (up, up, False, BUILD)
    assert [state["ready"] for state in said["services"].values()] == [True, up]
    assert said["services"]["preflight"]["link"] == {"up": up, "trouble": "refused"}
    assert said["version"]


def test_debug_shows_topics_and_addresses_and_no_payload(rig):
    facts = alone(rig, service(index=rig.service))
    rig.join(b"a:x", rcvbuf=4096)
    rig.publish(b"a:x", b"payload" * 30_000)
    page = facts.debug()
    said = json.loads(page.body)
    assert said["totals"] == rig.core.totals()
    assert said["services"]["status"]["connections"] == 1
    assert said["services"]["status"]["largest"] == [{"topic": "a:x", "clients": 1, "undelivered_bytes": 0}]
    [slow] = said["slowest"]
    assert (slow["service"], slow["address"]) == ("status", "127.0.0.1")
    assert 100_000 < slow["waiting_bytes"] < 300_000
    assert "payload" not in page.body


@pytest.mark.parametrize(
    ("packed", "text"),
    [
        (bytes(16), "unix"),
        (bytes(10) + b"\xff\xff\xc0\x00\x02\x07", "192.0.2.7"),
        (b"\x20\x01\x0d\xb8" + bytes(11) + b"\x01", "2001:db8::1"),
    ],
)
def test_an_address_as_it_is_written(packed, text):
    assert internal._address(packed) == text
