"""Operators' listeners: details there and nowhere else, answered whatever state the relay is in."""

import json
import signal
import socket
import stat

import pytest

from relay.cli import embedded
from tests.conftest import Relay
from tests.integration.peers import Wire, ask, head, upgrade, wait_for


@pytest.fixture(scope="module")
def internal(_shared_redis, tmp_path_factory):
    """One relay for all tests that leave it as it is, and the path of its socket; its metrics are on a port."""
    directory = tmp_path_factory.mktemp("operators")
    path = str(directory / "internal.sock")
    metrics = f"127.0.0.1:{embedded.free_port()}"
    env = {
        "REDIS_URL": _shared_redis.url,
        "RELAY_INTERNAL_ADDR": f"unix:{path}",
        "RELAY_METRICS_ADDR": metrics,
        "STATUS_METRICS_ENABLED": "true",
    }
    process = Relay([], env, directory)
    try:
        process.wait("ready")
        yield process, path, f"http://{metrics}"
    finally:
        process.end()


def asked(path, data):
    """Over a Unix socket -> Answer."""
    with Wire(path) as wire:
        wire.send(data)
        return wire.answer()


def details(path):
    """The status and the JSON of /readyz."""
    answer = asked(path, head("/readyz"))
    return answer.status, json.loads(answer.body)


def test_ready_with_all_details(internal):
    _, path, _ = internal
    wait_for(lambda: details(path)[1]["services"]["preflight"]["key_events"] != "unknown", "Redis has said which")
    status, said = details(path)
    assert (status, said["ready"], said["draining"]) == (200, True, False)
    assert set(said["services"]) == {"status", "preflight"}
    for service in said["services"].values():
        assert (service["ready"], service["why"]) == (True, [])
        assert (service["link"]["up"], service["commands"]["up"]) == (True, True)
        assert service["link"]["reconnects"] == 0
    assert said["services"]["preflight"]["key_events"] == "on"
    assert (said["build"], bool(said["version"])) == ("release", True) or said["build"] in ("debug", "asan")


def test_the_ports_of_the_services_say_ready_and_no_more(internal):
    process, _, _ = internal
    for service in ("status", "preflight"):
        status, headers, body = process.http(service, "/readyz")
        assert (status, headers["Content-Type"], body) == (200, "text/plain; charset=utf-8", b"ready\n")
        assert process.http(service, "/debug")[0] in (400, 426)  # a name that no channel has, or a run that is no page


def test_metrics_have_moved(internal):
    process, path, metrics = internal
    assert b"status2_connections_active 0.0" in ask(metrics, head("/metrics")).body
    assert b"status2_connections_active 0.0" in asked(path, head("/metrics")).body
    for service in ("status", "preflight"):
        assert process.http(service, "/metrics")[0] == 404
    for other in ("/readyz", "/debug", "/", "/r1:wepp"):
        assert ask(metrics, head(other)).status == 404


def test_debug_names_topics_and_counts(internal, join):
    process, path, _ = internal
    with join(f"{process.status_url}/r1:wepp"), join(f"{process.preflight_url}/r1"):
        said = json.loads(asked(path, head("/debug")).body)
        assert said["services"]["status"]["largest"] == [{"topic": "r1:wepp", "clients": 1, "undelivered_bytes": 0}]
        assert said["services"]["preflight"]["connections"] == 1
        assert said["totals"]["sockets"] >= 2
        assert said["slowest"] == []


def test_no_websockets_and_no_runs_there(internal):
    _, path, metrics = internal
    for target in ("/readyz", "/r1:wepp"):
        assert asked(path, upgrade(target)).status == 400
        assert ask(metrics, upgrade(target)).status == 400
    assert asked(path, head("/r1:wepp")).status == 404
    assert asked(path, head("/debug", method="POST")).status == 405
    answer = asked(path, head("/debug", method="HEAD"))
    assert (answer.status, answer.body) == (200, b"")


def test_what_is_wrong_is_said_there_and_not_on_the_ports(relay, redis_server, tmp_path):
    path = str(tmp_path / "internal.sock")
    process = relay(env={"REDIS_URL": redis_server.url, "RELAY_INTERNAL_ADDR": f"unix:{path}"})
    redis_server.kill()
    _, said = wait_for(lambda: (found := details(path))[0] == 503 and found, "not ready")
    wait_for(lambda: all(len(s["why"]) == 2 for s in details(path)[1]["services"].values()), "both connections")
    service = details(path)[1]["services"]["status"]
    assert (said["ready"], service["ready"], service["link"]["up"], service["commands"]["up"]) == (False,) * 4
    wait_for(lambda: "refused" in str(details(path)[1]["services"]["status"]["why"]).lower(), "why")
    assert process.http("status", "/readyz")[2] == b"not ready\n"
    assert process.http("status", "/livez")[0] == asked(path, head("/livez")).status == 200
    redis_server.start()
    _, said = wait_for(lambda: (found := details(path))[0] == 200 and found, "ready again")
    assert said["services"]["status"]["link"]["reconnects"] == 1


def test_a_draining_relay_answers_until_its_end_and_removes_its_socket(relay, tmp_path, join):
    path = tmp_path / "internal.sock"
    process = relay("status", env={"RELAY_INTERNAL_ADDR": f"unix:{path}", "RELAY_DRAIN": "30s"})
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    # Closed ten a second: two would be gone after 2 s, in which this machine may stand still.
    held = [join(f"{process.status_url}/r1:wepp") for _ in range(60)]
    process.process.send_signal(signal.SIGTERM)
    wait_for(lambda: not process.listens("status"), "no more accepts")
    status, said = details(str(path))
    assert (status, said["draining"], said["services"]["status"]["why"]) == (503, True, ["the relay is draining"])
    assert process.stop() == 0
    assert held
    assert not path.exists()


def test_a_dead_socket_is_replaced_and_a_living_one_ends_the_start(relay, tmp_path):
    path = tmp_path / "internal.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    relay("status", env={"RELAY_INTERNAL_ADDR": f"unix:{path}"})
    assert asked(str(path), head("/livez")).status == 200
    second = relay("status", env={"RELAY_INTERNAL_ADDR": f"unix:{path}"}, wait=None)
    assert second.process.wait(20) == 5
    assert "internal cannot listen on unix:" in second.stderr[-1]
    assert second.stderr[-1].endswith("see RELAY_INTERNAL_ADDR")
    assert asked(str(path), head("/livez")).status == 200


def test_operators_are_answered_while_the_relay_is_full(relay, tmp_path, join):
    path = str(tmp_path / "internal.sock")
    process = relay("status", env={"RELAY_INTERNAL_ADDR": f"unix:{path}", "RELAY_MAX_CONNECTIONS": "16"})
    held = [join(f"{process.status_url}/r1:wepp") for _ in range(16)]
    assert ask(process.status_url, upgrade("/r1:wepp")).status == 503
    silent = [Wire(("127.0.0.1", process.ports["status"])) for _ in range(14)]
    try:
        for _ in range(20):
            assert asked(path, head("/readyz")).status == 200
            assert json.loads(asked(path, head("/debug")).body)["services"]["status"]["connections"] == len(held)
    finally:
        for wire in silent:
            wire.drop()
