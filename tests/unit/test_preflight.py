"""The preflight service by itself: when a run is read, and what an answer leads to (contract, section 4)."""

import asyncio
import json
import logging

import hiredis
import pytest

from relay import preflight
from relay.preflight import RECHECK, Preflight
from relay.settings import ProcessSettings, ServiceSettings
from relay.upstream import Lost
from relay.values import RedisAddress

CHANNELS = [b"timestamps:build_channels", b"10"]
OUTLET = [*CHANNELS, b"timestamps:set_outlet", b"20"]
EVENTS_OF_RUN1 = b"__keyspace@0__:run1"


class Core:
    """Writes down what it is told."""

    def __init__(self):
        self.attached, self.published, self.refused, self.closed = [], [], [], []
        self.gone = set()  # runs without clients
        self.notices = []  # what clients of protocol version 2 got beside all that
        self.times = []  # and those of version 3

    def add_service(self, **limits):
        assert limits["newest_only"], "of snapshots only the newest counts"
        return 0

    def attach(self, client, run, first, notice, times):
        self.attached.append((client, run, first))
        self.notices.append(notice)
        self.times.append(times)

    def watched(self, service, run):
        return run not in self.gone

    def publish(self, service, run, frame, min_version=0):
        if min_version == 0:
            self.published.append((run, frame))
        else:
            {2: self.notices, 3: self.times}[min_version].append(frame)
        return True

    def announce_gap(self, service, notice, run=None):
        self.notices.append(notice)

    def accept(self, client, answer):
        pass

    def refuse(self, client, answer):
        self.refused.append((client, answer))

    def close_topic(self, service, run, code, reason):
        self.closed.append((run, code))


class Link:
    def __init__(self):
        self.up = True
        self.wanted = []
        self.confirmed = set()

    def subscribed(self, channel):
        return channel in self.confirmed

    def want(self, channel):
        self.wanted.append(channel)

    def drop(self, channel):
        self.wanted.remove(channel)


class Commands:
    """Its answers are given by the test."""

    def __init__(self):
        self.up = True
        self.sure = 0.0
        self.calls = []
        self.reported, self.aborted = [], []
        self.on_ready, self.on_gone = [], []

    def ready(self):
        for hear in self.on_ready:
            hear()

    def call(self, *parts):
        answer = asyncio.get_running_loop().create_future()
        self.calls.append((parts, answer))
        return answer

    def report(self, level, sentence):
        self.reported.append(sentence)

    def told(self, reply):
        return "what it is"

    def abort(self, why):
        self.aborted.append(why)

    def reads(self):
        return [parts[1] for parts, _ in self.calls if parts[0] == b"HGETALL"]

    def configs(self):
        return [parts[1:] for parts, _ in self.calls if parts[0] == b"CONFIG"]

    async def answer(self, reply):
        """Answers all that has been asked and is not answered yet."""
        for _, answer in self.calls:
            if not answer.done():
                if isinstance(reply, Exception):
                    answer.set_exception(reply)
                else:
                    answer.set_result(reply)
        await asyncio.sleep(0)


@pytest.fixture
def make():
    def new(**options):
        core, link, commands = Core(), Link(), Commands()
        settings = ServiceSettings(name="preflight", listen=":0", redis=RedisAddress(db=options.pop("db", 0)))
        service = Preflight(core, settings, lambda number: link, commands, ProcessSettings(), lambda: None, **options)
        return service, core, link, commands

    return new


@pytest.fixture
async def watching(make):
    """The service with one client on run1, whose first snapshot has been sent."""
    service, core, _, commands = made = make()
    service.join(1, b"run1")
    service.on_subscribed(EVENTS_OF_RUN1)
    await commands.answer(CHANNELS)
    assert len(core.published) == 1
    commands.calls.clear()
    return made


def checks(frame):
    return {key for key, value in json.loads(frame)["checklist"].items() if value}


@pytest.fixture(autouse=True)
def _rarely_read(monkeypatch):
    """25 ms pass on a busy machine between two lines of a test, which says that they have not."""
    monkeypatch.setattr(preflight, "SPACING", 0.1)


async def spaced():
    """Until a run may be read again."""
    await asyncio.sleep(preflight.SPACING * 1.5)


# ---- join and leave ----


@pytest.mark.parametrize("db", [0, 5])
async def test_subscribe_first_then_read(make, db):
    service, core, link, commands = make(db=db)
    service.join(1, b"run1")
    assert core.attached == [(1, b"run1", b"")]
    assert link.wanted == [b"__keyspace@%d__:run1" % db]
    assert commands.calls == []
    service.on_subscribed(link.wanted[0])
    assert commands.reads() == [b"run1"]


