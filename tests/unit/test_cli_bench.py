"""`relay bench` on the command line, with servers and load replaced: what is refused, printed, and returned."""

import json
import signal
import socket
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from relay.cli import bench, bench_run, bench_servers
from relay.cli.commands import INTERRUPTED, relay
from relay.errors import CoreMissing, RelayError, SloMissed

URL = ("--url", "ws://example.test")
PERCENTILES = {"p50": 1e3, "p90": 1e3, "p99": 2e3, "p999": 3e3, "max": 3e3}


def measured(scenario, target, load, tell):
    """What a run of a relay that does all well looks like."""
    tell(0.5)
    run = bench_run._identity(scenario, target)
    run |= {"connects_per_s": 1.0, "handshake_us": PERCENTILES, "handshake_cpu_us": None, "kb_per_conn": None}
    run |= {"base_mb": None, "idle_cpu_percent": None, "opened": scenario.clients, "open_at_end": scenario.clients}
    run |= {"refused": {}, "closed": {}, "undecided": 0, "trouble": "", "seconds": 2.0, "delivered": 7}
    if target.publisher:
        run |= {"lost": 0, "cut_off": 0, "duplicated": 0, "reordered": 0, "damaged": 0, "latency_us": PERCENTILES}
        run |= {"latency_histogram": [[1000.0, 5], [2000.0, 2]]}
    return run


@pytest.fixture
def call(monkeypatch):
    """Runs `relay bench --url ...`, its runs replaced by `measured` or what is given."""

    def call(*args, runs=measured):
        monkeypatch.setattr(bench_servers, "remote", lambda url: bench_servers.Address(2, ("127.0.0.1", 1), "h"))
        monkeypatch.setattr(bench_servers, "redis", lambda url: socket.socket())
        monkeypatch.setattr(bench_run, "measure", runs)
        return CliRunner().invoke(relay, ["bench", *URL, *args])

    return call


def test_a_table_on_stdout_and_a_line_for_each_run_on_stderr(call):
    result = call("--redis-url", "redis://x", "--scenario", "quick,hot", "--rounds", "2")
    assert result.exit_code == 0, result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["scenario", "1/s", "quick", "hot"]
    assert len(result.stderr.splitlines()) == 4
    assert result.stderr.startswith("relay: run 1 of 4: relay, quick: 300 of 300 clients open, 7 messages in 2.00 s\n")


def test_json_on_stdout_is_alone_there(call, tmp_path):
    result = call("--redis-url", "redis://me:secret@x", "--json", "-", "--header", "Cookie: secret")
    found = json.loads(result.stdout)
    assert (found["format"], found["mode"], found["url"], found["interrupted"]) == (1, "remote", URL[1], False)
    assert found["runs"][0]["latency_histogram"] == [[1000.0, 5], [2000.0, 2]]
    assert found["runs"][0]["round"] == 0
    assert found["servers"] == {"relay": {"title": "relay at h"}}
    assert found["scenarios"]["quick"]["clients"] == 300
    assert found["command"].startswith("relay bench --url ws://example.test --redis-url 'redis://***@x' --json -")
    assert "secret" not in result.stdout
    path = tmp_path / "out.json"
    assert "scenario" in call("--json", str(path)).stdout
    assert json.loads(path.read_text())["misses"] == []


def test_watching_knows_nothing_of_loss_and_says_so(call):
    result = call("--duration", "2s")
    assert result.exit_code == 0
    assert "? unknown" in result.stdout


def test_watching_takes_ten_seconds_where_nothing_is_said(call):
    seen = []
    call(runs=lambda scenario, *rest: seen.append(scenario) or measured(scenario, *rest))
    assert (seen[0].messages, seen[0].seconds) == (0, 10.0)


def test_each_missed_bound_is_a_sentence_and_the_exit_code_7(call):
    result = call("--redis-url", "redis://x", "--max-p99", "1ms", "--min-rate", "1")
    assert result.exit_code == SloMissed.exit_code == 7
    assert "relay: p99 latency: 1 ms asked for, 2 ms seen (relay, quick, 300 clients)\n" in result.stderr
    assert "relay: rate: 1 frames/s asked for, 0 seen (relay, quick, 300 clients)\n" in result.stderr
    assert "scenario" in result.stdout


def test_a_sweep_runs_each_scenario_with_each_number(call):
    seen = []
    call("--sweep", "5,50", "--scenario", "unicast,hot", runs=lambda s, *rest: seen.append(s) or measured(s, *rest))
    assert [(s.name, s.clients, s.topics) for s in seen] == [
        ("unicast", 5, 5), ("unicast", 50, 50), ("hot", 5, 1), ("hot", 50, 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("redis://h:6379/2", "redis://h:6379/2"),
        ("redis://me:s3cret@h:6379", "redis://***@h:6379"),
        ("redis://:s3cr@et@h:6379", "redis://***@h:6379"),
        ("redis://:s3c/ret@h", "redis://***@h"),
        ("redis://:s3c?ret@h", "redis://***@h"),
        ("unix:///x?password=s3cret", "unix:///x?***"),
        ("redis://h:1/0?password=s3cret", "redis://h:1/0?***"),
        ("--redis-url=redis://:s3cret@h", "--redis-url=redis://***@h"),
        ("/x?access_token=s3cret", "/x?***"),
        ("/bench-1:load-{i}", "/bench-1:load-{i}"),
    ],
)
def test_what_is_shown_of_a_call_has_no_secret(given, shown):
    assert bench._without_secrets(given) == shown


@pytest.mark.parametrize("clients", ["5", "5,20"])
def test_a_sweep_makes_a_load_each_time(call, clients):
    result = call("--sweep", clients, "--stalled", "5")
    assert (result.exit_code, "fewer than the 5 clients, or nobody reads" in result.stderr) == (2, True)


