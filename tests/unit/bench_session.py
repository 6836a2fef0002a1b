"""The JSON of a `relay bench`, made up."""

RUN = {
    "server": "relay",
    "scenario": "hot",
    "round": 0,
    "clients": 1000,
    "topics": 1,
    "size": 100,
    "opened": 1000,
    "open_at_end": 1000,
    "refused": {},
    "closed": {},
    "undecided": 0,
    "trouble": "",
    "published": 3000,
    "delivered": 3000000,
    "lost": 0,
    "cut_off": 0,
    "duplicated": 0,
    "reordered": 0,
    "damaged": 0,
    "seconds": 1.2,
    "frames_per_s": 1e6,
    "bytes_per_s": 1.2e8,
    "connects_per_s": 2e4,
    "stalled_out": False,
    "broke_off": "",
    "rate": 0.0,
    "published_per_s": 2500.0,
    "handshake_cpu_us": 27.0,
    "cpu_us_per_frame": 0.25,
    "user_us_per_frame": 0.1,
    "kb_per_conn": 0.4,
    "base_mb": 37.0,
    "idle_cpu_percent": None,
    "latency_us": {"p50": 200.0, "p90": 300.0, "p99": 400.0, "p999": 500.0, "max": 600.0},
    "websocket_latency_us": {"p50": 200.0, "p90": 300.0, "p99": 400.0, "p999": 500.0, "max": 600.0},
    "stream_latency_us": None,
    "handshake_us": {"p50": 900.0, "p90": 950.0, "p99": 990.0, "p999": 999.0, "max": 1000.0},
    "latency_histogram": [[100.0, 100], [200.0, 400], [300.0, 400], [400.0, 90], [500.0, 9], [600.0, 1]],
}


def a_run(**changed):
    return RUN | changed


def a_session(runs, *, rate=0, **changed):
    scenario = {
        "about": "What a <burst> costs.",
        "clients": 1000,
        "topics": 1,
        "messages": 3000,
        "window": 0 if rate else 64,
    }
    scenario |= {
        "rate": rate,
        "size": 100,
        "text": "plain",
        "batch": 1,
        "stalled": 0,
        "streams": 0,
        "rest": 0,
        "seconds": 0,
    }
    return {
        "format": 1,
        "command": "relay bench --peers bun",
        "date": "2026-11-23T14:00:00Z",
        "seconds": 9.5,
        "machine": {
            "cpu": "Some CPU",
            "cores": 2,
            "memory_gb": 7.8,
            "os": "Debian",
            "kernel": "6.1",
            "python": "3.11.7",
        },
        "versions": {"relay": "0.1.0", "build": "release", "uvloop": None},
        "mode": "local",
        "url": None,
        "skipped": [],
        "misses": [],
        "interrupted": False,
        "runs": runs,
        "servers": {run["server"]: {"title": f"Title of {run['server']}"} for run in runs},
        "scenarios": {run["scenario"]: scenario for run in runs},
        **changed,
    }
