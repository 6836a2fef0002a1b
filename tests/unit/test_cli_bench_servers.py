import os
import re
import socket
import sys
import time

import click
import psutil
import pytest

from relay.cli import bench_servers
from relay.cli.bench_servers import Bench, Recipe
from relay.errors import ConfigError, RelayError

LISTEN = "import socket,sys,time; s=socket.create_server(('127.0.0.1',int(sys.argv[1]))); "


def recipe(code, **more):
    return Recipe("twin", "A twin", ["{python}", "-c", code, "{port}"], **more)


@pytest.fixture
def machine():
    with Bench() as bench:
        yield bench


def peers_file(tmp_path, text):
    path = tmp_path / "peers.toml"
    path.write_text(text)
    return path


def test_peers_by_name(tmp_path):
    path = peers_file(
        tmp_path,
        '[peer.a]\ntitle = "A"\ncommand = ["a", "{port}"]\n'
        'needs = ["sh", "/etc/passwd", "/no/such.so", "module:nope.sub", "no-such-program"]\n'
        'install = "pip install nope"\npublish = "http"\n[peer.b]\ncommand = ["b"]\n',
    )
    b, a = bench_servers.peers(["b", "a"], path)
    assert (a.title, a.command, a.publish, a.install) == ("A", ["a", "{port}"], "http", "pip install nope")
    assert a.lacking() == ["/no/such.so", "module:nope.sub", "no-such-program"]
    assert (b.title, b.publish, b.lacking(), b.prepare) == ("b", "redis", [], [])
    assert bench_servers.peers([], path) == []
    with pytest.raises(click.UsageError, match="--peers c: there is none; there are a, b"):
        bench_servers.peers(["a", "c"], path)


def test_from_a_wheel_it_says_where_the_peers_are(tmp_path):
    with pytest.raises(RelayError, match=r"checkout of the project's source, where bench/peers\.toml"):
        bench_servers.peers(["bun"], tmp_path / "peers.toml")


@pytest.mark.parametrize("text", ["[peer.a]\nfoo = 1\n", "[peers]\n", "peer = 1\n", "["])
def test_a_malformed_list_of_peers(tmp_path, text):
    with pytest.raises(ConfigError, match=r"peers\.toml: malformed"):
        bench_servers.peers(["a"], peers_file(tmp_path, text))


def test_a_server_listens_on_a_cpu_of_its_own_and_is_ended_with_its_children(machine):
    code = f"{LISTEN}import subprocess; subprocess.Popen(['sleep', '99']); time.sleep(99)"
    with machine.server(recipe(code)) as server:
        socket.create_connection(("127.0.0.1", server.port)).close()
        process = psutil.Process(server.process.pid)
        while not process.children():
            time.sleep(0.01)
        tree = [process, *process.children()]
        assert {tuple(p.cpu_affinity()) for p in tree} == {tuple(machine.cpus.server)}
        assert os.sched_getaffinity(0) == machine.cpus.load
    assert not psutil.wait_procs(tree, timeout=20)[1]


def test_a_server_that_ignores_sigterm_is_killed(machine, monkeypatch):
    monkeypatch.setattr(bench_servers, "STOP_SECONDS", 0.1)
    with machine.server(recipe(f"import signal; signal.signal(15, signal.SIG_IGN); {LISTEN}time.sleep(99)")) as server:
        pass
    assert server.process.returncode == -9


def test_all_cpus_are_back_behind_the_bench():
    before = os.sched_getaffinity(0)
    with Bench() as bench:
        redis = bench.redis()
        redis.sendall(b"PING\r\n")
        assert redis.recv(100) == b"+PONG\r\n"
        redis.close()
    assert os.sched_getaffinity(0) == before
    with pytest.raises(ConnectionRefusedError):
        bench.redis()


def test_a_server_that_ends_at_once_is_quoted(machine):
    with (
        pytest.raises(RelayError, match="A twin ended with code 3; it said: no licence"),
        machine.server(recipe("import sys; print('no licence'); sys.exit(3)")),
    ):
        pass


def test_a_server_whose_program_is_gone_is_said(machine):
    with (
        pytest.raises(RelayError, match=r"A twin cannot be started: .*No such file"),
        machine.server(Recipe("twin", "A twin", ["/no/such/program"])),
    ):
        pass


def test_a_server_that_never_listens_is_given_up(machine, monkeypatch):
    monkeypatch.setattr(bench_servers, "START_SECONDS", 0.1)
    with (
        pytest.raises(RelayError, match=r"A twin does not listen after 0 s; it said: \(nothing\)"),
        machine.server(recipe("import time; time.sleep(99)")),
    ):
        pass


def test_what_is_to_be_prepared_is_once(machine):
    touch = ["{python}", "-c", "import sys; open(sys.argv[1], 'a').write('x')", "{tmp}/made"]
    for _ in range(2):
        with machine.server(recipe(f"{LISTEN}time.sleep(99)", prepare=touch)):
            pass
    assert (machine.directory / "made").read_text() == "x"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["{python}", "-c", "import sys; sys.exit('no compiler')"], "failed: no compiler"),
        (["/no/such/cc"], "failed: .*No such file"),
    ],
)
def test_a_failed_preparation_is_quoted(machine, command, said):
    with pytest.raises(RelayError, match=said), machine.server(recipe("pass", prepare=command)):
        pass


def test_variables_of_the_shell_do_not_reach_the_servers(machine, monkeypatch):
    monkeypatch.setenv("RELAY_COALESCE_MS", "500")
    code = f"import os; assert 'RELAY_COALESCE_MS' not in os.environ; {LISTEN}time.sleep(99)"
    with machine.server(recipe(code)):
        pass


def test_the_relay_itself_is_run_by_this_python(machine):
    command = machine._filled(bench_servers.own().command, 1234)
    assert command[:5] == [sys.executable, "-m", "relay", "serve", "status"]
    assert f"redis://127.0.0.1:{machine.redis_port}" in command
    assert "1234" in command


@pytest.mark.parametrize("url", ["http://a", "localhost:9002", "ws://", "ws://a:99999", "ws://a:b", "ws://[::1"])
def test_a_url_that_is_none(url):
    with pytest.raises(click.UsageError, match=re.escape(f"--url {url}: not an address")):
        bench_servers.remote(url)


def test_nothing_answers():
    with pytest.raises(RelayError, match=r"ws://127\.0\.0\.1:1/x: nothing answers there \(Connection refused\)"):
        bench_servers.remote("ws://127.0.0.1:1/x")
    with pytest.raises(RelayError, match="nothing answers there"):
        bench_servers.remote("ws://no-such-host.invalid")


def test_an_address_keeps_host_and_prefix():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        where = bench_servers.remote(f"ws://localhost:{port}/services/status/")
    assert (where.address[:2], where.host, where.prefix) == (
        ("127.0.0.1", port),
        f"localhost:{port}",
        "/services/status",
    )
    assert where.tls is None


@pytest.mark.parametrize(
    ("url", "error", "said"),
    [
        ("http://x", ConfigError, "--redis-url: "),
        ("rediss://:secret@x", ConfigError, "speaks no TLS to Redis"),
        ("redis://:secret@127.0.0.1:1", RelayError, r"Redis does not answer \(Connection refused\)"),
        ("unix:///no/such/socket", RelayError, r"Redis does not answer \(No such file"),
    ],
)
def test_a_redis_that_cannot_be_had(url, error, said):
    with pytest.raises(error, match=said) as raised:
        bench_servers.redis(url)
    assert "secret" not in str(raised.value)