async def test_who_joins_later_gets_what_the_others_hold_and_costs_no_read(watching):
    service, core, link, commands = watching
    service.join(2, b"run1")
    assert core.attached[-1] == (2, b"run1", core.published[0][1])
    assert commands.calls == []
    assert link.wanted == [EVENTS_OF_RUN1]


async def test_the_last_to_leave_takes_the_subscription_and_the_timer_along(watching):
    service, core, link, commands = watching
    service.on_event(EVENTS_OF_RUN1, b"hset")  # to be read once 25 ms are over
    core.gone.add(b"run1")
    service.idle(b"run1")
    assert link.wanted == []
    await spaced()
    assert commands.calls == []


async def test_an_idle_that_is_out_of_date_changes_nothing(watching):
    service, _, link, commands = watching
    service.idle(b"run1")  # somebody has joined since
    assert link.wanted == [EVENTS_OF_RUN1]
    await spaced()
    service.on_event(EVENTS_OF_RUN1, b"hset")
    assert commands.reads() == [b"run1"]


async def test_an_answer_to_those_before_is_none_for_those_after(watching):
    """Left and joined again while a read was under way: what it says is older than the new subscription."""
    service, core, _, commands = watching
    await spaced()
    service.on_event(EVENTS_OF_RUN1, b"hset")
    core.gone.add(b"run1")
    service.idle(b"run1")
    core.gone.clear()
    service.join(2, b"run1")
    await commands.answer(OUTLET)
    assert len(core.published) == 1


async def test_a_refused_run_is_closed(watching):
    service, core, _, _ = watching
    service.on_refused(EVENTS_OF_RUN1, "NOPERM")
    assert core.closed == [(b"run1", 1008)]


# ---- with Redis away ----


@pytest.mark.parametrize("away", ["link", "commands"])
async def test_with_redis_away_the_last_snapshot_is_at_hand(watching, away):
    service, core, link, commands = watching
    core.gone.add(b"run1")
    service.idle(b"run1")
    {"link": link, "commands": commands}[away].up = False
    core.gone.clear()
    service.join(2, b"run1")
    assert checks(core.attached[-1][2]) == {"channels"}
    service.join(3, b"never seen")
    assert core.attached[-1] == (3, b"never seen", b"")


async def test_many_who_ask_once_cost_one_read(make):
    service, core, _, commands = make()
    for turn in (1, 2):
        for client in range(100):
            service.show(client, b"run1", [], head=False)
        service.show(100, b"run2", [], head=False)
        assert commands.reads() == [b"run1", b"run2"] * turn
        await commands.answer(CHANNELS)
        assert [client for client, _ in core.refused] == [*range(101)] * turn
    assert all(answer.startswith(b"HTTP/1.1 200 ") and b'"channels":true' in answer for _, answer in core.refused)


async def test_with_redis_there_an_old_snapshot_is_not_shown(watching):
    service, core, _, _ = watching
    core.gone.add(b"run1")
    service.idle(b"run1")
    core.gone.clear()
    service.join(2, b"run1")
    assert core.attached[-1] == (2, b"run1", b"")


async def test_old_snapshots_are_kept_in_bounds(make, monkeypatch):
    monkeypatch.setattr(preflight, "KEPT", 3)
    service, core, link, commands = make()
    for number in range(5):
        run = b"run%d" % number
        service.join(number, run)
        service.on_subscribed(b"__keyspace@0__:" + run)
        await commands.answer(CHANNELS)
        core.gone.add(run)
        service.idle(run)
    link.up = False
    core.gone.clear()
    for number in range(5):
        service.join(number, b"run%d" % number)
    assert [bool(first) for _, _, first in core.attached[5:]] == [False, False, True, True, True]


async def test_once_redis_is_back_every_watched_run_is_read(make):
    service, _, _, commands = make()
    for number in range(3):
        service.join(number, b"run%d" % number)
    commands.ready()
    assert commands.reads() == [b"run0", b"run1", b"run2"]


async def test_a_refusal_sends_nothing_and_the_next_event_reads_again(watching):
    service, core, _, commands = watching
    await spaced()
    service.on_event(EVENTS_OF_RUN1, b"set")
    await commands.answer(hiredis.ReplyError("WRONGTYPE no hash"))
    assert len(core.published) == 1
    assert commands.reported == ["Redis refuses to read a run: WRONGTYPE no hash"]
    await spaced()
    service.on_event(EVENTS_OF_RUN1, b"hset")
    await commands.answer(OUTLET)
    assert checks(core.published[-1][1]) == {"channels", "outlet"}


