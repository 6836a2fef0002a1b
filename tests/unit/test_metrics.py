"""The names that dashboards know (contract, section 6), a bound beside its breaches, several processes as one."""

import os
import pickle
import platform
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from relay._fanout import BUILD
from relay.metrics import Bound, Processes, Reading, exposition, process, total

COUNTERS = {
    "connections": 3,
    "opened": 5,
    "topics": 2,
    "frames": 70,
    "bytes": 9,
    "oversize": 1,
    "write_errors": 4,
    "replaced": 6,
    "told": 10,
    "untold": 11,
    "backlogs": 12,
    "backlog_bytes": 13,
}
BREACHES = {"backlog": 7, "heads": 0}
OWN = [Bound("message_size", "bytes", 65536)]
COMMON = [Bound("live", "bytes", 1 << 28, 5), Bound("head_timeout", "seconds", 2.5)]
LAG = ((0.001, 0.1), (90, 9, 1), 2.5)
STATUS = Reading(
    "status",
    COUNTERS,
    {1013: 2, 1008: 1},
    {101: 5, 503: 4},
    ((0.001, 0.01), (3, 2, 1), 0.75),
    ((1.0, 2.0), (5, 0, 1), 9.0),
    1.5,
    ready=True,
    redis_up=True,
    reconnects=8,
    gaps=9,
    instances=2,
    proved=3.5,
    breaches=BREACHES,
    bounds=OWN,
)
PREFLIGHT = replace(
    STATUS,
    service="preflight",
    closes={},
    ready=False,
    redis_up=False,
    reconnects=0,
    gaps=0,
    proved=None,
    key_events=False,
    bounds=(),
)


