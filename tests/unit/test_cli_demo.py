import os
import signal
import socket
import threading

import pytest
from click.testing import CliRunner

from relay.cli import demo, embedded
from relay.cli.commands import relay


def test_ending_waits_until_a_signal_asks():
    before = signal.getsignal(signal.SIGTERM)
    with demo.Ending() as ending:
        assert not ending.wait(0)
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
        assert ending.wait(10)
        assert ending.wait(10)  # and stays asked
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("before", "asks"), [(signal.SIG_DFL, True), (signal.SIG_IGN, False)])
def test_a_closed_terminal_asks_unless_it_is_ignored_as_under_nohup(before, asks):
    restored = signal.signal(signal.SIGHUP, before)
    try:
        with demo.Ending() as ending:
            signal.raise_signal(signal.SIGHUP)
            assert ending.wait(0) is asks
    finally:
        signal.signal(signal.SIGHUP, restored)


def test_ending_can_be_asked_for_by_the_program_again_and_again():
    with demo.Ending() as ending:
        for _ in range(2000):  # more than a socket takes
            ending.ask()
        assert ending.wait(10)


def test_ending_takes_ctrl_c_without_an_exception():
    with demo.Ending() as ending:
        for _ in range(1000):  # an impatient person, and the pipe of the wakeups never read
            signal.raise_signal(signal.SIGINT)
        assert ending.wait(10)


def test_a_listener_is_on_the_usual_port_or_on_one_that_is_free(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with demo._listener(port) as first:
        assert first.getsockname()[1] == port
        others = iter([port, port])
        free_port = embedded.free_port
        monkeypatch.setattr(embedded, "free_port", lambda: next(others, None) or free_port())
        with demo._listener(port) as second:
            assert second.getsockname()[1] in embedded.PORTS


@pytest.mark.parametrize("run", ["..", "", "a/b", "a:b", "__x", "health d", "%2e%2e", "%61", "x" * 200])
def test_what_is_no_run_id_is_a_usage_error(run):
    result = CliRunner().invoke(relay, ["demo", "--run", run])
    assert result.exit_code == 2
    assert "is no run id" in result.stderr


@pytest.mark.parametrize("speed", ["nan", "inf", "0", "-1", "fast"])
def test_what_is_no_speed_is_a_usage_error(speed):
    result = CliRunner().invoke(relay, ["demo", "--speed", speed])
    assert result.exit_code == 2
    assert "Invalid value for '--speed'" in result.stderr


@pytest.mark.parametrize("run", ["demo", "batch;;a;;b", "x.1_y-z"])
def test_run_ids(run):
    assert demo._run_id(None, None, run) == run


def runs(run, tmp_path, speed=1.0):
    return demo._runs(run, tmp_path, lambda seconds: False, speed)


def test_two_runs_beside_the_one_that_is_asked_for(tmp_path):
    assert list(runs("demo", tmp_path)) == ["demo", demo.QUICK, demo.LARGE]
    assert all(worker.run == name for name, (worker, _) in runs("demo", tmp_path).items())


@pytest.mark.parametrize("name", [demo.QUICK, demo.LARGE])
def test_a_run_has_one_worker(tmp_path, name):
    found = runs(name, tmp_path, speed=3)
    assert sorted(found) == sorted([demo.QUICK, demo.LARGE])
    assert next(iter(found)) == name
    assert "at --speed 3" in found[name][1]


def test_the_guide_names_each_run_its_page_and_commands_for_the_terminal(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "_program", lambda: "relay")
    guide = demo._guide(runs("my-run", tmp_path), 9002, 5001).splitlines()
    pages = [line.split()[0] for line in guide if "/run/" in line]
    assert pages == [f"http://127.0.0.1:9002/run/{name}" for name in ("my-run", demo.QUICK, demo.LARGE)]
    assert guide[-2:] == [
        f"  relay tail my-run:wepp {demo.QUICK}:climate {demo.LARGE}:wepp",
        f"  relay checklist {demo.QUICK} --watch --url ws://127.0.0.1:5001",
    ]
    assert " --url ws://127.0.0.1:5002" in demo._guide(runs("r", tmp_path), 5002, 9001)


def test_the_program_is_what_the_shell_finds(monkeypatch):
    monkeypatch.setattr(demo.shutil, "which", lambda name: "/usr/bin/relay")
    assert demo._program() == "relay"
    monkeypatch.setattr(demo.shutil, "which", lambda name: None)
    monkeypatch.setattr(demo.sys, "argv", [".venv/bin/relay", "demo"])
    assert demo._program() == ".venv/bin/relay"
    monkeypatch.setattr(demo.sys, "argv", ["/x/relay/__main__.py", "demo"])
    assert demo._program().endswith(" -m relay")
