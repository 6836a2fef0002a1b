"""F34: workers that fork, with many threads, while Redis is killed, frozen, silent, cut off and full.

The judge is a recorder before Redis: it sees what each connection of each process really said and was answered, and
knows nothing of the client's own counts until the end, when the two must agree to the line.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis
from rq import Queue

from tests.conftest import ADMIN
from tests.integration.recorder import Recorder

ROOT = Path(__file__).parents[2]
THREADS, LINES = 4, 2500
PROCESSES = 3
TOTALS = {"parent": THREADS * LINES + 1, "one": THREADS * LINES, "two": THREADS * LINES}

WORKER = """
import json, os, sys, threading, time
from client import StatusMessenger

mode, threads, lines, size = sys.argv[1], *map(int, sys.argv[2:])

def configure():
    if mode == "queued":
        StatusMessenger.configure(queue=size)

def say(name, thread):
    for line in range(lines):
        StatusMessenger.publish("run1:wepp", f"{name} {thread} {line}")
        if line % 10 == 0:
            time.sleep(0.004)  # the step's own work, so that the faults fall among the lines

def work(name):
    configure()
    all_threads = [threading.Thread(target=say, args=(name, thread)) for thread in range(threads)]
    for thread in all_threads:
        thread.start()
    for thread in all_threads:
        thread.join()
    StatusMessenger.flush(15)
    counts = StatusMessenger.counts()._asdict()
    os.write(1, (json.dumps({"name": name, "counts": counts}) + "\\n").encode())

configure()
StatusMessenger.publish("run1:wepp", "parent first 0")
children = []
for child in ("one", "two"):
    pid = os.fork()
    if not pid:
        work(child)
        os._exit(0)
    children.append(pid)
work("parent")
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
sys.exit(any(codes))
"""


def kill(server, recorder):
    server.kill()
    time.sleep(0.5)
    server.start()


def freeze(server, recorder):
    server.pause()
    time.sleep(1.5)
    server.resume()


def silence(server, recorder):
    recorder.mute.set()
    time.sleep(1.2)
    recorder.mute.clear()


def swallow(server, recorder):
    recorder.deaf.set()
    time.sleep(1.2)
    recorder.deaf.clear()


def cut(server, recorder):
    for _ in range(10):
        recorder.cut()
        time.sleep(0.05)


def full(server, recorder):
    user, password = ADMIN
    with redis.Redis(port=server.port, username=user, password=password, single_connection_client=True) as admin:
        admin.config_set("maxclients", 1)
        recorder.cut()
        time.sleep(0.5)
        admin.config_set("maxclients", 1000)


def nothing(server, recorder):
    pass


@pytest.mark.row("F34")
@pytest.mark.parametrize("mode", ["direct", "queued"])
@pytest.mark.parametrize("fault", [nothing, kill, freeze, silence, swallow, cut, full], ids=lambda f: f.__name__)
def test_each_line_is_accounted_for(redis_server, mode, fault):
    with Recorder(redis_server.port) as recorder:
        reports = run(redis_server, recorder, mode, fault)
    judge(recorder, reports, mode)
    if fault is nothing and mode == "queued":
        assert all(counts["published"] >= THREADS * LINES for counts in reports.values()), reports


def run(server, recorder, mode, fault):
    """Run the program with the fault a moment after its first line; the counts that each of its processes gives."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A queue that the faults make run over; and without any, all lines, for Redis may stand still with the machine.
    size = THREADS * LINES + 1 if fault is nothing else 3000
    command = [sys.executable, "-c", WORKER, mode, str(THREADS), str(LINES), str(size)]
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | {"REDIS_URL": recorder.url}, **pipes) as process:
        try:
            heard_of(recorder, PROCESSES)
            fault(server, recorder)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, "Traceback" in err) == (0, False), err
    return {report["name"]: report["counts"] for report in map(json.loads, out.splitlines())}


def heard_of(recorder, connections):
    deadline = time.monotonic() + 10
    while len(recorder.said) < connections and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(recorder.said) >= connections


def heard_line(recorder, name):
    deadline = time.monotonic() + 30
    while not any(f"{name} 0 ".encode() in said for said in list(recorder.said)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def judge(recorder, reports, mode, totals=TOTALS):
    assert set(reports) == set(totals)
    said = [[line.split(b" ") for _, line in lines if not line.startswith(b"StatusMessenger: ")]
            for lines in recorder.published()]  # fmt: skip
    for lines in said:
        assert len({name for name, _, _ in lines}) <= 1, "no two processes speak on one connection"
    everything = [(name, thread, int(line)) for lines in said for name, thread, line in lines]
    assert len(set(everything)) == len(everything), "no line is said twice"
    answered = [line.split(b" ")[0] for lines in recorder.answered() for _, line in lines]
    for name, counts in reports.items():
        assert sum(counts.values()) == totals[name], "each line is published, dropped, in doubt or still waiting"
        mine = [line for line in everything if line[0] == name.encode()]
        taken = answered.count(name.encode())
        assert len(mine) <= counts["published"] + counts["in_doubt"], "nothing dropped was said"
        assert counts["published"] <= taken <= counts["published"] + counts["in_doubt"], (name, counts, taken)
        for thread in range(THREADS):
            lines = [line for _, t, line in mine if t == b"%d" % thread]
            assert lines == sorted(lines), "in order, over all connections"
    if mode == "queued":
        assert not any(counts["waiting"] for counts in reports.values())


@pytest.mark.row("F34")
@pytest.mark.parametrize("fault", [kill, freeze, swallow, full], ids=lambda f: f.__name__)
def test_each_line_of_a_work_horse_is_accounted_for(redis_server, redis_url, fault):
    """Work-horses leave through os._exit; that what waits there is lost without client.rq is tried beside its tests."""
    names = ("one", "two")
    with Recorder(redis_server.port) as recorder, redis.Redis.from_url(redis_url) as connection:
        queue = Queue(connection=connection)
        jobs = {name: queue.enqueue("tests.faults.jobs.say", name, THREADS, LINES) for name in names}
        program = [sys.executable, "-c", "from rq.cli import main; main()", "worker"]
        command = [*program, "--burst", "--quiet", "--url", redis_url, "--worker-class", "client.rq.Worker"]
        env = os.environ | {"REDIS_URL": recorder.url, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True) as process:
            try:
                for name in names:
                    # Behind its first line, the work-horse before it has ended: what that said last is not hit.
                    heard_line(recorder, name)
                    fault(redis_server, recorder)
                    wait_for(jobs[name])
                _, err = process.communicate(timeout=60)
            finally:
                process.kill()
        assert (process.returncode, "Traceback" in err) == (0, False), err
        reports = {name: job.return_value() for name, job in jobs.items()}
    # What waited when the job returned was sent before its work-horse ended.
    judge(recorder, {name: counts | {"published": counts["published"] + counts["waiting"], "waiting": 0}
                     for name, counts in reports.items()}, "queued", dict.fromkeys(names, THREADS * LINES))  # fmt: skip


def wait_for(job):
    deadline = time.monotonic() + 60
    while not job.is_finished and time.monotonic() < deadline:
        time.sleep(0.02)
    assert job.is_finished, job.get_status()


def test_the_judge_sees_a_line_that_is_said_twice(redis_server):
    with Recorder(redis_server.port) as recorder:
        reports = run(redis_server, recorder, "queued", nothing)
        recorder.said.append(bytearray(recorder.said[-1]))
        recorder.heard.append(bytearray(recorder.heard[-1]))
    with pytest.raises(AssertionError, match="no line is said twice"):
        judge(recorder, reports, "queued")
