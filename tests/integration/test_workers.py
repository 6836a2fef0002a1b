"""`relay serve --workers N`: what clients and operators see of several processes, and of their coming and going."""

import contextlib
import json
import os
import re
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
import redis

from tests.conftest import Relay
from tests.integration.peers import Peer, Refused, close, wait_for

DRAIN = {"RELAY_DRAIN": "200ms"}


def workers(process):
    """Their process ids."""
    pid = process.process.pid
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def said(process):
    return [json.loads(line)["msg"] for line in process.stderr if line.startswith("{")]


@pytest.fixture
def start(relay):
    """A status relay of several workers, all of them there."""

    def make(count=2, *args, env=None, wait="ready"):
        process = relay("status", "--workers", str(count), *args, env={**DRAIN, **(env or {})}, wait=wait)
        if wait:
            wait_for(lambda: f"{count} workers serve" in said(process), "all workers", patience=60)
        return process

    return make


@pytest.fixture
def publish(redis_url):
    """Publishes a text on a channel."""
    with contextlib.closing(redis.Redis.from_url(redis_url)) as client:
        yield client.publish


@pytest.fixture
def internal(tmp_path):
    """The address of an internal listener, and what it says at a path."""
    path = str(tmp_path / "internal.sock")

    def ask(page):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(path)
            sock.sendall(f"GET {page} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            data = b""
            while part := sock.recv(65536):
                data += part
        return json.loads(data.partition(b"\r\n\r\n")[2])

    ask.env = {"RELAY_INTERNAL_ADDR": f"unix:{path}"}
    return ask


class Newcomers(threading.Thread):
    """Connects without a pause, for as long as the block takes; what was not answered with 101 is kept.

    With `killed`, of a process: whom it was about to answer, one at most, gets no answer any more.
    """

    def __init__(self, url, *, killed=False):
        super().__init__(daemon=True)
        self.url, self.opened, self.failed, self.going, self.killed = url, 0, [], True, killed

    def run(self):
        while self.going:
            try:
                with Peer(f"{self.url}/new:comer") as peer:
                    self.opened += 1
                    peer.send(close())
                    assert peer.closed()[0] in (1000, 1012), "neither left nor told to come back"
            except (OSError, Refused, AssertionError) as error:
                self.failed.append(repr(error))

    def __enter__(self):
        self.start()
        wait_for(lambda: self.opened, "a newcomer")
        return self

    def __exit__(self, *_):
        self.going = False
        self.join(20)
        if self.killed and len(self.failed) == 1 and "refused" not in self.failed[0].lower():
            self.failed.clear()
        assert not self.failed
        assert not self.is_alive()


def test_whoever_serves_everybody_gets_everything(start, publish, internal):
    process = start(3, env=internal.env)
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer(f"{process.status_url}/run{n % 4}:wepp")) for n in range(60)]
        for n in range(4):
            publish(f"run{n}:wepp", f"for {n}")
        assert [peer.data() for peer in peers] == [f"for {n % 4}" for n in range(60)]
        page = wait_for(lambda: (p := internal("/debug"))["totals"]["sockets"] >= 60 and p, "all counted")
        served = [worker["services"]["status"]["connections"] for worker in page["workers"]]
        assert sum(served) == page["services"]["status"]["connections"] == 60
        assert min(served) >= 5, "each has its share: 20, and with one chance in 100 000 less than 5"
        assert {worker["pid"] for worker in page["workers"]} == workers(process)
        largest = {each["topic"]: each["clients"] for each in page["services"]["status"]["largest"]}
        assert largest == {f"run{n}:wepp": 15 for n in range(4)}


@pytest.mark.row("F28")
def test_a_killed_worker_is_there_again_and_nobody_is_refused(start, publish, told):
    process = start()
    told.injected("SIGKILL of one worker of two, while newcomers come without a pause")
    told.bound("another one in 2 s; nobody refused; nothing stale")
    took = seconds_until_another(process)
    if took >= 2.0:  # as this machine may stand still
        took = seconds_until_another(process)
    assert took < 2.0
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer(f"{process.status_url}/run:wepp")) for _ in range(30)]
        publish("run:wepp", "to all")
        assert [peer.data() for peer in peers] == ["to all"] * 30
    told.observed(f"another one after {took:.2f} s; 30 clients of 30 got the next message")
    wait_for(lambda: any("ended unasked (signal 9)" in line for line in said(process)), "the line in the log")