def test_a_hangup_that_was_turned_off_stays_off(call):
    """As nohup does."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        result = call(runs=lambda *args: signal.raise_signal(signal.SIGHUP) or measured(*args))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert result.exit_code == 0


def test_a_publisher_that_broke_off_leaves_what_was_measured(call):
    broken = {"broke_off": "publishing ended early: end of file"}
    result = call("--redis-url", "redis://x", "--json", "-", runs=lambda *args: measured(*args) | broken)
    assert result.exit_code == 1
    assert "publishing ended early: end of file" in result.stderr
    assert json.loads(result.stdout)["runs"][0]["delivered"] == 7


def test_ctrl_c_writes_what_there_is(call):
    def once(scenario, *rest):
        if scenario.name == "hot":
            raise KeyboardInterrupt
        return measured(scenario, *rest)

    result = call("--scenario", "quick,hot", "--json", "-", runs=once)
    assert result.exit_code == INTERRUPTED
    found = json.loads(result.stdout)
    assert (found["interrupted"], [run["scenario"] for run in found["runs"]]) == (True, ["quick"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_ends_are_as_ctrl_c(call, number, request):
    known = signal.signal(number, signal.SIG_DFL)  # under nohup, SIGHUP is ignored
    request.addfinalizer(lambda: signal.signal(number, known))
    before = signal.getsignal(number)

    def cut_short(*args):
        run = measured(*args)
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            run["interrupted"] = True
        return run

    result = call("--json", "-", "--rounds", "3", runs=cut_short)
    assert result.exit_code == INTERRUPTED
    assert len(json.loads(result.stdout)["runs"]) == 1
    assert signal.getsignal(number) is before


def test_an_error_between_runs_loses_none_of_those_before(call):
    def fails(scenario, *rest):
        if scenario.name == "hot":
            raise RelayError("the measured server has ended by itself")
        return measured(scenario, *rest)

    result = call("--scenario", "quick,hot", "--json", "-", runs=fails)
    assert result.exit_code == 1
    assert len(json.loads(result.stdout)["runs"]) == 1
    assert result.stderr.endswith("relay: the measured server has ended by itself\n")
    assert call("--scenario", "hot", "--json", "-", runs=fails).stdout == ""


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--window", "1", "--rate", "1"], "--window and --rate exclude each other"),
        (["--messages", "1", "--duration", "1s"], "--messages and --duration exclude each other"),
        (["--clients", "1", "--sweep", "1"], "--sweep and --clients exclude each other"),
        ([*URL, "--peers", "bun"], "--url and --peers exclude each other"),
        ([*URL, "--window", "1"], "--window needs --redis-url"),
        ([*URL, "--max-p99", "1s"], "--max-p99 needs --redis-url"),
        ([*URL, "--max-loss", "0"], "--max-loss needs --redis-url"),
        (["--redis-url", "redis://x"], "--redis-url goes with --url"),
        (["--scenario", "lukewarm"], "--scenario lukewarm: there is none; there are quick, hot"),
        (["--max-p99", "50"], "'50' a duration needs a unit"),
        (["--sweep", "5,x"], "no list of numbers"),
        (["--header", "secret"], "no header field such as"),
        (["--header", "A: b\r\nC: d"], "no header field such as"),
        (["--path", "/run1:wepp"], "only on channels that begin with 'bench-'"),
        (["--stalled", "300"], "scenario quick: stalled = 300"),
        (["--json", "/no/such/dir/x.json"], "--json /no/such/dir/x.json: there is no such directory"),
        (["--report", "/no/such/dir/x.html"], "--report /no/such/dir/x.html: there is no such directory"),
    ],
)
def test_a_wrong_command_line_is_a_sentence(args, said):
    result = CliRunner().invoke(relay, ["bench", *args])
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())


def test_peers_that_are_not_installed_are_named_and_skipped(capsys):
    here = bench_servers.Recipe("a", "A", [])
    gone = bench_servers.Recipe("b", "B", [], needs=["no-such-program"], install="apt-get install b")
    skipped = []
    assert bench._installed([here, gone], skipped) == [here]
    assert skipped == [{"server": "b", "why": "not installed (no-such-program): apt-get install b"}]
    assert capsys.readouterr().err == "relay: skipped: b: not installed (no-such-program): apt-get install b\n"
    assert bench._installed([], []) == []
    with pytest.raises(click.UsageError, match="none of them can run here"):
        bench._installed([gone], [])


@pytest.mark.parametrize(
    ("local", "charts", "module"),
    [(True, False, "psutil"), (False, False, "relay._swarm"), (False, True, "matplotlib")],
)
def test_what_is_not_installed_is_named(monkeypatch, local, charts, module):
    find = bench.importlib.util.find_spec
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None if name == module else find(name))
    with pytest.raises(CoreMissing, match=rf"relay bench needs {module}, .*pip install 'weppcloud-relay\[bench\]'"):
        bench._require(local, charts=charts)


def test_a_bar_is_drawn_on_a_terminal(monkeypatch):
    drawn = []
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with bench.Progress(2) as progress:
        monkeypatch.setattr(progress.bar, "update", lambda steps, item: drawn.append((steps, item)))
        with progress.run("relay", bench_run.Scenario("hot", "", 5, 1)) as tell:
            tell(0.5)
        progress.say({})
    assert drawn[0] == (0, "relay: hot, 5 clients")
    assert drawn[-1] == (bench.STEPS, "relay: hot, 5 clients")


def test_its_help_costs_nothing_heavy():
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "relay", "bench", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in result.stderr.splitlines()}
    assert not imported & {"psutil", "matplotlib", "redis", "pydantic", "asyncio"}
