import os
import signal
import socket
import threading

import pytest
from click.testing import CliRunner

from relay.cli import demo
from relay.cli.commands import relay


def test_ending_waits_until_a_signal_asks():
    before = signal.getsignal(signal.SIGTERM)
    with demo.Ending() as ending:
        assert not ending.wait(0)
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
        assert ending.wait(10)
        assert ending.wait(10)  # and stays asked
    assert signal.getsignal(signal.SIGTERM) is before


def test_ending_takes_ctrl_c_without_an_exception():
    with demo.Ending() as ending:
        for _ in range(1000):  # an impatient person, and the pipe of the wakeups never read
            signal.raise_signal(signal.SIGINT)
        assert ending.wait(10)


def test_a_taken_port_is_not_free():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert not demo._free(port)
    assert demo._free(port)


def test_ports_are_the_usual_ones_or_two_others(monkeypatch):
    monkeypatch.setattr(demo, "_free", lambda port: True)
    assert demo._ports() == (9002, 9001)
    monkeypatch.setattr(demo, "_free", lambda port: False)
    ports = iter([5000, 5000, 5000, 5001])
    monkeypatch.setattr("relay.cli.embedded.free_port", lambda: next(ports))
    assert demo._ports() == (5000, 5001)


@pytest.mark.parametrize("run", ["..", "", "a/b", "a:b", "__x", "health d", "%2e%2e", "%61", "x" * 200])
def test_what_is_no_run_id_is_a_usage_error(run):
    result = CliRunner().invoke(relay, ["demo", "--run", run])
    assert result.exit_code == 2
    assert "is no run id" in result.stderr


@pytest.mark.parametrize("run", ["demo", "batch;;a;;b", "x.1_y-z"])
def test_run_ids(run):
    assert demo._run_id(None, None, run) == run
