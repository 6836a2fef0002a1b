"""`relay demo`: what it shows, and that nothing of it stays."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
from playwright.sync_api import sync_playwright
from websockets.sync.client import connect

from tests.integration.peers import wait_for

ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)/run/(.+)")


class Demo:
    """A `relay demo` that has printed its address."""

    def __init__(self, process):
        self.process = process
        self.address = process.stdout.readline().strip()
        match = ADDRESS.fullmatch(self.address)
        assert match, process.communicate()
        self.port, self.run = int(match[1]), match[2]
        self.preflight_port = int(re.search(r'data-preflight-port="(\d+)"', self.page())[1])

    def page(self):
        with urllib.request.urlopen(self.address, timeout=20) as answer:
            return answer.read().decode()

    def children(self):
        """The processes it started."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]


@pytest.fixture
def demo():
    """Starts demos, and ends what a failed test left."""
    with contextlib.ExitStack() as stack:

        def start(*args, **env):
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "relay", "demo", *args],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    start_new_session=True,
                    env={name: value for name, value in os.environ.items() if name != "REDIS_URL"} | env,
                )
            )
            stack.callback(lambda: process.poll() is None and process.terminate())
            return Demo(process)

        yield start


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_one_run_fills_log_and_checklist(demo):
    running = demo("--once", "--speed", "20", "--run", "my-run")
    assert running.run == "my-run"
    said, checklist = [], {}
    with (
        connect(f"ws://127.0.0.1:{running.port}/my-run:dss_export") as log,
        connect(f"ws://127.0.0.1:{running.preflight_port}/my-run") as checks,
    ):
        while not said or "TRIGGER" not in said[-1]:
            frame = json.loads(log.recv(timeout=60))
            said += [frame["data"]] if frame["type"] == "status" else []
        for message in checks:
            frame = json.loads(message)
            checklist = frame.get("checklist", checklist)
            if checklist.get("dss_export") and not any(frame.get("lock_statuses", {}).values()):
                break
    assert re.fullmatch(r"rq:\S+ STARTED post_dss_export_rq\(my-run\)", said[0])
    assert re.fullmatch(r"rq:\S+ COMPLETED post_dss_export_rq\(my-run\)", said[-2])
    assert re.fullmatch(r"rq:\S+ TRIGGER   dss_export DSS_EXPORT_TASK_COMPLETED", said[-1])
    assert {name for name, done in checklist.items() if done} == {
        "sbs_map", "channels", "outlet", "subcatchments", "landuse", "soils", "climate", "rap_ts", "wepp", "observed",
        "debris", "watar", "omni_scenarios", "dss_export",
    }  # fmt: skip
    assert running.process.wait(120) == 0
    assert running.process.stderr.read().endswith("relay demo: all ended\n")


def frames(url, kind):
    """What a websocket says of a kind, for as long as it is asked."""
    with connect(url) as socket:
        while True:
            frame = json.loads(socket.recv(timeout=60))
            if frame["type"] == kind:
                yield frame


def test_of_the_runs_beside_it_one_fails_and_is_started_again_and_one_is_slow(demo):
    running = demo("--speed", "4")
    status, preflight = (f"ws://127.0.0.1:{port}" for port in (running.port, running.preflight_port))
    said = "".join(running.process.stderr.readline() for _ in range(4))
    asked, quick, large = re.findall(r"/run/(\S+)", said)
    assert asked == "demo"
    climate = []
    with contextlib.closing(frames(f"{status}/{quick}:climate", "status")) as log:
        while not climate or "TRIGGER" not in climate[-1]:
            climate.append(next(log)["data"])
    failed = next(number for number, line in enumerate(climate) if " EXCEPTION build_climate_rq" in line)
    assert "Traceback (most recent call last):\n" in climate[failed - 1]
    assert "STARTED" in climate[failed + 1]
    assert "COMPLETED" in climate[-2]
    for run, done in ((quick, True), (large, False)):
        with contextlib.closing(frames(f"{preflight}/{run}", "preflight")) as checks:
            assert next(checks)["checklist"]["climate"] is done
    running.process.terminate()
    assert running.process.wait(30) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_ends_all_that_it_started(demo, number):
    running = demo()
    children = running.children()
    with contextlib.ExitStack() as pages:
        for channel in range(10):
            pages.enter_context(connect(f"ws://127.0.0.1:{running.port}/demo:c{channel}"))
        asked = time.monotonic()
        # As a terminal does it: to the whole process group.
        os.killpg(running.process.pid, number)
        assert running.process.wait(30) == 0
        took = time.monotonic() - asked
    assert children
    assert not [pid for pid in children if alive(pid)]
    assert took < 9  # 0.6 s on an idle machine; a drain that nobody shortened takes 10