def seconds_until_another(process):
    before = workers(process)
    with Newcomers(process.status_url, killed=True):
        killed = time.monotonic()
        os.kill(min(before), signal.SIGKILL)
        wait_for(lambda: len(workers(process) - before) == 1, "another worker")
        took = time.monotonic() - killed
        wait_for(lambda: process.ready("status"), "ready again")
    return took


def test_one_that_dies_at_once_is_tried_later_and_later_while_another_serves_its_newcomers(start):
    process = start()
    for _ in range(4):
        there = workers(process)
        os.kill(max(there), signal.SIGKILL)
        wait_for(lambda there=there: workers(process) - there or len(workers(process)) == 1, "noticed")
        wait_for(lambda: len(workers(process)) == 2, "another one")
    pauses = [float(m[1]) for line in said(process) if (m := re.search(r"starts in ([\d.]+) s", line))]
    assert pauses == sorted(pauses)
    assert pauses[-1] > 1
    left = workers(process)
    os.kill(max(left), signal.SIGKILL)
    wait_for(lambda: len(workers(process)) == 1, "gone")
    with Newcomers(process.status_url) as newcomers:
        wait_for(lambda: workers(process) - left, "another one, which takes its time")
        assert newcomers.opened > 5


def test_hup_replaces_all_and_refuses_nobody(start):
    process = start()
    before = workers(process)
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer(f"{process.status_url}/run:wepp")) for _ in range(20)]
        with Newcomers(process.status_url) as newcomers:
            opened = newcomers.opened
            process.process.send_signal(signal.SIGHUP)
            wait_for(lambda: "all workers are replaced" in said(process), "the replacement", patience=60)
            assert newcomers.opened > opened + 20
        assert {peer.closed()[0] for peer in peers} == {1012}
    assert len(workers(process)) == 2
    assert not workers(process) & before
    assert process.ready("status")
    assert not any("unasked" in line for line in said(process))


def test_hup_with_a_mistake_in_the_settings_changes_nothing(start, tmp_path):
    settings = tmp_path / "settings"
    settings.write_text("STATUS_PING_INTERVAL=1h\n")
    process = start(2, "--env-file", str(settings), env={"STATUS_PONG_TIMEOUT": "2h"})
    before = workers(process)
    settings.write_text("STATUS_PING_INTERVAL=5\n")
    process.process.send_signal(signal.SIGHUP)
    wait_for(lambda: any("the old ones stay" in line for line in said(process)), "the mistake noticed")
    assert any("STATUS_PING_INTERVAL" in line for line in process.stderr), "and which it is"
    assert workers(process) == before
    Peer(f"{process.status_url}/run:wepp").leave()
    settings.write_text("STATUS_PING_INTERVAL=1s\nSTATUS_PING_INTREVAL=1s\n")
    process.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "all workers are replaced" in said(process), "the replacement", patience=60)
    assert sum("STATUS_PING_INTREVAL" in line for line in said(process)) == 1, "what is odd about them is said once"
    with Peer(f"{process.status_url}/run:wepp") as peer:
        assert peer.pinged(), "by the new setting"


def test_flags_end_where_the_user_says(relay):
    process = relay("--workers", "2", "--", "status", env=DRAIN, wait=None)
    wait_for(lambda: "2 workers serve" in said(process), "all workers", patience=60)


