"""Who a client is, behind proxies and before them, and how many websockets of one address there may be (row S6)."""

import contextlib
import json
import subprocess
import sys

import pytest

from relay.cli import embedded
from tests.integration.peers import Peer, Refused, Wire, ask, head, upgrade, wait_for

BOUND = {"RELAY_MAX_PER_ADDRESS": "2", "STATUS_METRICS_ENABLED": "true"}


@pytest.fixture
def crowd():
    """Opens websockets that stay; the status of each: 101 or what it was refused with."""
    with contextlib.ExitStack() as stack:

        def come(url, *headers, source=None, address=None):
            try:
                stack.enter_context(Peer(url, *headers, source=source, address=address))
            except Refused as refused:
                return refused.status
            return 101

        yield come


def breaches(url):
    return sum(
        int(float(line.split()[-1]))
        for line in ask(url, head("/metrics")).body.decode().splitlines()
        if line.startswith("status2_breaches_total{") and 'bound="per_address"' in line
    )


def test_the_address_of_the_socket(relay, crowd):
    process = relay("status", env=BOUND)
    url = f"{process.status_url}/r1:wepp"
    assert [crowd(url) for _ in range(4)] == [101, 101, 503, 503]
    assert [crowd(url, source="127.0.0.2") for _ in range(3)] == [101, 101, 503]
    assert breaches(url) == 3
    for path in ("/health", "/livez", "/readyz", "/metrics"):
        assert ask(url, head(path)).status == 200, "what is asked for in passing is not bounded"


def test_a_place_is_free_again_with_its_client(relay):
    process = relay("status", env=BOUND)
    url = f"{process.status_url}/r1:wepp"
    with Peer(url) as first, Peer(url):
        with pytest.raises(Refused) as refused:
            Peer(url)
        assert (refused.value.status, refused.value.answer.headers["retry-after"]) == (503, "5")
        first.drop()
        wait_for(lambda: "status2_connections_active 1.0\n" in ask(url, head("/metrics")).body.decode(), "gone")
        with Peer(url), pytest.raises(Refused, match="503"):
            Peer(url)


@pytest.mark.row("S6")
@pytest.mark.parametrize("trusted", [None, "127.0.0.9", "unix"])
def test_a_forged_address_is_not_believed(relay, crowd, trusted):
    """S6: whoever is no trusted proxy may write what they like."""
    process = relay("status", env={**BOUND, "RELAY_TRUSTED_PROXIES": trusted})
    url = f"{process.status_url}/r1:wepp"
    forged = [(f"X-Forwarded-For: 1.2.3.{i}", f"X-Real-IP: 1.2.3.{i}", f"Forwarded: for=1.2.3.{i}") for i in range(5)]
    assert [crowd(url, *headers) for headers in forged] == [101, 101, 503, 503, 503]


@pytest.mark.row("S6")
def test_who_trusts_everybody_believes_a_forged_address(relay, crowd):
    """The control."""
    process = relay("status", env={**BOUND, "RELAY_TRUSTED_PROXIES": "0.0.0.0/0"})
    url = f"{process.status_url}/r1:wepp"
    assert [crowd(url, f"X-Forwarded-For: 1.2.3.{i}") for i in range(5)] == [101] * 5


@pytest.mark.row("S6")
def test_behind_a_trusted_proxy_only_what_it_wrote_itself_counts(relay, crowd):
    """S6: the client's own lines are to the left of the proxy's."""
    process = relay("status", env={**BOUND, "RELAY_TRUSTED_PROXIES": "127.0.0.0/30"})
    url = f"{process.status_url}/r1:wepp"
    forged = [(f"X-Forwarded-For: 1.2.3.{i}", "X-Forwarded-For: 9.9.9.9") for i in range(4)]
    assert [crowd(url, *headers) for headers in forged] == [101, 101, 503, 503]
    assert [crowd(url, f"X-Forwarded-For: 9.9.9.{i}") for i in range(4)] == [101] * 4, "as many as there are clients"
    many = [crowd(url, "X-Forwarded-For: 2001:db8::1"), crowd(url, "X-Forwarded-For: 2001:db8::2")]
    assert [*many, crowd(url, "X-Forwarded-For: 2001:db8::3")] == [101, 101, 503], "one /64"
    assert crowd(url, "X-Forwarded-For: 2001:db8:0:1::3") == 101


def test_a_proxy_on_a_unix_socket(relay, crowd, tmp_path):
    path = str(tmp_path / "status.sock")
    env = {**BOUND, "RELAY_TRUSTED_PROXIES": "unix", "STATUS_LISTEN_ADDR": f"unix:{path}"}
    process = relay("status", env=env, wait=None)
    wait_for(lambda: any("listens" in line for line in process.stderr), "listening")
    url = "ws://localhost/r1:wepp"
    come = [crowd(url, "X-Forwarded-For: 1.2.3.4", address=path) for _ in range(3)]
    assert come == [101, 101, 503]
    assert crowd(url, "X-Forwarded-For: 1.2.3.5", address=path) == 101


