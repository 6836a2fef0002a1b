"""`relay bench` with real relays, a real Redis, and servers that misbehave."""

import asyncio
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress

import psutil
import pytest
import redis
import trustme
from click.testing import CliRunner
from websockets.asyncio.server import serve

from relay.cli import bench_servers
from relay.cli.commands import relay as command

FEW = ("--clients", "12", "--topics", "3", "--messages", "60", "--window", "8")


def bench(*args, **env):
    """A run in a process of its own: (its result, the JSON it printed or None)."""
    call = [sys.executable, "-m", "relay", "bench", "--json", "-", *args]
    done = subprocess.run(call, env={**os.environ, **env}, capture_output=True, text=True, timeout=180)
    assert "Traceback" not in done.stderr, done.stderr
    return done, json.loads(done.stdout) if done.stdout else None


def below(process):
    """All processes that it started and that live."""
    return psutil.Process(process.pid).children(recursive=True)


def connections(processes):
    """How many these have; the short-lived, such as `redis-server --version`, may be gone meanwhile."""
    count = 0
    for process in processes:
        with suppress(psutil.NoSuchProcess, FileNotFoundError):
            count += sum(one.status == "ESTABLISHED" for one in process.net_connections())
    return count


# ---- a relay started here ----


def test_a_relay_of_its_own_is_measured():
    done, result = bench(*FEW, "--rounds", "2")
    assert (done.returncode, result["misses"]) == (0, [])
    assert [run["round"] for run in result["runs"]] == [0, 1]
    for run in result["runs"]:
        assert (run["opened"], run["open_at_end"], run["refused"], run["closed"]) == (12, 12, {}, {})
        assert (run["published"], run["delivered"]) == (60, 60 * 4)
        assert [run[name] for name in ("lost", "duplicated", "reordered", "damaged")] == [0] * 4
        assert sum(count for _, count in run["latency_histogram"]) == 240
        assert 0 < run["latency_us"]["p50"] <= run["latency_us"]["p99"] <= run["latency_us"]["max"]
        assert run["handshake_cpu_us"] > 0 < run["cpu_us_per_frame"]
        assert run["base_mb"] > 5
        assert run["bytes_per_s"] > run["frames_per_s"] * 100
    assert result["mode"] == "local"
    assert result["versions"]["redis-server" if "redis-server" in result["versions"] else "valkey-server"]