def test_one_more_and_one_less(start, publish):
    process = start()
    process.process.send_signal(signal.SIGTTIN)
    wait_for(lambda: len(workers(process)) == 3, "a third")
    for count in (2, 1):
        process.process.send_signal(signal.SIGTTOU)
        wait_for(lambda count=count: len(workers(process)) == count, f"{count} workers", patience=60)
    process.process.send_signal(signal.SIGTTOU)
    wait_for(lambda: any("the last worker stays" in line for line in said(process)), "that it stays")
    with contextlib.ExitStack() as stack:  # the sockets of those that went are served by who is left
        peers = [stack.enter_context(Peer(f"{process.status_url}/run:wepp")) for _ in range(40)]
        process.process.send_signal(signal.SIGTTIN)
        wait_for(lambda: len(workers(process)) == 2, "one more again")
        wait_for(lambda: process.ready("status"), "all ready")
        peers += [stack.enter_context(Peer(f"{process.status_url}/run:wepp")) for _ in range(20)]
        publish("run:wepp", "to all")
        assert [peer.data() for peer in peers] == ["to all"] * 60


def test_every_socket_has_somebody_whoever_comes_and_goes(start):
    """One that was taken away had served for others: their sockets were nobody's, and 14 of 24 newcomers hung."""
    process = start(3)
    for count in (2, 1):
        process.process.send_signal(signal.SIGTTOU)
        wait_for(lambda count=count: len(workers(process)) == count, f"{count} workers", patience=60)
    for _ in range(30):
        Peer(f"{process.status_url}/run:wepp").leave()
    before = workers(process)
    os.kill(min(before), signal.SIGKILL)
    wait_for(lambda: workers(process) - before, "another one")
    for _ in range(30):
        Peer(f"{process.status_url}/run:wepp").leave()


def test_a_worker_that_is_asked_to_end_alone_drains_and_another_one_comes(start):
    process = start(env={"RELAY_DRAIN": "3s"})
    before = workers(process)
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer(f"{process.status_url}/run:wepp")) for _ in range(30)]
        with Newcomers(process.status_url) as newcomers:
            os.kill(min(before), signal.SIGTERM)
            wait_for(lambda: workers(process) - before, "another one")
            ended = wait_for(lambda: [line for line in said(process) if "ended unasked" in line], "the line in the log")
            assert "(SIGTERM)" in ended[0], "it is for one that drains, and not for one that is gone"
            opened = newcomers.opened
            wait_for(lambda: newcomers.opened > opened + 50, "served meanwhile")
        wait_for(lambda: min(before) not in workers(process), "its end")
        told = 0
        for peer in peers:
            peer.socket.settimeout(0.05)
            with contextlib.suppress(OSError):
                told += peer.closed()[0] == 1012
        assert 1 <= told <= 29, "its clients alone"


def test_a_manager_that_asks_all_processes_to_end_is_heard_once(start):
    """systemd's default: a worker that heard of it from the supervisor first took its own SIGTERM for a second one."""
    process = start(env={"RELAY_DRAIN": "2s"})
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer(f"{process.status_url}/run:wepp")) for _ in range(40)]
        there = workers(process)
        began = time.monotonic()
        process.process.send_signal(signal.SIGTERM)
        wait_for(lambda: sum("the relay ends" in line for line in said(process)) == 2, "the order")
        for pid in there:
            os.kill(pid, signal.SIGTERM)
        assert {peer.closed()[0] for peer in peers} == {1012}
        assert time.monotonic() - began > 1.0, "spread over the drain"
    assert process.process.wait(10) == 0
    assert not any("at once" in line for line in said(process))


