"""F17-F25, F31, F32, S3: clients that come and go without end, do not read, fall silent, flood, or are many at once."""

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from relay.cli import embedded
from tests.conftest import ROOT
from tests.faults.recorder import Publisher, Said, Written
from tests.integration.peers import Peer, Wire, address_of, ask, close, frame, head, upgrade, wait_for

MIB = 1 << 20
METRICS = {"STATUS_METRICS_ENABLED": "true"}


def metric(process, name):
    """The value of a line of the status service's metrics; 0 where there is none yet."""
    for line in process.http("status", "/metrics")[2].decode().splitlines():
        if line.startswith(name + " "):
            return float(line.rpartition(" ")[2])
    return 0.0


def breaches(process, bound, service="status"):
    return metric(process, f'{service}2_breaches_total{{bound="{bound}"}}')


def bench(process, redis_url, *options):
    """`relay bench` against the relay -> its run, judged by nobody yet."""
    where = ("--url", process.status_url, "--redis-url", redis_url)
    command = [sys.executable, "-m", "relay", "bench", "--json", "-", *where, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout, done.stderr
    [run] = json.loads(done.stdout)["runs"]
    return run


# ---- F17: interest ----


async def _opened(host, port, path):
    """A websocket, its 101 awaited elsewhere."""
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(upgrade(path))
    return reader, writer


async def _churn(host, port, path, times, joins_first):
    """The last client leaves as a new one comes, so many times; the one that is left."""
    last = await _opened(host, port, path)
    await last[0].readuntil(b"\r\n\r\n")
    for _ in range(times):
        if joins_first:
            new = await _opened(host, port, path)
        last[1].close()
        if not joins_first:
            new = await _opened(host, port, path)
        assert b" 101 " in await asyncio.wait_for(new[0].readuntil(b"\r\n\r\n"), 20)
        last = new
    return last


@pytest.mark.row("F17")
@pytest.mark.long
def test_the_last_leaves_as_the_next_joins(relay, redis_server, told):
    process = relay("status", env={"REDIS_URL": redis_server.url})
    host, port = address_of(process.status_url)
    topics = [f"run{number}:wepp" for number in range(20)]

    async def all_at_once():
        lasts = await asyncio.gather(
            *(_churn(host, port, f"/{topic}", 5000, number % 2 == 0) for number, topic in enumerate(topics))
        )
        counts = redis_server.execute("PUBSUB", "NUMSUB", *topics)
        assert counts[1::2] == [1] * len(topics)
        for topic, (reader, _) in zip(topics, lasts, strict=True):
            assert redis_server.execute("PUBLISH", topic, f"last of {topic}") == 1
            await asyncio.wait_for(reader.readuntil(f"last of {topic}".encode()), 5)
        for _, writer in lasts:
            writer.close()

    asyncio.run(all_at_once())
    wait_for(lambda: not [c for c in redis_server.channels() if not c.startswith(b"__relay__")], "nobody, nothing")
    told.injected("100 000 joins as the last client leaves, half before and half behind it, 20 channels")
    told.observed("each channel subscribed once, its next message delivered; none left in the end")
    told.bound("NUMSUB as the model")


# ---- F18, F19: who does not read ----


@pytest.mark.row("F18")
@pytest.mark.long
def test_one_of_a_thousand_never_reads(relay, redis_server, told):
    load = ("--clients", "1000", "--topics", "1", "--rate", "2000", "--size", "200", "--messages", "24000")
    p99 = []
    unbound = {"RELAY_MAX_BACKLOG": str(1 << 30), "STATUS_WRITE_TIMEOUT": "1h", "RELAY_MAX_LIVE": str(1 << 31)}
    process = relay("status", env={"REDIS_URL": redis_server.url, **METRICS, **unbound})
    bench(process, redis_server.url, *load[:-1], "6000", "--stalled", "1")
    assert metric(process, 'status2_closes_total{code="1013"}') == 0, "the control: without its bound it stays"
    process.stop()
    for stalled in (0, 1):
        process = relay("status", env={"REDIS_URL": redis_server.url, **METRICS})
        run = bench(process, redis_server.url, *load, "--stalled", str(stalled))
        assert run["lost"] == 0, run
        p99.append(run["latency_us"]["p99"] / 1000)
        assert metric(process, 'status2_closes_total{code="1013"}') == stalled
        process.stop()
    told.injected("one of 1000 clients never reads, 2000 messages/s on their channel")
    told.observed(f"it was closed with 1013; p99 of the others {p99[1]:.1f} ms, {p99[0]:.1f} ms without it; none lost")
    told.bound("twice + 5 ms")
    assert p99[1] <= 2 * p99[0] + 5


def half_stalled(process, redis_url, footprint, messages):
    """1000 of 2000 clients never read -> (the run, the most memory that the relay took beyond what it had)."""
    most, done = [0], threading.Event()
    before = footprint.memory

    def watch():
        while not done.wait(0.02):
            most[0] = max(most[0], footprint.memory - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    load = ("--clients", "2000", "--topics", "1000", "--stalled", "1000", "--size", "16000", "--rate", "3000")
    try:
        return bench(process, redis_url, *load, "--messages", str(messages)), most[0]
    finally:
        done.set()
        watcher.join()


@pytest.mark.row("F19")
@pytest.mark.long
def test_half_of_two_thousand_stop_reading(relay, redis_server, footprint, told):
    bound, env = 64 * MIB, {"REDIS_URL": redis_server.url, **METRICS}
    process = relay("status", env=env | {"RELAY_MAX_LIVE": str(1 << 33), "RELAY_MAX_BACKLOG": str(4 * MIB)})
    _, free = half_stalled(process, redis_server.url, footprint(process), 20_000)
    process.stop()
    process = relay("status", env=env | {"RELAY_MAX_LIVE": str(bound)})
    print_of = footprint(process)
    before = print_of.memory
    run, most = half_stalled(process, redis_server.url, print_of, 60_000)
    closed = metric(process, 'status2_closes_total{code="1013"}')
    wait_for(lambda: print_of.memory < before + 24 * MIB, "the memory is given back", 30.0)
    told.injected("1000 of 2000 clients never read, 48 MB/s")
    told.observed(
        f"{closed:.0f} closed with 1013, {run['lost']} lost, {most / MIB:.0f} MiB more at most; "
        f"without its bounds {free / MIB:.0f}"
    )
    told.bound(f"{bound / MIB:.0f} MiB of frames, and as at rest in the end")
    assert run["lost"] == 0, run
    assert closed >= 900
    assert most < 2 * bound < free


# ---- F20, F21: silence ----

VANISHED = """
import socket, sys, time
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))
sock.sendall(sys.argv[3].encode().decode("unicode_escape").encode())
print(sock.recv(4096).split(b"\\r\\n")[0].decode(), flush=True)
while True:
    sock.recv(65536)
"""


@pytest.mark.row("F20")
@pytest.mark.long
@pytest.mark.needs("netns", "ip", "tc")
def test_a_client_vanishes_without_a_word(relay, redis_server, namespace, footprint, told):
    """Its cable is cut: no FIN, no RST, no ACK."""
    there, port = namespace(), embedded.free_port()
    env = {"REDIS_URL": redis_server.url, "STATUS_LISTEN_ADDR": f"0.0.0.0:{port}"}
    process = relay("status", env=env, wait=None)
    process.ports["status"] = port
    process.wait("ready")
    other = embedded.free_port()
    listens = {"STATUS_LISTEN_ADDR": f"0.0.0.0:{other}", "STATUS_PONG_TIMEOUT": "1h"}
    patient = relay("status", env=env | METRICS | listens, wait=None)
    patient.ports["status"] = other
    patient.wait("ready")
    files = footprint(process).files
    clients = []
    for where, topic in ((port, "gone"), (other, "kept")):
        asked = upgrade(f"/{topic}:wepp").decode().replace("\r\n", "\\r\\n")
        command = [*there.inside, sys.executable, "-c", VANISHED, there.here, str(where), asked]
        clients.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    try:
        for client in clients:
            assert " 101 " in client.stdout.readline()
        assert redis_server.execute("PUBSUB", "NUMSUB", "gone:wepp")[1] == 1
        there.cut()
        start = time.monotonic()

        def gone():
            count = redis_server.execute("PUBSUB", "NUMSUB", "gone:wepp")[1]
            return count == 0 and footprint(process).files <= files

        wait_for(gone, "reaped, its descriptor returned, its channel given up", 85.0)
        took = time.monotonic() - start
        assert metric(patient, "status2_connections_active") == 1, (
            "the control: with an hour for a pong it is still there"
        )
        told.injected("the cable of a client is cut")
        told.observed(f"reaped {took:.0f} s later, descriptor and subscription returned; with an hour for a pong, not")
        told.bound("85 s")
    finally:
        for client in clients:
            client.kill()
            client.wait()
            client.stdout.close()


PONG_JSON = frame(1, b'{"type":"pong"}')
HEARTBEAT = b'{"type":"ping"}'


def answering(peer, answer, late, until):
    """Answers each heartbeat so many seconds late -> whether the websocket stayed."""
    due = []
    peer.socket.settimeout(0.2)
    while time.monotonic() < until:
        while due and due[0] <= time.monotonic():
            due.pop(0)
            peer.send(answer)
        try:
            if not peer.more():
                return False
        except TimeoutError:
            continue
        if HEARTBEAT in peer.unread:
            due.append(time.monotonic() + late)
        if b"\x88" in peer.unread.replace(b"\x89\x00", b""):
            return False
        peer.unread = b""
    return True


@pytest.mark.row("F21")
@pytest.mark.long
def test_who_answers_late_or_in_one_way_only_stays(relay, redis_url, told):
    process = relay("status", env={"REDIS_URL": redis_url})
    ways = {
        "JSON, 60 s late": (PONG_JSON, 60),
        "protocol pongs only": (frame(10), 0),
        "JSON pongs only": (PONG_JSON, 0),
    }
    ways["never"] = (b"", 0)
    until, stayed = time.monotonic() + 160, {}
    with contextlib.ExitStack() as stack:
        peers = {name: stack.enter_context(Peer(f"{process.status_url}/r1:wepp")) for name in ways}

        def live(name):
            stayed[name] = answering(peers[name], *ways[name], until)

        threads = [threading.Thread(target=live, args=(name,)) for name in ways]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    told.injected("pongs 60 s late; of the protocol only; as JSON only; for 160 s")
    told.observed("all three stayed; one that never answered did not")
    told.bound("75 s of silence")
    assert stayed == {name: name != "never" for name in ways}


# ---- F22, F23, S3: floods ----


def flood(url, path, data, most):
    """Sends it again and again and never reads -> how many bytes the relay took before it had enough."""
    sent = 0
    with Wire(address_of(url), receive_buffer=4096) as wire:
        wire.send(upgrade(path))
        assert wire.answer().status == 101
        wire.socket.settimeout(5)
        with contextlib.suppress(OSError):
            while sent < most:
                wire.send(data)
                sent += len(data)
    return sent


FLOODS = {
    "pings": (frame(9, b"x" * 100) * 50, "frame_rate"),
    "pongs": (frame(10) * 500, "frame_rate"),
    "empty fragments": (frame(1, b"", final=False) + frame(0, b"", final=False) * 100_000, "fragments"),
    "empty fragments, no rate": (frame(1, b"", final=False) + frame(0, b"", final=False) * 100_000, "fragments"),
}


@pytest.mark.row("F22", "S3")
@pytest.mark.parametrize("service", ["status", "preflight"])
@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_that_never_reads(relay, redis_server, recorder, worker, footprint, told, name, service):
    data, bound = FLOODS[name]
    free = {"RELAY_FRAME_RATE": "100000", "RELAY_FRAME_BURST": "6553"} if "no rate" in name else {}
    process = relay(env={"REDIS_URL": redis_server.url, **METRICS, **free})
    judge, said, connection = recorder(), Said("run1:wepp"), worker(redis_server)
    judge.join(process.status_url, *[said] * 20)
    url, path = (process.status_url, "/evil:wepp") if service == "status" else (process.preflight_url, "/evil")
    used, held = footprint(process).cpu, footprint(process).memory
    sent = flood(url, path, data, 200 * MIB)
    for _ in range(20):
        said.publish(connection)
    judge.settle()
    used, held = footprint(process).cpu - used, footprint(process).memory - held
    told.injected(f"a flood of {name} by a client of {service} that never reads")
    told.observed(
        f"closed by {bound}, {sent >> 10} KiB of it; {used:.2f} s of CPU, {held >> 10} KiB; 20 others missed nothing"
    )
    told.bound("1 s of CPU, 1 MiB")
    assert sent < 200 * MIB, "it was never closed"
    assert breaches(process, "frame_rate", service) + breaches(process, "fragments", service) == 1
    assert used < 1
    assert held < MIB


@pytest.mark.row("S3")
def test_without_their_bound_fragments_go_on(relay, redis_url, told):
    """The control."""
    free = {"RELAY_FRAME_RATE": "100000", "RELAY_FRAME_BURST": "6553", "RELAY_MAX_FRAGMENTS": "1000000"}
    process = relay("status", env={"REDIS_URL": redis_url, **METRICS, **free})
    with Peer(f"{process.status_url}/evil:wepp") as peer:
        peer.send(frame(1, b"", final=False) + frame(0, b"", final=False) * 5000)
        peer.send(frame(0, b"") + frame(9, b"still"))
        while (got := peer.frame())[0] != 10:
            assert got[0] != 8
        assert got == (10, b"still")
        assert breaches(process, "fragments") == 0
    told.injected("5000 empty fragments where a million may come")
    told.observed("not closed")
    told.bound("control")


@pytest.mark.row("F22")
def test_without_its_bound_the_flood_goes_on(relay, redis_url, told):
    """The control."""
    env = {"REDIS_URL": redis_url, "RELAY_FRAME_RATE": "100000", "RELAY_FRAME_BURST": "6553", **METRICS}
    process = relay("status", env=env)
    data = frame(10) * 500
    with Wire(address_of(process.status_url)) as wire:
        wire.send(upgrade("/evil:wepp"))
        assert wire.answer().status == 101
        for _ in range(10):
            wire.send(data)
        wait_for(lambda: metric(process, "status2_connections_active") == 1, "it is still there")
        assert breaches(process, "frame_rate") == 0
    told.injected("5000 pongs at once where 6553 may come")
    told.observed("not closed")
    told.bound("control")


def crowd_of(count, address, data):
    """So many sockets that have all said the same; those that were let in."""
    found = []
    for _ in range(count):
        sock = socket.socket()
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.connect(address)
        found.append(sock)
    for sock in found:
        with contextlib.suppress(OSError):
            sock.setblocking(True)
            sock.sendall(data)
            sock.setblocking(False)
    return found


def alive(socks):
    """How many of them the other side has not ended."""
    count = 0
    for sock in socks:
        try:
            while sock.recv(4096):
                pass
        except BlockingIOError:
            count += 1
        except OSError:
            pass
    return count


@pytest.mark.row("F23")
@pytest.mark.long
@pytest.mark.parametrize("defended", [True, False], ids=["", "control"])
def test_slowloris(relay, redis_url, told, defended):
    off = {} if defended else {"RELAY_HEAD_TIMEOUT": "10m", "RELAY_MAX_HEADS": "100000"}
    process = relay("status", env={"REDIS_URL": redis_url, **METRICS, **off})
    address, took = address_of(process.status_url), []
    socks = crowd_of(5000, address, b"GET /r1:wepp HT")
    start = time.monotonic()
    try:
        while time.monotonic() < start + 6:
            begin = time.monotonic()
            with Peer(f"{process.status_url}/good:wepp"):
                took.append(time.monotonic() - begin)
            for sock in socks[:: random.randrange(5, 10)]:
                with contextlib.suppress(OSError):
                    sock.send(b"T")
        left = alive(socks)
    finally:
        for sock in socks:
            sock.close()
    took.sort()
    p99 = took[int(len(took) * 0.99)] * 1000
    told.injected(
        "5000 sockets that say their request a letter at a time" + ("" if defended else ", without the bounds")
    )
    told.observed(f"{left} left after 6 s; {len(took)} good handshakes meanwhile, p99 {p99:.1f} ms")
    told.bound("none after 5 s; 200 ms" if defended else "control")
    assert (left == 0) is defended
    assert p99 < 200 or not defended


# ---- F24: no request ----

NO_REQUESTS = [
    b"",
    b"\r\n",
    b"GET / HTTP/1.1\n\n",
    b"GET /r1:wepp HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"POST /r1:wepp HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"*1\r\n$4\r\nPING\r\n",
    b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    b"GET /r1:wepp HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 9000,
    upgrade("/__keyspace@0__:x"),
    upgrade("/%2e%2e/%00"),
    head("/r1:wepp", version="HTTP/1.0"),
    os.urandom(300),
]


@pytest.mark.row("F24")
def test_a_port_scan_is_no_log_flood(relay, redis_server, recorder, worker, told):
    process = relay(env={"REDIS_URL": redis_server.url})
    judge, said, connection = recorder(), Said("run1:wepp"), worker(redis_server)
    judge.join(process.status_url, said)
    lines, answers = len(process.stderr), set()
    for url in (process.status_url, process.preflight_url):
        for _ in range(20):
            for data in NO_REQUESTS:
                with Wire(address_of(url)) as wire:
                    wire.send(data)
                    wire.socket.shutdown(socket.SHUT_WR)
                    answers.add(wire.ended()[9:10])
    said.publish(connection)
    judge.settle()
    told.injected(f"{40 * len(NO_REQUESTS)} connections of {len(NO_REQUESTS)} kinds that are no request")
    told.observed(f"4xx or nothing; {len(process.stderr) - lines} lines in the log")
    told.bound("nothing escapes, no log flood")
    assert answers <= {b"4", b""}
    assert len(process.stderr) - lines <= 2


# ---- F25: all at once ----


def overflows():
    """Connections that the kernel dropped because a listen queue was full."""
    names, values = [
        line.split() for line in Path("/proc/net/netstat").read_text().splitlines() if line.startswith("TcpExt:")
    ]
    return sum(
        int(value) for name, value in zip(names, values, strict=True) if name in ("ListenOverflows", "ListenDrops")
    )


@pytest.mark.row("F25")
@pytest.mark.long
def test_five_thousand_come_back_within_a_second(relay, redis_server, told):
    process = relay("status", env={"REDIS_URL": redis_server.url, **METRICS})
    before, start = overflows(), time.monotonic()
    socks = crowd_of(5000, address_of(process.status_url), upgrade("/r1:wepp"))
    came = time.monotonic() - start
    try:
        wait_for(lambda: metric(process, "status2_connections_active") == 5000, "all served", 10.0 - came)
        took = time.monotonic() - start
        assert redis_server.execute("PUBLISH", "r1:wepp", "to all") == 1
        for sock in socks:
            sock.settimeout(5)
            data = b""
            while b"to all" not in data:
                part = sock.recv(4096)
                assert part, data
                data += part
    finally:
        for sock in socks:
            sock.close()
    told.injected(f"5000 handshakes within {came:.1f} s")
    told.observed(
        f"all served after {took:.1f} s, and each got the next message; {overflows() - before} dropped by the kernel"
    )
    told.bound("10 s, listen queue not overflown")
    assert overflows() == before


# ---- F31: errors of the kernel ----


@pytest.mark.row("F31")
@pytest.mark.needs("strace", "ptrace", "root")
@pytest.mark.parametrize("error", ["EPIPE", "ECONNRESET", "ENOBUFS"])
def test_a_send_fails_in_the_middle_of_a_fan_out(relay, redis_server, recorder, worker, tmp_path, told, error):
    process = relay("status", env={"REDIS_URL": redis_server.url})
    judge, said, connection = recorder(), Said("run1:wepp"), worker(redis_server)
    judge.join(process.status_url, *[said] * 30)
    log = tmp_path / "strace"
    inject = f"inject=sendto,sendmsg:error={error}:when=17"
    strace = subprocess.Popen(
        ["strace", "-f", "-o", str(log), "-e", "trace=sendto,sendmsg", "-e", inject, "-p", str(process.process.pid)],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert "attached" in strace.stderr.readline()
        for _ in range(3):
            said.publish(connection)
        wait_for(lambda: "INJECTED" in log.read_text(), "the error")
        wait_for(lambda: sum(client.ended is not None for client in judge.clients) == 1, "one client ended")
    finally:
        strace.send_signal(signal.SIGINT)
        strace.wait()
        strace.stderr.close()
    [gone] = [client for client in judge.clients if client.ended is not None]
    judge.leave(gone)
    for _ in range(3):
        said.publish(connection)
    judge.settle()
    told.injected(f"the 17th send of a fan-out to 30 clients fails with {error}")
    told.observed("that client alone was closed; 29 others got each message once")
    told.bound("that client alone")


# ---- F32: the relay itself is stopped ----


@pytest.mark.row("F32")
@pytest.mark.long
def test_stopped_for_longer_than_the_patience_with_clients(relay, redis_server, recorder, worker, told):
    process = relay(env={"REDIS_URL": redis_server.url})
    judge, connection = recorder(), worker(redis_server)
    channels, runs = [Said(f"run{n}:wepp") for n in range(100)], [Written(f"run{n}") for n in range(100)]
    judge.join(process.status_url, *channels)
    judge.join(process.preflight_url, *runs)
    judge.wait(lambda client: client.judge.readies, "ready")
    pings = [client.pings for client in judge.clients]
    judge.wait(lambda client: client.pings > 0, "heartbeats", 20)
    process.process.send_signal(signal.SIGSTOP)
    time.sleep(90)
    for channel in channels:
        channel.publish(connection)
    for run in runs:
        run.write(connection, 3)
    process.process.send_signal(signal.SIGCONT)
    start = time.monotonic()
    judge.wait(lambda client: client.judge.got > 0, "what came meanwhile, or a hole")
    wait_for(lambda: all(process.ready(service) for service in process.services), "ready")
    took = time.monotonic() - start
    for channel in channels:
        channel.publish(connection)
    judge.settle()
    judge.wait(lambda client: client.pings > pings[0] + 2, "heartbeats again", 30)
    judge.verdict()
    told.injected("SIGSTOP of the relay for 90 s, 200 clients")
    told.observed(f"no client closed, nothing missed; ready {took:.2f} s after SIGCONT")
    told.bound("no mass reaping")


# ---- all of it at once, and 500 who only watch ----


def _noise(url):
    """Random bytes before and after a handshake, ended by a reset."""
    for number in range(400):
        with Wire(address_of(url)) as wire:
            with contextlib.suppress(OSError):
                if number % 2:
                    wire.send(upgrade("/evil:wepp"))
                wire.send(os.urandom(random.randrange(1, 3000)) + random.choice([b"", b"\r\n\r\n"]))
            wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _churn_of_many(url):
    for number in range(1500):
        Peer(f"{url}/evil{number % 7}:wepp").drop()


def _slow_readers(url, redis):
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(Peer(f"{url}/evil:big", receive_buffer=4096))
        for _ in range(300):
            redis.publish("evil:big", "x" * 20_000)


def _oversize(url, redis):
    for number in range(20):
        redis.publish("evil:wepp", "x" * (2 << 20))
        redis.publish(f"nobody:{number}", "y" * (1 << 20))
        redis.publish("evil:wepp", b"\xff\xfe" * 1000)


def _closers(url):
    for code in range(1000, 1200):
        with Peer(f"{url}/evil:wepp") as peer, contextlib.suppress(OSError):
            peer.send(close(code) + frame(9, b"behind"))


@pytest.mark.row("F18", "F22", "F23", "F24", "S1", "S2", "S3")
@pytest.mark.long
def test_five_hundred_watch_while_others_attack(relay, redis_server, recorder, worker, footprint, told):
    process = relay(env={"REDIS_URL": redis_server.url})
    judge = recorder(keep=False)
    channels, runs = [Said(f"run{n}:wepp") for n in range(50)], [Written(f"run{n}") for n in range(50)]
    for version in (1, 2):
        for _ in range(3):
            judge.join(process.status_url, *channels, version=version)
        for _ in range(2):
            judge.join(process.preflight_url, *runs, version=version)
    url, connection = process.status_url, worker(redis_server)
    before, failed = footprint(process).memory, []
    attacks = [
        lambda: [flood(url, "/evil:wepp", data, 20 * MIB) for data, _ in FLOODS.values()],
        lambda: _noise(url),
        lambda: _noise(process.preflight_url),
        lambda: _churn_of_many(url),
        lambda: _slow_readers(url, worker(redis_server)),
        lambda: _oversize(url, worker(redis_server)),
        lambda: _closers(url),
        lambda: [sock.close() for sock in crowd_of(2000, address_of(url), b"GET / HT")],
        lambda: [ask(url, data) for data in NO_REQUESTS if data.startswith(b"GET") and data.endswith(b"\r\n\r\n")],
    ]

    def attack(one):
        try:
            one()
        except Exception as error:
            failed.append(error)

    with Publisher(lambda: worker(redis_server), channels, 500):
        threads = [threading.Thread(target=attack, args=(one,)) for one in attacks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for run in runs:
        run.write(connection, 6)
    judge.settle(30)
    grown = footprint(process).memory - before
    told.injected(f"{len(attacks)} kinds of attack at once on 500 clients")
    told.observed(f"no promise broken; memory {grown / MIB:+.1f} MiB")
    told.bound("every promise")
    assert not failed, failed
    assert grown < 64 * MIB