def test_a_killed_demo_leaves_nothing_running(demo):
    running = demo()
    children = running.children()
    assert len(children) == 2
    running.process.kill()
    wait_for(lambda: not any(map(alive, children)), "the end of relay and Redis")


@pytest.mark.parametrize(
    ("killed", "why"), [(b"relay\0serve", "the relay ended by itself"), (b"redis-server", "gave no")]
)
def test_where_one_of_its_processes_ends_it_ends_with_a_sentence(demo, killed, why):
    running = demo()
    [victim] = [pid for pid in running.children() if killed in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(victim, signal.SIGKILL)
    assert running.process.wait(60) == 1
    last = running.process.stderr.read().splitlines()[-1]
    assert last.startswith("relay: ")
    assert why in last


def test_it_takes_free_ports_where_the_usual_ones_are_taken(demo):
    with contextlib.ExitStack() as taken:
        for port in (9001, 9002):
            with contextlib.suppress(OSError):  # taken already, which serves as well
                taken.enter_context(socket.create_server(("127.0.0.1", port)))
        running = demo("--speed", "50", "--once")
        assert running.port != 9002
        assert running.preflight_port not in (9001, running.port)
        assert running.process.wait(120) == 0


def test_demos_that_start_together_each_have_a_relay_of_their_own(demo):
    with ThreadPoolExecutor(3) as pool:
        names = ["one", "two", "three"]
        together = list(pool.map(lambda name: demo("--run", name, "--speed", "20"), names))
    ports = [port for running in together for port in (running.port, running.preflight_port)]
    assert len(set(ports)) == 6
    for running, name in zip(together, names, strict=True):
        log = frames(f"ws://127.0.0.1:{running.port}/{name}:dss_export", "status")
        with contextlib.closing(log):
            assert any(f"post_dss_export_rq({name})" in frame["data"] for frame in log)
    for running in together:
        running.process.terminate()
        assert running.process.wait(30) == 0


def test_it_starts_over_with_a_new_run(demo):
    running = demo("--speed", "50")
    with connect(f"ws://127.0.0.1:{running.port}/demo:channel_delineation") as log:
        starts = 0
        while starts < 2:
            starts += "STARTED" in json.loads(log.recv(timeout=60)).get("data", "")


def test_it_leaves_the_redis_of_the_environment_alone(demo, redis_url):
    """That one has the runs of people: a worker's shell names it."""
    assert demo("--once", "--speed", "50", REDIS_URL=redis_url).process.wait(120) == 0
    with redis.Redis.from_url(redis_url) as connection:
        assert connection.dbsize() == 0


def test_it_uses_the_redis_it_is_given(demo, redis_url):
    running = demo("--redis-url", redis_url, "--once", "--speed", "50")
    assert len(running.children()) == 1
    assert running.process.wait(120) == 0
    said = running.process.stderr.read()
    assert f"relay demo: writes its runs to {redis_url}" in said
    runs = re.findall(r"/run/(\S+)", said)
    assert len(runs) == 3
    with redis.Redis.from_url(redis_url) as connection:
        for run in runs:  # each has run to its end
            assert connection.hexists(run, "timestamps:dss_export")


def test_a_redis_that_is_not_there_is_a_sentence():
    result = subprocess.run(
        [sys.executable, "-m", "relay", "demo", "--redis-url", "nonsense"], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 1
    assert "relay: the relay did not start: exit code 3" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.needs("chromium")
def test_a_person_sees_the_log_and_the_checklist_fill(demo):
    running = demo("--speed", "10")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium",
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page()
        page.set_default_timeout(120_000)
        problems = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text))
        page.goto(running.address)
        page.wait_for_selector("#status-badge[data-state=live]")
        page.wait_for_selector("#preflight-badge[data-state=live]")
        page.wait_for_selector("li[data-state=running]")
        page.wait_for_selector("li[data-item=wepp][data-state=done]")
        page.wait_for_selector(".row.completed >> text=run_wepp_watershed_rq(demo)")
        rows = page.locator(".row .said").all_text_contents()
        assert "wepp watershed: routing 214 hillslopes through 87 channels" in rows
        assert page.evaluate("log.scrollHeight - log.scrollTop - log.clientHeight") < 30
        assert not problems
        browser.close()
