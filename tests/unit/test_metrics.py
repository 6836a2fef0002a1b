"""The names that dashboards know (contract, section 6), and a bound beside its breaches."""

from prometheus_client.parser import text_string_to_metric_families

from relay.metrics import Bound, Reading, exposition

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
}
BREACHES = {"backlog": 7, "heads": 0}
OWN = [Bound("message_size", "bytes", 65536)]
COMMON = [Bound("live", "bytes", 1 << 28, 5), Bound("head_timeout", "seconds", 2.5)]


def samples():
    readings = [
        Reading(
            "status",
            COUNTERS,
            {1013: 2, 1008: 1},
            redis_up=True,
            reconnects=8,
            gaps=9,
            instances=2,
            proved=3.5,
            breaches=BREACHES,
            bounds=OWN,
        ),
        Reading("preflight", COUNTERS, {}, redis_up=False, reconnects=0),
    ]
    text = exposition(lambda: readings, lambda: COMMON).decode()
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


def test_closes_by_code_and_the_state_of_redis():
    found = samples()
    assert found["status2_closes_total", "1013"] == 2
    assert found["status2_closes_total", "1008"] == 1
    assert found["status2_redis_up", None] == 1
    assert found["preflight2_redis_up", None] == 0


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
    assert {label for _, label in samples()} == {
        None,
        *("1013", "1008", "link", "size", "true", "false"),
        *("backlog", "heads", "message_size", "live", "head_timeout"),
    }


def test_what_may_be_missing_and_how_sure_that_is():
    found = samples()
    assert found["status2_gaps_total", "link"] == 9
    assert found["status2_gaps_total", "size"] == 1
    assert found["status2_gap_clients_total", "true"] == 10
    assert found["status2_gap_clients_total", "false"] == 11
    assert found["status2_redis_instances_total", None] == 2
    assert found["status2_redis_proved_seconds", None] == 3.5
    assert ("preflight2_redis_proved_seconds", None) not in found, "it cannot be known"
