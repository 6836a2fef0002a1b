import pytest

from relay.cli import bench_result
from relay.cli.bench_result import Bounds

LATENCY = {"p50": 200.0, "p90": 300.0, "p99": 71200.0, "p999": 80000.0, "max": 90000.0}

HISTOGRAM = [(200.0, 500), (300.0, 400), (71200.0, 90), (80000.0, 9), (90000.0, 1)]


def run(server="relay", number=0, **more):
    return {
        "server": server, "scenario": "hot", "round": number, "clients": 100, "topics": 1, "size": 100,
        "opened": 100, "open_at_end": 100, "refused": {}, "closed": {}, "undecided": 0, "trouble": "",
        "published": 10, "delivered": 1000, "lost": 0, "cut_off": 0, "duplicated": 0, "reordered": 0, "damaged": 0,
        "seconds": 1.0, "frames_per_s": 1000.0, "bytes_per_s": 1e5, "connects_per_s": 5000.0, "stalled_out": False,
        "broke_off": "", "rate": 0.0, "published_per_s": 10.0,
        "handshake_cpu_us": 30.0, "cpu_us_per_frame": 2.0, "user_us_per_frame": 0.5, "kb_per_conn": 0.3,
        "base_mb": 30.0, "idle_cpu_percent": None, "latency_us": LATENCY, "handshake_us": LATENCY,
        "websocket_latency_us": LATENCY, "stream_latency_us": None,
        "latency_histogram": HISTOGRAM, **more,
    }  # fmt: skip


def missed(*runs, stalled=0, **bounds):
    return bench_result.misses(list(runs), {"hot": {"stalled": stalled}}, Bounds(**bounds))


def test_rounds_become_medians_and_sums():
    rounds = [
        run(frames_per_s=rate, lost=1, refused={"503": 2}, opened=100 - i, closed={"1013": i}, number=i)
        for i, rate in enumerate([5.0, 1.0, 3.0])
    ]
    [one] = bench_result.merged(rounds)
    assert (one["frames_per_s"], one["lost"], one["opened"], one["rounds"]) == (3.0, 3, 98, 3)
    assert (one["refused"], one["closed"]) == ({"503": 6}, {"1013": 3})
    assert one["latency_us"] == LATENCY


def test_one_bad_round_is_in_the_percentiles_of_all():
    rounds = [run(latency_histogram=[(200.0, 100)]), run(latency_histogram=[(200.0, 95), (5000.0, 5)], number=1)]
    rounds[1]["handshake_us"] = LATENCY | {"max": 100000.0}
    [one] = bench_result.merged(rounds)
    assert one["latency_us"] == {"p50": 200.0, "p90": 200.0, "p99": 5000.0, "p999": 5000.0, "max": 5000.0}
    assert (one["handshake_us"]["p99"], one["handshake_us"]["max"]) == (71200.0, 100000.0)


def test_both_kinds_of_clients_are_told_apart_where_there_are_both():
    both = run(stream_latency_us=LATENCY | {"p50": 400.0})
    *_, remark = bench_result.table([both, both | {"round": 1}]).splitlines()
    assert remark == (
        "relay, hot, 100 clients: p50 and p99 of websockets 0.20 and 71.20 ms, of event streams 0.40 and 71.20 ms"
    )
    for alone in (run(), run(websocket_latency_us=None, stream_latency_us=LATENCY)):
        assert "event streams" not in bench_result.table([alone])


def test_what_nobody_knows_stays_unknown():
    [one] = bench_result.merged([run(lost=None, latency_us=None, latency_histogram=[], idle_cpu_percent=None)] * 2)
    assert (one["lost"], one["latency_us"], one["idle_cpu_percent"]) == (None, None, None)


def test_servers_and_scenarios_keep_their_order():
    runs = [run(server, scenario=name) for name in ("z", "a") for server in ("relay", "bun")]
    assert [(r["scenario"], r["server"]) for r in bench_result.merged(runs)] == [
        ("z", "relay"), ("z", "bun"), ("a", "relay"), ("a", "bun"),
    ]  # fmt: skip


def test_the_table_is_aligned_with_units_in_its_head():
    head, units, line, other = bench_result.table([run(), run("bun", frames_per_s=12345.6)]).splitlines()
    assert head.split()[:6] == ["scenario", "clients", "server", "frames", "cpu", "user"]
    assert "us/frame" in units
    assert line.split()[:5] == ["hot", "100", "relay", "1000", "2.000"]
    assert other.split()[:5] == ["hot", "100", "bun", "12346", "2.000"]
    assert head.index("frames") + 6 == line.index("1000") + 4 == other.index("12346") + 5


def test_columns_that_nobody_filled_are_left_out():
    assert "rest" not in bench_result.table([run()])
    assert "rest" in bench_result.table([run(idle_cpu_percent=1.5)])


def test_unknown_is_a_question_mark_and_said():
    text = bench_result.table([run(lost=None, duplicated=None, reordered=None, damaged=None, latency_us=None)])
    assert text.splitlines()[2].split()[-2:] == ["?", "?"]
    assert text.splitlines()[3].startswith("? unknown")