def test_introductions(relay):
    process = relay("status", env={**BOUND, "RELAY_TRUSTED_PROXIES": "127.0.0.2", "RELAY_PROXY_PROTOCOL": "true"})
    url = f"{process.status_url}/r1:wepp"
    where = ("127.0.0.1", process.ports["status"])

    def introduced(header, source="127.0.0.2"):
        wire = Wire(where, source=source)
        wire.send(header + upgrade("/r1:wepp"))
        return wire

    with contextlib.ExitStack() as stack:
        got = []
        for address in ("1.2.3.4", "1.2.3.4", "1.2.3.4", "1.2.3.5"):
            wire = stack.enter_context(introduced(b"PROXY TCP4 %s 127.0.0.1 1 2\r\n" % address.encode()))
            got.append(wire.answer().status)
        assert got == [101, 101, 503, 101]
    with introduced(b"") as wire:
        answer = wire.answer()
        assert answer.status == 400
        assert b"RELAY_PROXY_PROTOCOL" in answer.body
    with introduced(b"PROXY TCP4 1.2.3.6 127.0.0.1 1 2\r\n", "127.0.0.3") as wire:
        assert wire.answer().status == 400, "from who is no trusted proxy it is a line like any other"
    with Peer(url):
        pass  # who comes by no proxy needs no introduction
    assert healthcheck(process.ports["status"], "--proxy-protocol") == 1, "not from 127.0.0.1, which is not trusted"
    assert 'status2_breaches_total{bound="proxy_header"} 1.0\n' in ask(url, head("/metrics")).body.decode()


def healthcheck(port, *options):
    """Its exit code."""
    command = [sys.executable, "-m", "relay", "healthcheck", "--url", f"http://127.0.0.1:{port}", *options]
    return subprocess.run(command, capture_output=True, check=False, timeout=30).returncode


def test_a_health_check_from_the_address_of_a_proxy(relay):
    env = {"RELAY_TRUSTED_PROXIES": "127.0.0.1", "RELAY_PROXY_PROTOCOL": "true"}
    process = relay("status", env=env, wait=None)
    wait_for(lambda: any("listens" in line for line in process.stderr), "listening")
    assert healthcheck(process.ports["status"]) == 1
    assert healthcheck(process.ports["status"], "--proxy-protocol") == 0


def test_operators_need_no_introduction(relay, tmp_path):
    path = str(tmp_path / "internal.sock")
    env = {"RELAY_TRUSTED_PROXIES": "unix,127.0.0.1", "RELAY_PROXY_PROTOCOL": "true"}
    relay("status", env={**env, "RELAY_INTERNAL_ADDR": f"unix:{path}"}, wait="listen")

    def ready():
        with contextlib.suppress(OSError), Wire(path) as wire:
            wire.send(head("/readyz"))
            return json.loads(wire.answer().body)["ready"]

    wait_for(ready, "ready for operators")


# ---- a real proxy ----

HAPROXY = """
global
    maxconn 100
defaults
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen front
    bind 127.0.0.1:{port}
    mode {mode}
    {option}
    source 127.0.0.9
    server relay 127.0.0.1:{relay} check inter 200ms {send}
"""


@pytest.fixture
def haproxy(tmp_path):
    """A factory: in front of a port, with `option` and `send` as haproxy spells them -> its own port."""
    with contextlib.ExitStack() as stack:

        def start(relay, *, mode="tcp", option="", send=""):
            port = embedded.free_port()
            file = tmp_path / "haproxy.cfg"
            file.write_text(HAPROXY.format(port=port, relay=relay, mode=mode, option=option, send=send))
            process = subprocess.Popen(["haproxy", "-q", "-db", "-f", str(file)], stdout=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
            return port

        yield start


@pytest.mark.needs("haproxy")
@pytest.mark.parametrize(
    ("introduced", "how"),
    [
        ("false", {"mode": "http", "option": "option forwardfor\n    option httpclose"}),
        ("true", {"send": "send-proxy"}),
        ("true", {"send": "send-proxy-v2"}),
    ],
    ids=["forwardfor", "send-proxy", "send-proxy-v2"],
)
def test_haproxy_says_who_its_clients_are(relay, haproxy, crowd, worker, redis_url, introduced, how):
    process = relay("status", env={**BOUND, "RELAY_TRUSTED_PROXIES": "127.0.0.9", "RELAY_PROXY_PROTOCOL": introduced})
    port = haproxy(process.ports["status"], **how)
    url = f"ws://127.0.0.1:{port}/r1:wepp"

    def open_door():
        with contextlib.suppress(OSError, AssertionError):
            return ask(url, head("/health")).status == 200

    wait_for(open_door, "a way through haproxy")
    forged = "X-Forwarded-For: 6.6.6.6"
    assert [crowd(url, forged, source="127.0.0.5") for _ in range(3)] == [101, 101, 503]
    with Peer(url, source="127.0.0.6") as watcher:
        worker(redis_url).publish("r1:wepp", "through the proxy")
        assert watcher.message() == {"type": "status", "data": "through the proxy"}
        direct = [crowd(f"{process.status_url}/r1:wepp", source="127.0.0.6") for _ in range(2)]
        assert direct == [101, 503], "by the proxy and directly it is one address"
    assert open_door(), "haproxy still takes the relay for healthy"