async def test_an_event_while_a_refused_read_was_under_way_is_not_forgotten(watching):
    """The key was no hash when it was read and is one by now: nothing else will announce that."""
    service, core, _, commands = watching
    await spaced()
    service.on_event(EVENTS_OF_RUN1, b"set")
    service.on_event(EVENTS_OF_RUN1, b"hset")
    await commands.answer(hiredis.ReplyError("WRONGTYPE no hash"))
    await spaced()
    await commands.answer(OUTLET)
    assert checks(core.published[-1][1]) == {"channels", "outlet"}
    await spaced()
    assert commands.reads() == [b"run1", b"run1"]


async def test_a_lost_connection_sends_nothing_and_is_no_refusal(watching):
    service, core, _, commands = watching
    await spaced()
    commands.up = False
    service.on_event(EVENTS_OF_RUN1, b"hset")
    service.on_event(EVENTS_OF_RUN1, b"hset")
    await commands.answer(Lost("gone"))
    await spaced()
    assert commands.reads() == [b"run1"], "with nobody there to ask, nobody is asked"
    assert len(core.published) == 1
    assert commands.reported == []
    commands.up = True
    commands.ready()
    assert commands.reads() == [b"run1", b"run1"]


@pytest.mark.parametrize("reply", [None, 1, b"OK", [b"odd"], [b"a", 1], [b"a", [b"b"]], [None, b"b"]])
async def test_an_answer_that_is_no_hash_sends_nothing_and_ends_the_connection(watching, reply):
    """Who answers so is no Redis that can be believed: what it says next may be another command's."""
    service, core, _, commands = watching
    await spaced()
    service.on_event(EVENTS_OF_RUN1, b"hset")
    await commands.answer(reply)
    assert len(core.published) == 1
    assert commands.aborted == ["what it is is no answer to HGETALL"]


# ---- reading ----


async def test_events_while_a_read_is_under_way_are_one_more_read_and_the_overtaken_one_is_sent(watching):
    service, core, _, commands = watching
    await spaced()
    for _ in range(100):
        service.on_event(EVENTS_OF_RUN1, b"hset")
    assert commands.reads() == [b"run1"]
    await commands.answer(OUTLET)
    assert len(core.published) == 2, "the overtaken read is sent all the same"
    assert commands.reads() == [b"run1"], "25 ms have to pass"
    await spaced()
    assert commands.reads() == [b"run1", b"run1"]
    await commands.answer([])
    assert checks(core.published[-1][1]) == set()
    await spaced()
    assert len(commands.calls) == 2, "and no third"


async def test_an_unchanged_snapshot_is_not_sent(watching):
    service, core, _, commands = watching
    await spaced()
    service.on_event(EVENTS_OF_RUN1, b"hset")
    await commands.answer([*CHANNELS, b"rq:x", b"job"])
    assert len(core.published) == 1


async def test_an_event_of_a_run_that_nobody_watches_is_none(watching):
    service, _, _, commands = watching
    service.on_event(b"__keyspace@0__:other", b"hset")
    service.on_subscribed(b"__keyspace@0__:other")
    assert commands.calls == []


# ---- the slow re-check ----


async def many(make, count):
    service, core, _, commands = make()
    for number in range(count):
        service.join(number, b"run%d" % number)
        service.on_subscribed(b"__keyspace@0__:run%d" % number)
    await commands.answer(CHANNELS)
    commands.calls.clear()
    return service, core, commands


async def test_in_its_time_each_run_is_read_once_and_they_are_spread(make):
    service, _, commands = await many(make, 100)
    so_far = []
    for _ in range(500):
        service.recheck(RECHECK / 500)
        so_far.append(len(commands.reads()))
        await commands.answer(CHANNELS)
    assert sorted(commands.reads()) == sorted(b"run%d" % number for number in range(100))
    steps = [after - before for before, after in zip([0, *so_far], so_far, strict=False)]
    assert max(steps) <= 1
    assert 45 <= so_far[249] <= 55, "half of them in half the time"


async def test_a_change_without_an_event_is_sent_and_the_key_events_are_looked_at(make):
    service, core, commands = await many(make, 1)
    service.recheck(RECHECK)
    await commands.answer(OUTLET)
    assert checks(core.published[-1][1]) == {"channels", "outlet"}
    assert commands.configs() == [(b"GET", b"notify-keyspace-events")]


