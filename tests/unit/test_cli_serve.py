import sys
import types

import pytest
from click.testing import CliRunner

from relay.cli.commands import relay

SERVER = "relay.server"


@pytest.fixture
def serve(monkeypatch):
    """Runs `relay serve` up to the server, which is replaced: (result, settings it would have run on)."""

    def serve(*args, env=None, code=0):
        ran = []
        server = types.ModuleType(SERVER)
        server.run = lambda settings: ran.append(settings) or code
        monkeypatch.setitem(sys.modules, SERVER, server)
        monkeypatch.setattr("relay.server", server, raising=False)
        result = CliRunner().invoke(relay, ["serve", *args], env=env or {}, catch_exceptions=False)
        return result, (ran[0] if ran else None)

    return serve


def test_both_services_without_argument(serve):
    result, settings = serve()
    assert result.exit_code == 0
    assert [service.name for service in settings.services] == ["status", "preflight"]
    assert (str(settings.status.listen), str(settings.preflight.listen)) == (":9002", ":9001")


@pytest.mark.parametrize("name", ["status", "preflight"])
def test_one_service_alone(serve, name):
    _, settings = serve(name)
    assert [service.name for service in settings.services] == [name]


def test_the_exit_code_is_the_servers(serve):
    assert serve(code=4)[0].exit_code == 4


@pytest.mark.parametrize(
    ("args", "listen"),
    [
        (["--port", "8002"], ":8002"),
        (["--host", "127.0.0.1"], "127.0.0.1:9002"),
        (["--host", "127.0.0.1", "--port", "1"], "127.0.0.1:1"),
        (["--host", "::1", "--port", "1"], "[::1]:1"),
        (["--host", "", "--port", "1"], ":1"),
        (["--uds", "/run/relay.sock"], "unix:/run/relay.sock"),
        (["--fd", "3"], "fd:3"),
    ],
)
def test_shorthands_of_listen_addr(serve, args, listen):
    result, settings = serve("status", *args)
    assert result.exit_code == 0, result.stderr
    assert str(settings.status.listen) == listen


def test_a_relative_socket_path_is_made_absolute(serve, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(serve("preflight", "--uds", "p.sock")[1].preflight.listen) == f"unix:{tmp_path}/p.sock"


def test_half_an_address_keeps_the_other_half_of_the_environment(serve):
    env = {"STATUS_LISTEN_ADDR": "127.0.0.1:7000"}
    assert str(serve("status", "--port", "8000", env=env)[1].status.listen) == "127.0.0.1:8000"
    assert str(serve("status", "--host", "::1", env=env)[1].status.listen) == "[::1]:7000"


def test_half_an_address_beside_a_socket_is_a_usage_error(serve):
    result, settings = serve("status", "--port", "8000", env={"STATUS_LISTEN_ADDR": "unix:/run/x"})
    assert (result.exit_code, settings) == (2, None)
    assert "STATUS_LISTEN_ADDR is unix:/run/x: give both --host and --port" in " ".join(result.stderr.split())


def test_listen_addresses_of_both(serve):
    _, settings = serve("--status-listen-addr", "127.0.0.1:1", "--preflight-listen-addr", "unix:/run/p")
    assert (str(settings.status.listen), str(settings.preflight.listen)) == ("127.0.0.1:1", "unix:/run/p")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--port", "1"], "--port is for one service"),
        (["status", "--port", "1", "--uds", "/x"], "exclude each other"),
        (["status", "--fd", "3", "--uds", "/x"], "exclude each other"),
        (["status", "--preflight-listen-addr", ":1"], "--preflight-listen-addr: `relay serve status` does not serve"),
        (["status", "--status-listen-addr", ":1", "--port", "2"], "say the same thing"),
        (["stats"], "'stats' is not one of 'status', 'preflight'"),
        (["status", "--port", "70000"], "70000 is not in the range"),
    ],
)
def test_usage_errors(serve, args, said):
    result, settings = serve(*args)
    assert (result.exit_code, settings) == (2, None)
    assert said in " ".join(result.stderr.split())


def test_flags_become_settings(serve):
    args = ["--redis-url", "redis://h:1/5", "--ping-interval", "5s", "--drain", "1s", "--max-connections", "10"]
    _, settings = serve(*args, "--set-keyspace-events", env={"RELAY_DRAIN": "9s"})
    assert (settings.drain, settings.max_connections, settings.set_keyspace_events) == (1.0, 10, True)
    assert (settings.status.redis.db, settings.preflight.redis.db) == (2, 0)
    assert settings.preflight.ping_interval == 5.0


def test_the_file_gives_way_to_environment_and_flags(serve, tmp_path):
    file = tmp_path / "relay.env"
    file.write_text("STATUS_PING_INTERVAL=1s\nSTATUS_PONG_TIMEOUT=100s\nSTATUS_WRITE_TIMEOUT=3s\n")
    args = ["status", "--env-file", str(file), "--write-timeout", "4s"]
    _, settings = serve(*args, env={"STATUS_PONG_TIMEOUT": "200s"})
    status = settings.status
    assert (status.ping_interval, status.pong_timeout, status.write_timeout) == (1.0, 200.0, 4.0)


def test_a_malformed_setting_is_exit_code_3_and_a_sentence(serve):
    result, settings = serve("status", env={"STATUS_PING_INTERVAL": "10"})
    assert (result.exit_code, settings) == (3, None)
    [line] = result.stderr.splitlines()
    assert line.startswith("relay: STATUS_PING_INTERVAL='10'")
    assert "STATUS_PING_INTERVAL=10s" in line


def test_without_the_core_it_does_not_start(serve, monkeypatch):
    monkeypatch.setattr("relay.cli.core.EXTRA", ("no_such_package",))
    result, settings = serve()
    assert (result.exit_code, settings) == (6, None)
    assert "no_such_package" in result.stderr