def samples(*readings):
    readings = readings or (STATUS, PREFLIGHT)
    text = exposition(lambda: readings, lambda: COMMON, lambda: [LAG], lambda: Processes([process()])).decode()
    return {
        (s.name, next(iter(s.labels.values()), None)): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def test_the_old_names():
    found = samples()
    for name, value in {
        "status2_connections_active": 3,
        "status2_messages_forwarded_total": 70,
        "status2_redis_reconnects_total": 8,
        "status2_write_errors_total": 4,
        "preflight2_connections_active": 3,
        "preflight2_messages_sent_total": 70,
        "preflight2_redis_reconnects_total": 0,
    }.items():
        assert found[name, None] == value


def test_closes_by_code_answers_by_status_and_the_state_of_redis():
    found = samples()
    assert found["status2_closes_total", "1013"] == 2
    assert found["status2_closes_total", "1008"] == 1
    assert found["status2_http_responses_total", "101"] == 5
    assert found["status2_http_responses_total", "503"] == 4
    assert found["status2_redis_up", None] == found["status2_ready", None] == 1
    assert found["preflight2_redis_up", None] == found["preflight2_ready", None] == 0
    assert found["preflight2_redis_key_events", None] == 0
    assert ("status2_redis_key_events", None) not in found, "they are nothing to it"


def test_what_has_not_happened_yet_is_0_so_that_its_first_time_is_a_rise():
    found = samples()
    assert found["preflight2_closes_total", "1013"] == 0
    assert found["status2_http_responses_total", "403"] == 0


def test_a_histogram_is_cumulative():
    found = samples()
    assert [found["status2_delivery_seconds_bucket", le] for le in ("0.001", "0.01", "+Inf")] == [3, 5, 6]
    assert (found["status2_delivery_seconds_count", None], found["status2_delivery_seconds_sum", None]) == (6, 0.75)
    assert [found["status2_burst_frames_bucket", le] for le in ("1.0", "2.0", "+Inf")] == [5, 5, 6]
    assert [found["relay_loop_lag_seconds_bucket", le] for le in ("0.001", "0.1", "+Inf")] == [90, 99, 100]


def test_who_lags():
    found = samples()
    assert found["status2_backlog_clients", None] == 12
    assert found["status2_backlog_bytes", None] == 13
    assert found["status2_backlog_seconds", None] == 1.5


def test_what_runs_and_what_it_takes():
    text = exposition(lambda: [STATUS], lambda: COMMON, lambda: [LAG], lambda: Processes([process()])).decode()
    labels = {
        s.name: s.labels for family in text_string_to_metric_families(text) for s in family.samples if s.value == 1
    }
    assert labels["relay_build_info"]["core"] == BUILD
    assert labels["relay_build_info"]["python"] == platform.python_version()
    assert labels["relay_build_info"]["version"]
    found = samples()
    assert 0 < found["process_open_fds", None] <= found["process_max_fds", None]
    assert found["process_resident_memory_bytes", None] > 1 << 20
    cpu = os.times()
    assert 0 < found["process_cpu_seconds_total", None] <= cpu.user + cpu.system


def test_several_processes_are_one():
    other = replace(
        STATUS,
        counters={**COUNTERS, "connections": 100},
        closes={1012: 7, 1013: 1},
        backlog_seconds=9.0,
        redis_up=False,
        ready=False,
        instances=1,
        proved=12.0,
    )
    found = samples(STATUS, PREFLIGHT, pickle.loads(pickle.dumps(other)))
    assert found["status2_connections_active", None] == 103
    assert [found["status2_closes_total", code] for code in ("1008", "1012", "1013")] == [1, 7, 3]
    assert found["status2_http_responses_total", "101"] == 10
    assert found["status2_delivery_seconds_count", None] == 12
    assert found["status2_delivery_seconds_sum", None] == 1.5
    assert found["status2_breaches_total", "backlog"] == 14
    assert found["status2_redis_reconnects_total", None] == 16
    assert found["status2_bound", "message_size"] == 65536, "a bound of each"
    assert found["preflight2_connections_active", None] == 3
    worst = {"redis_up": 0, "ready": 0, "redis_instances_total": 2, "redis_proved_seconds": 12, "backlog_seconds": 9}
    assert {name: found[f"status2_{name}", None] for name in worst} == worst


@pytest.mark.parametrize(
    ("known", "worst"), [((None, None), None), ((None, True), True), ((True, False, None), False)], ids=str
)
def test_what_only_some_processes_know(known, worst):
    one = total([replace(PREFLIGHT, key_events=each) for each in known])
    assert one.key_events is worst
    assert total([replace(STATUS, proved=None), STATUS]).proved == 3.5
    assert total([PREFLIGHT]) == PREFLIGHT


def test_bounds_their_use_and_their_breaches():
    found = samples()
    assert found["status2_breaches_total", "backlog"] == 7
    assert found["status2_breaches_total", "heads"] == 0
    assert found["status2_bound", "message_size"] == 65536
    assert found["relay_bound", "live"] == 1 << 28
    assert found["relay_bound_used", "live"] == 5
    assert found["relay_bound", "head_timeout"] == 2.5
    assert ("relay_bound_used", "head_timeout") not in found


def test_no_run_id_is_ever_a_label():
    names = {(name, label) for name, label in samples() if not name.endswith("_bucket") and name != "relay_build_info"}
    assert {label for _, label in names if label and not label.isdecimal()} == {
        *("link", "size", "true", "false"),
        *("backlog", "heads", "message_size", "live", "head_timeout"),
    }
    codes = {int(label) for name, label in names if label and label.isdecimal()}
    assert all(code in range(101, 600) or code in range(1000, 1016) for code in codes)


def test_what_may_be_missing_and_how_sure_that_is():
    found = samples()
    assert found["status2_gaps_total", "link"] == 9
    assert found["status2_gaps_total", "size"] == 1
    assert found["status2_gap_clients_total", "true"] == 10
    assert found["status2_gap_clients_total", "false"] == 11
    assert found["status2_redis_instances_total", None] == 2
    assert found["status2_redis_proved_seconds", None] == 3.5
    assert ("preflight2_redis_proved_seconds", None) not in found, "it cannot be known"