def test_what_clients_were_told_last_is_counted(start):
    process = start(env={"STATUS_METRICS_ENABLED": "true"})
    for _ in range(2):
        peers = [Peer(f"{process.status_url}/run:wepp") for _ in range(20)]
        before = len([line for line in said(process) if "all workers are replaced" in line])
        process.process.send_signal(signal.SIGHUP)
        for peer in peers:
            assert peer.closed()[0] == 1012
            peer.send(close(1012))
            peer.drop()
        wait_for(
            lambda before=before: len([x for x in said(process) if "all workers are replaced" in x]) > before,
            "the replacement",
            patience=60,
        )
    assert total(process, "status2_closes_total") == 40


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ("REDIS_URL=redis://127.0.0.1:1\n", "has no Redis, and the one before has"),
        ("RELAY_INTERNAL_ADDR=127.0.0.1:0\n", "the settings have other listeners"),
    ],
)
def test_hup_takes_nobody_to_where_nothing_is(start, tmp_path, redis_url, changed, why):
    settings = tmp_path / "settings"
    settings.write_text(f"REDIS_URL={redis_url}\n")
    process = start(2, "--env-file", str(settings), env={"REDIS_URL": None})
    before = workers(process)
    settings.write_text(f"REDIS_URL={redis_url}\n{changed}" if "REDIS" not in changed else changed)
    process.process.send_signal(signal.SIGHUP)
    wait_for(lambda: any(why in line for line in process.stderr), why, patience=60)
    wait_for(lambda: any("the old ones stay" in line for line in said(process)), "that they stay")
    wait_for(lambda: workers(process) == before, "the new one's end")
    assert process.ready("status")


def test_a_worker_that_comes_back_takes_nobody_to_where_nothing_is(start, tmp_path, redis_url, publish):
    settings = tmp_path / "settings"
    settings.write_text(f"REDIS_URL={redis_url}\n")
    process = start(2, "--env-file", str(settings), env={"REDIS_URL": None})
    before = workers(process)
    settings.write_text("REDIS_URL=redis://127.0.0.1:1\n")
    os.kill(min(before), signal.SIGKILL)
    said_so = "has no Redis, and others have: it lets nobody in until it has"
    wait_for(lambda: any(said_so in line for line in said(process)), said_so, patience=60)
    assert process.ready("status")
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer(f"{process.status_url}/run:wepp")) for _ in range(12)]
        publish("run:wepp", "to all")
        assert [peer.data() for peer in peers] == ["to all"] * 12
    settings.write_text(f"REDIS_URL={redis_url}\n")
    process.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "all workers are replaced" in said(process), "a good one", patience=60)
    assert process.ready("status")


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ("REDIS_URL=redis://127.0.0.1:1\n", "has no Redis, and others have: none is added"),
        # By itself it would end the whole relay, as the settings say of one that serves.
        ("REDIS_URL=redis://127.0.0.1:1\nSTATUS_REDIS_MAX_RETRIES=1\n", "does not start (exit code 4): none is added"),
    ],
)
def test_one_more_takes_nobody_to_where_nothing_is(start, tmp_path, redis_url, publish, changed, why):
    settings = tmp_path / "settings"
    settings.write_text(f"REDIS_URL={redis_url}\n")
    process = start(2, "--env-file", str(settings), env={"REDIS_URL": None})
    process.process.send_signal(signal.SIGTTOU)
    wait_for(lambda: len(workers(process)) == 1, "one worker", patience=60)
    before = workers(process)
    settings.write_text(f"REDIS_URL={redis_url}\n{changed}" if "REDIS" not in changed else changed)
    process.process.send_signal(signal.SIGTTIN)
    wait_for(lambda: any(why in line for line in said(process)), why, patience=60)
    wait_for(lambda: workers(process) == before, "the new one's end", patience=60)
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer(f"{process.status_url}/run:wepp")) for _ in range(12)]
        publish("run:wepp", "to all")
        assert [peer.data() for peer in peers] == ["to all"] * 12


def test_term_drains_all(start):
    # In one of three times: this machine may stand still for as long as the delay.
    assert any(says_first_that_it_drains(start(2, env={"RELAY_DRAIN_DELAY": "500ms"})) for _ in range(3))


def says_first_that_it_drains(process):
    said_so = False
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer(f"{process.status_url}/run:wepp")) for _ in range(30)]
        process.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(OSError):  # nobody listens any more
            said_so = wait_for(lambda: process.http("status", "/readyz")[0] == 503, "not ready first")
        assert {peer.closed()[0] for peer in peers} == {1012}
        for peer in peers:
            peer.drop()
    assert process.process.wait(10) == 0
    assert not process.listens("status")
    return said_so