@pytest.mark.parametrize("text", ["escapes", "accents"])
def test_odd_texts_arrive_intact(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(
        f'[odd]\nabout = "x"\nclients = 4\ntopics = 2\nmessages = 20\nrate = 500\ntext = "{text}"\nrest = 0.1\n'
    )
    done, result = bench("--scenarios", str(path), "--stalled", "1", "--size", "3000")
    assert (done.returncode, result["misses"]) == (0, [])
    [run] = result["runs"]
    assert (run["scenario"], run["delivered"], run["damaged"]) == ("odd", 30, 0)
    assert run["idle_cpu_percent"] >= 0


def test_for_so_long():
    _, result = bench("--clients", "4", "--topics", "1", "--window", "4", "--duration", "300ms")
    [run] = result["runs"]
    assert run["seconds"] >= 0.3
    assert run["delivered"] == run["published"] * 4


# ---- peers ----


@pytest.fixture
def peers(monkeypatch, tmp_path):
    """Runs `relay bench --peers` with a bench/peers.toml of that text: (result, JSON or None)."""

    def run(text, *args):
        path = tmp_path / "peers.toml"
        path.write_text(text)
        monkeypatch.setattr(bench_servers, "PEERS", path)
        monkeypatch.setattr(bench_servers.peers, "__defaults__", (path,))
        done = CliRunner().invoke(command, ["bench", *FEW, "--json", "-", *args], catch_exceptions=False)
        return done, json.loads(done.stdout) if done.stdout else None

    return run


def table(name, command, **more):
    words = {"title": f"The {name}", "command": command, **more}
    return f"[peer.{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in words.items())


def test_peers_run_in_turn_with_the_relay(peers):
    twin = bench_servers.own().command
    env = {"PYTHONPATH": str(bench_servers.PEERS.parent.parent)}
    text = table("yardstick", ["env", *(f"{k}={v}" for k, v in env.items()), *twin], needs=["env"])
    text += table("broken", ["{python}", "-c", "raise SystemExit('no luck')"])
    text += table("gone", ["gone"], needs=["no-such-program"], install="apt-get install gone")
    done, result = peers(text, "--peers", "yardstick,broken,gone", "--rounds", "2")
    assert (done.exit_code, result["misses"]) == (0, [])
    assert [(run["server"], run["round"]) for run in result["runs"]] == [
        ("relay", 0), ("yardstick", 0), ("relay", 1), ("yardstick", 1),
    ]  # fmt: skip
    assert list(result["servers"]) == ["relay", "yardstick"]
    assert [one["server"] for one in result["skipped"]] == ["gone", "broken"]
    assert "no luck" in result["skipped"][1]["why"]
    assert "relay: skipped: gone: not installed (no-such-program): apt-get install gone\n" in done.stderr


def test_a_peer_that_swallows_messages_is_shown_but_held_against_nobody(peers, tmp_path):
    text = table("deaf", ["{python}", "{bench}/deaf.py", "{port}"])
    (tmp_path / "deaf.py").write_text(
        "import asyncio, sys\nfrom websockets.asyncio.server import serve\n"
        "async def main():\n    async with serve(lambda s: s.wait_closed(), '127.0.0.1', int(sys.argv[1])):\n"
        "        await asyncio.Future()\nasyncio.run(main())\n"
    )
    done, result = peers(text, "--peers", "deaf", "--window", "60")
    assert (done.exit_code, result["misses"]) == (0, [])
    deaf = result["runs"][1]
    assert (deaf["delivered"], deaf["lost"], deaf["opened"]) == (0, 240, 12)


# ---- a relay somewhere ----


def test_a_relay_elsewhere_through_its_redis(relay, redis_url):
    done, result = bench("--url", relay("status").status_url, "--redis-url", redis_url, *FEW, "--max-p99", "1m")
    assert (done.returncode, result["misses"], result["mode"]) == (0, [], "remote")
    [run] = result["runs"]
    assert (run["delivered"], run["lost"], run["cpu_us_per_frame"], run["base_mb"]) == (240, 0, None, None)
    assert run["latency_us"]["p50"] > 0


@contextmanager
def under_load(server, url, seconds):
    """A load test of a relay somewhere that is on its way: its process, whose JSON comes at the end."""
    call = [sys.executable, "-m", "relay", "bench", "--json", "-", "--url", server.status_url, "--redis-url", url]
    call += [*FEW[:4], "--rate", "100", "--duration", seconds]
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            while connections([psutil.Process(process.pid)]) < 13:  # 12 clients and the publisher
                assert process.poll() is None
            threading.Event().wait(2.0)  # messages are on their way
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_relay_that_goes_is_a_miss_and_so_is_what_went_out_without_it(relay, redis_url, number):
    server = relay("status")
    with under_load(server, redis_url, "5m") as process:
        server.process.send_signal(number)
        out, err = process.communicate(timeout=60)  # for nobody is left to publish to
    [run] = json.loads(out)["runs"]
    code = "1006" if number == signal.SIGKILL else "1012"
    assert process.returncode == 7
    assert (run["closed"], run["open_at_end"], run["lost"]) == ({code: 12}, 0, 0)
    assert run["cut_off"] > 0
    assert f"relay: closed: no client that reads asked for, 12 seen (12 with {code}; {run['cut_off']} messages" in err
    assert run["published"] * 4 == run["delivered"] + run["cut_off"]


def test_a_redis_that_goes_leaves_what_was_measured(relay, redis_server):
    server = relay("status", env={"REDIS_URL": redis_server.url})
    with under_load(server, redis_server.url, "5m") as process:
        redis_server.kill()
        out, err = process.communicate(timeout=60)
    [run] = json.loads(out)["runs"]
    assert process.returncode == 1
    assert "relay: publishing ended early: " in err
    assert run["delivered"] > 0


@pytest.mark.parametrize("url", ["ws://127.0.0.1:1/run1:wepp", "ws://127.0.0.1:1/x?token=a", "ws://127.0.0.1:1#here"])
def test_a_url_with_more_than_an_address_is_a_sentence(url):
    done, _ = bench("--url", url)
    assert done.returncode == 2
    assert "goes into --path, as --path '/run1:wepp?v=2'" in " ".join(done.stderr.split())
    assert "token=a" not in done.stderr


def test_watching_counts_what_comes_and_knows_no_loss(relay, redis_url):
    server = relay("status")
    call = [sys.executable, "-m", "relay", "bench", "--json", "-", "--url", server.status_url]
    call += ["--clients", "4", "--topics", "1", "--path", "/run1:wepp", "--duration", "3s"]
    with subprocess.Popen(call, stdout=subprocess.PIPE) as process, redis.Redis.from_url(redis_url) as link:
        while process.poll() is None:
            link.publish("run1:wepp", "hello")
        result = json.loads(process.stdout.read())
    [run] = result["runs"]
    assert process.returncode == 0
    assert run["delivered"] > 0
    assert run["frames_per_s"] > 0
    assert [run[name] for name in ("lost", "duplicated", "reordered", "damaged", "latency_us")] == [None] * 5


def test_refusals_are_told_with_status_and_count(relay):
    server = relay("status", env={"RELAY_MAX_CONNECTIONS": "16"})
    done, result = bench("--url", server.status_url, "--clients", "20", "--duration", "100ms")
    assert done.returncode == 7
    [run] = result["runs"]
    refused = 20 - run["opened"]
    assert (refused >= 4, run["refused"]) == (True, {"503": refused})
    assert f"opened: 20 clients asked for, {run['opened']} seen, refused: {refused} with 503" in done.stderr
    relaxed = ("--min-open", "0", "--clients", "20", "--duration", "100ms")
    assert bench("--url", server.status_url, *relaxed)[0].returncode == 0


def test_origin_and_header_reach_the_relay(relay):
    url = relay("status", env={"STATUS_ALLOWED_ORIGINS": "https://good.example"}).status_url
    few = ("--url", url, "--clients", "2", "--duration", "50ms")
    assert bench(*few, "--origin", "https://good.example", "--header", "X-Test: 1")[0].returncode == 0
    done, result = bench(*few, "--origin", "https://evil.example")
    assert (done.returncode, result["runs"][0]["refused"]) == (7, {"403": 2})


def test_a_redis_that_is_not_the_relays_is_seen_by_what_is_lost(relay, new_redis):
    other = new_redis()
    done, result = bench(
        "--url", relay("status").status_url, "--redis-url", other.url, *FEW, "--window", "60", "--max-loss", "0"
    )
    assert done.returncode == 7
    assert result["runs"][0]["lost"] == 240
    assert "lost: at most 0 messages asked for, 240 seen" in done.stderr


def test_a_redis_that_refuses_is_a_sentence(relay, redis_server):
    url = relay("status").status_url
    redis_server.execute("ACL", "SETUSER", "default", "resetpass", ">other")
    for userinfo, said in (("", "refuses PING: NOAUTH"), (":wrong@", "refuses AUTH: WRONGPASS")):
        done, _ = bench("--url", url, "--redis-url", redis_server.url.replace("//", f"//{userinfo}"))
        assert done.returncode == 3
        assert said in done.stderr
        assert "wrong@" not in done.stderr
    good = redis_server.url.replace("//", "//:other@")
    redis_server.execute("ACL", "SETUSER", "default", "-publish")
    done, _ = bench("--url", url, "--redis-url", good, *FEW)
    assert done.returncode == 1
    assert "publishing ended early: the server refused a publication: -NOPERM" in done.stderr


@contextmanager
def in_a_thread(context):
    """A websocket server with TLS that says nothing; its port."""
    ready, loop = threading.Event(), asyncio.new_event_loop()
    ports = []

    async def main():
        async with serve(lambda socket: socket.wait_closed(), "127.0.0.1", 0, ssl=context) as server:
            ports.append(server.sockets[0].getsockname()[1])
            ready.set()
            await ended.wait()

    ended = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    assert ready.wait(30)
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
        loop.close()


def test_wss_with_a_certificate_that_is_trusted_or_not(tmp_path):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with in_a_thread(context) as port:
        few = ("--url", f"wss://localhost:{port}/status", "--clients", "3", "--duration", "100ms")
        done, result = bench(*few, SSL_CERT_FILE=str(tmp_path / "ca.pem"))
        assert (done.returncode, result["runs"][0]["opened"]) == (0, 3)
        done, _ = bench(*few)
        assert done.returncode == 1
        assert "CERTIFICATE_VERIFY_FAILED" in done.stderr


# ---- ends ----


def test_nothing_answers_at_the_url():
    done, _ = bench("--url", "ws://127.0.0.1:1")
    assert done.returncode == 1
    assert (
        done.stderr
        == "relay: --url ws://127.0.0.1:1: nothing answers there (Connection refused); is a relay running?\n"
    )


def test_too_few_files_for_the_clients():
    call = f"ulimit -n 300; exec {sys.executable} -m relay bench --clients 500"
    done = subprocess.run(["sh", "-c", call], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("relay: 500 clients need 564 open files and this process may have 300: raise that")
    assert done.stderr.rstrip().endswith("--clients 236")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_servers_and_writes_what_was_measured(number):
    call = [sys.executable, "-m", "relay", "bench", "--json", "-", *FEW[:4], "--rate", "100", "--duration", "1h"]
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            while (
                connections(started := below(process)) < 15
            ):  # 12 clients, and Redis' with the relay and the publisher
                assert process.poll() is None
            threading.Event().wait(2.0)  # messages are on their way
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        finally:
            process.terminate()  # which ends its servers too
            process.wait(60)
    result = json.loads(out)
    assert (process.returncode, result["interrupted"], err.count("Traceback")) == (130, True, 0)
    assert result["runs"][0]["delivered"] > 0
    assert not psutil.wait_procs(started, timeout=20)[1]