def test_ratios_are_those_of_each_round():
    runs = [
        run(number=0, cpu_us_per_frame=2.0), run("yardstick", number=0, cpu_us_per_frame=1.0),
        run(number=1, cpu_us_per_frame=30.0), run("yardstick", number=1, cpu_us_per_frame=10.0),
    ]  # fmt: skip
    *_, head, line = bench_result.table(runs).splitlines()
    assert head.split() == ["times", "the", "yardstick's", "frames", "cpu", "p50", "p99", "handshake"]
    assert line.split() == ["hot", "100", "relay", "1.00", "2.50", "1.00", "1.00", "1.00"]


def test_refusals_and_closes_stand_below_the_table():
    one = run(refused={"0": 1, "503": 7}, closed={"1013": 2}, undecided=3, trouble="connect: Connection reset")
    text = bench_result.table([one])
    assert "refused: 1 with no answer, 7 with 503, 3 undecided in time (connect: Connection reset)" in text
    assert "closed: 2 with 1013" in text


def test_nothing_measured_is_said():
    assert bench_result.table([]) == "nothing was measured"


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ({"max_p99": 0.05}, "p99 latency: 50 ms asked for, 71.2 ms seen (relay, hot, 100 clients)"),
        ({"max_connect_p99": 0.0712}, None),
        ({"max_connect_p99": 0.07}, "p99 time to connect: 70 ms asked for, 71.2 ms seen (relay, hot, 100 clients)"),
        ({"min_rate": 1000}, None),
        ({"min_rate": 1001}, "rate: 1001 frames/s asked for, 1000 seen (relay, hot, 100 clients)"),
        ({"min_open": 101}, "open at the end: 101 clients asked for, 100 seen (relay, hot, 100 clients)"),
    ],
)
def test_bounds(bounds, said):
    assert missed(run(), **bounds) == ([said] if said else [])
    assert missed(run("bun"), **bounds) == []


def test_a_bound_on_what_was_not_seen_is_missed():
    assert missed(run(latency_us=None, latency_histogram=[]), max_p99=1) == [
        "p99 latency: 1000 ms asked for, nothing seen (relay, hot, 100 clients)"
    ]


@pytest.mark.parametrize("name", ["lost", "duplicated", "reordered", "damaged"])
def test_a_relay_may_do_nothing_wrong(name):
    assert missed(run(**{name: 2})) == [f"{name}: no message asked for, 2 seen (relay, hot, 100 clients)"]
    assert missed(run(**{name: None})) == []


def test_a_bound_for_loss_takes_the_place_of_none():
    assert missed(run(lost=2), max_loss=2) == []
    assert missed(run(lost=3), max_loss=2) == ["lost: at most 2 messages asked for, 3 seen (relay, hot, 100 clients)"]


def test_clients_not_opened_are_a_miss_unless_a_bound_lets_them():
    few = run(opened=90, open_at_end=90, refused={"503": 10})
    assert missed(few) == ["opened: 100 clients asked for, 90 seen, refused: 10 with 503 (relay, hot, 100 clients)"]
    assert missed(few, min_open=90) == []


def test_clients_closed_are_a_miss_but_not_those_that_never_read():
    gone = run(open_at_end=90, closed={"1006": 10})
    assert missed(gone, stalled=10) == []
    assert missed(gone, stalled=9) == [
        "closed: no client that reads asked for, 1 seen (10 with 1006) (relay, hot, 100 clients)"
    ]
    # One that never reads reads no close frame: a 1013 was a reader's.
    assert missed(run(open_at_end=99, closed={"1013": 1}), stalled=10) == [
        "closed: no client that reads asked for, 1 seen (1 with 1013) (relay, hot, 100 clients)"
    ]


def test_what_went_out_without_the_closed_counts_against_a_bound_for_loss():
    gone = run(open_at_end=90, closed={"1012": 10}, cut_off=1000)
    closed = "10 seen (10 with 1012; 1,000 messages went out without them) (relay, hot, 100 clients)"
    assert missed(gone) == [f"closed: no client that reads asked for, {closed}"]
    assert missed(gone, min_open=90) == []
    assert missed(gone, min_open=90, max_loss=1000) == []
    assert missed(gone, min_open=90, max_loss=999) == [
        "lost: at most 999 messages asked for, 0 seen, and 1000 by clients that were closed (relay, hot, 100 clients)"
    ]


def test_nothing_at_all_is_a_miss():
    assert missed(run(delivered=0)) == [
        "messages: 10 published and none came back; is that the Redis of this relay? (relay, hot, 100 clients)"
    ]
    assert missed(run(delivered=0, published=0)) == []


def test_a_loop_that_stood_still_is_a_miss():
    assert missed(run(stalled_out=True)) == [
        "messages: all asked for, and none came back for 10 s (relay, hot, 100 clients)"
    ]


def test_remarks_say_what_was_wrong_and_what_was_not_reached():
    text = bench_result.table([run(duplicated=2, damaged=1, rate=1000.0, published_per_s=979.0)])
    assert text.splitlines()[-2:] == [
        "relay, hot, 100 clients: 2 duplicated, 1 damaged",
        "relay, hot, 100 clients: published were 979 messages a second, not 1,000",
    ]
    assert "published" not in bench_result.table([run(rate=1000.0, published_per_s=980.0)])
    assert "not 1,000" not in bench_result.table([run(rate=1000.0, published=0, published_per_s=0.0)])
    assert "ended early: end of file" in bench_result.table([run(broke_off="publishing ended early: end of file")])


def test_machine_and_versions():
    assert set(bench_result.machine()) == {"cpu", "cores", "memory_gb", "os", "kernel", "python"}
    assert bench_result.versions()["relay"]