def test_a_second_term_ends_all_at_once(start):
    process = start(2, env={"RELAY_DRAIN_DELAY": "60s"})
    with Peer(f"{process.status_url}/run:wepp"):
        process.process.send_signal(signal.SIGTERM)
        wait_for(lambda: any("draining" in line for line in said(process)), "the drain")
        began = time.monotonic()
        assert process.stop() == 0
        assert time.monotonic() - began < 10


def test_ctrl_c_reaches_all_processes_and_counts_once(start):
    process = start()
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer(f"{process.status_url}/run:wepp")) for _ in range(10)]
        os.killpg(process.process.pid, signal.SIGINT)
        assert {peer.closed()[0] for peer in peers} == {1012}
    assert process.process.wait(10) == 0
    assert not any("at once" in line for line in said(process))


def test_workers_whose_supervisor_is_gone_drain(start):
    process = start()
    there = workers(process)
    with Peer(f"{process.status_url}/run:wepp") as peer:
        process.process.kill()
        assert peer.closed()[0] == 1012
    wait_for(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in there), "their end")


def total(process, name):
    text = process.http("status", "/metrics")[2].decode()
    return sum(float(line.split()[-1]) for line in text.splitlines() if re.match(rf"{name}[ {{]", line))


def test_the_metrics_are_of_all_and_never_fall(start):
    process = start(2, env={"STATUS_METRICS_ENABLED": "true"})
    with contextlib.ExitStack() as stack:
        for _ in range(30):
            stack.enter_context(Peer(f"{process.status_url}/run:wepp"))
        wait_for(lambda: total(process, "status2_connections_active") == 30, "all counted")
    wait_for(lambda: total(process, "status2_connections_active") == 0, "all gone")
    assert total(process, "status2_connections_opened_total") == 30  # so all of them are in some row
    seen = [total(process, "status2_connections_opened_total")]
    os.kill(min(workers(process)), signal.SIGKILL)
    while len(seen) < 100:
        with contextlib.suppress(OSError):
            seen.append(total(process, "status2_connections_opened_total"))
    assert set(seen) == {30}


def test_ready_is_what_all_of_them_are(start, internal):
    process = start(2, env=internal.env)
    pid = min(workers(process))
    os.kill(pid, signal.SIGSTOP)
    try:
        page = wait_for(lambda: not (p := internal("/readyz"))["ready"] and p, "one that hangs is noticed")
        assert f"worker {pid} hangs" in page["services"]["status"]["why"]
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: internal("/readyz")["ready"], "all well again")


def test_a_unix_socket_is_shared(relay, tmp_path, publish):
    path = str(tmp_path / "status.sock")
    process = relay("status", "--workers", "2", "--uds", path, env=DRAIN, wait=None)
    wait_for(lambda: "2 workers serve" in said(process), "all workers", patience=60)
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer("ws://x/run:wepp", address=path)) for _ in range(20)]
        publish("run:wepp", "to all")
        assert [peer.data() for peer in peers] == ["to all"] * 20
    assert process.stop() == 0
    assert not Path(path).exists()


def test_a_wrong_password_is_said_once_and_ends_all(relay, redis_server):
    redis_server.execute("ACL", "SETUSER", "default", "resetpass", ">secret")
    process = relay("status", "--workers", "2", env={"REDIS_URL": redis_server.url}, wait=None)
    assert process.process.wait(20) == 3
    assert len([line for line in process.stderr if line.startswith("relay: ")]) == 1


def test_a_second_relay_does_not_share_the_port_of_the_first(start, tmp_path, redis_url):
    process = start()
    address = f"127.0.0.1:{process.ports['status']}"
    (tmp_path / "other").mkdir()
    other = Relay(
        ("status", "--workers", "2"), {"REDIS_URL": redis_url, "STATUS_LISTEN_ADDR": address}, tmp_path / "other"
    )
    assert other.process.wait(20) == 5
    assert any("something else listens there already" in line for line in other.stderr)


def test_one_process_alone_does_not_end_by_a_reload(relay):
    process = relay("status")
    process.process.send_signal(signal.SIGHUP)
    wait_for(lambda: any("SIGHUP: nothing is done" in line for line in said(process)), "that it says so")
    assert process.ready("status")
