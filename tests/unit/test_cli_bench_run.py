import resource
import subprocess
import sys

import click
import pytest

from relay.cli import bench_run
from relay.cli.bench_run import Load, Meter, Usage
from relay.errors import RelayError


def test_paths_and_channels_of_a_random_name():
    load = Load.on_own_channels(None)
    paths = load.paths(2, "/prefix")
    channels = load.channels(2)
    assert [path.rpartition(b"/")[0] for path in paths] == [b"/prefix"] * 2
    assert [path.rpartition(b"/")[2] for path in paths] == channels
    assert channels[0].startswith(b"bench-")
    assert (channels[0][-7:], channels[1][-7:]) == (b":load-0", b":load-1")
    assert Load.on_own_channels(None).path != load.path


def test_a_channel_is_the_last_part_of_a_path_decoded():
    assert Load("/x/bench-a%3Bb:c-{i}/?v=2").channels(2) == [b"bench-a;b:c-0", b"bench-a;b:c-1"]
    assert Load("bench-x:wepp").channels(1) == [b"bench-x:wepp"]
    assert Load("bench-x:wepp").paths(1, "") == [b"/bench-x:wepp"]


@pytest.mark.parametrize(
    ("path", "topics", "said"),
    [
        ("/run1:wepp", 1, "only on channels that begin with 'bench-'"),
        ("/bench-x/run1:wepp-{i}", 2, "only on channels that begin with 'bench-'"),
        ("/bench-x:wepp", 2, "has no {i} for the numbers of 2 channels"),
        ("/bench-x:wepp?{i}", 2, "has no {i}"),
    ],
)
def test_nothing_is_published_on_channels_of_others(path, topics, said):
    with pytest.raises(click.UsageError) as error:
        Load(path).channels(topics)
    assert said in error.value.message


def test_cpu_is_the_exact_account_unless_a_thread_has_ended():
    before = Usage(cpu=1.0, user=0, ticks=1.0, memory=0)
    assert Usage(1.234567, 0, 1.24, 0).since(before) == pytest.approx(0.234567)
    assert Usage(0.5, 0, 1.24, 0).since(before) == pytest.approx(0.24)


def test_a_meter_reads_a_tree_and_of_nothing_nothing():
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
    with subprocess.Popen([sys.executable, "-c", code], start_new_session=True) as process:
        try:
            meter = Meter(process.pid)
            before = meter.read()
            while (now := meter.read()).since(before) < 0.05 or now.user <= before.user:
                pass
            assert meter.read(memory=True).memory > 1 << 20
            assert meter.read().memory == 0
        finally:
            subprocess.run(["pkill", "-9", "-s", str(process.pid)], check=True)  # the session started above
    with pytest.raises(RelayError, match="has ended by itself"):
        meter.read()
    assert Meter(None).read(memory=True) == Usage(0, 0, 0, 0)


def test_percentiles_of_a_histogram():
    histogram = [(10.0, 50), (20.0, 49), (30.0, 1)]
    assert bench_run.percentiles(histogram) == {"p50": 10.0, "p90": 20.0, "p99": 20.0, "p999": 30.0, "max": 30.0}
    assert bench_run.percentiles([(7.0, 1)]) == dict.fromkeys(("p50", "p90", "p99", "p999", "max"), 7.0)
    assert bench_run.percentiles([]) is None


def test_the_file_limit_is_raised_and_said_where_it_is_too_low(monkeypatch):
    limits = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: (100, 1000))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limit: limits.append(limit))
    bench_run.raise_file_limit(936)
    assert limits == [(1000, 1000)]
    with pytest.raises(RelayError, match=r"937 clients need 1001 open files and this process may have 1000: .*936"):
        bench_run.raise_file_limit(937)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (100, resource.RLIM_INFINITY))
    bench_run.raise_file_limit(10**6)


@pytest.mark.parametrize(("memory", "opened", "each"), [(512_000, 500, 1.0), (512_000, 499, None), (-1, 500, None)])
def test_memory_of_a_client_is_unknown_where_it_would_be_noise(memory, opened, each):
    assert bench_run._each(memory, opened) == each