async def test_what_an_event_announces_meanwhile_is_no_sign_of_missing_events(make):
    service, core, commands = await many(make, 1)
    service.recheck(RECHECK)
    service.on_event(b"__keyspace@0__:run0", b"hset")
    await commands.answer(OUTLET)
    assert checks(core.published[-1][1]) == {"channels", "outlet"}
    assert commands.configs() == []


async def test_no_read_beside_one_that_is_under_way_or_due(make):
    service, _, commands = await many(make, 2)
    service.on_event(b"__keyspace@0__:run0", b"hset")  # due in 25 ms
    await spaced()  # and under way
    service.on_event(b"__keyspace@0__:run1", b"hset")
    assert commands.reads() == [b"run0", b"run1"]
    service.recheck(RECHECK)
    assert commands.reads() == [b"run0", b"run1"]


async def test_with_redis_away_nothing_is_read_again(make):
    service, _, commands = await many(make, 10)
    commands.up = False
    service.recheck(RECHECK)
    assert commands.calls == []
    commands.up = True
    service.recheck(RECHECK / 10)
    assert len(commands.reads()) == 1, "what could not be done is not made up for at once"


async def test_a_time_without_runs_does_not_count(make):
    service, _, commands = await many(make, 0)
    service.recheck(RECHECK * 100)
    service.join(1, b"run1")
    service.recheck(RECHECK / 10)
    assert commands.calls == []


# ---- key events ----


@pytest.mark.parametrize(
    ("flags", "state"),
    [
        (b"Kh", "on"),
        (b"ghxK", "on"),
        (b"AK", "on"),
        (b"AKE", "on"),
        (b"", "off"),
        (b"K", "off"),
        (b"h", "off"),
        (b"AE", "off"),
        (b"Eghx", "off"),
    ],
)
async def test_flags(make, flags, state, caplog):
    caplog.set_level(logging.INFO, "relay.preflight")
    service, _, _, commands = make()
    commands.ready()
    await commands.answer([b"notify-keyspace-events", flags])
    assert service.events == state
    assert [record.levelname for record in caplog.records] == ["INFO" if state == "on" else "WARNING"]


async def test_what_may_not_be_asked_is_unknown_said_once_and_no_failure(make, caplog):
    caplog.set_level(logging.INFO, "relay.preflight")
    service, _, _, commands = make()
    for _ in range(3):
        commands.ready()
        await commands.answer(hiredis.ReplyError("NOPERM"))
    assert service.events == "unknown"
    assert [record.levelname for record in caplog.records] == ["INFO"]


async def test_a_change_of_what_is_known_is_said_again(make, caplog):
    caplog.set_level(logging.INFO, "relay.preflight")
    _, _, _, commands = make()
    for flags in (b"Kh", b"", b"", b"Kh"):
        commands.ready()
        await commands.answer([b"notify-keyspace-events", flags])
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING", "INFO"]


async def test_switched_on_where_asked_for_and_what_was_on_stays(make):
    service, _, _, commands = make(set_events=True)
    commands.ready()
    await commands.answer([b"notify-keyspace-events", b"El"])
    assert commands.configs()[1:] == [(b"SET", b"notify-keyspace-events", b"ElKhgx")]
    await commands.answer(b"OK")
    assert service.events == "on"


async def test_a_refused_switch_is_a_warning(make, caplog):
    service, _, _, commands = make(set_events=True)
    commands.ready()
    await commands.answer([b"notify-keyspace-events", b""])
    await commands.answer(hiredis.ReplyError("NOPERM no CONFIG SET for you"))
    assert service.events == "off"
    assert "could not be switched on: NOPERM no CONFIG SET for you" in caplog.text


async def test_the_times_go_ahead_of_the_snapshot_that_they_explain(watching):
    service, core, _, commands = watching
    [first] = core.times[1:]
    assert json.loads(first)["done"] == {"channels": 10}
    await spaced()
    service.on_event(EVENTS_OF_RUN1, b"hset")
    await commands.answer([b"timestamps:build_channels", b"11"])
    assert json.loads(core.times[-1])["done"] == {"channels": 11}
    assert [json.loads(frame)["last_modified"] for _, frame in core.published] == [10, 11]
    service.join(2, b"run1")
    assert core.times[-1] == core.times[-2], "who joins has them at once"
    await spaced()
    count = len(core.times)
    service.on_event(EVENTS_OF_RUN1, b"hset")
    await commands.answer([b"timestamps:build_channels", b"11", b"rq:x", b"y"])
    assert len(core.times) == count
