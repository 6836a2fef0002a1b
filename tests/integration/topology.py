"""What docker-compose.yml describes, from Debian's packages: Redis, four relays of each service, haproxy."""

import contextlib
import csv
import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import yaml

from relay.cli.embedded import free_port
from tests.conftest import ROOT, RedisServer, Relay
from tests.integration.peers import wait_for

DEPLOY = ROOT / "deploy"
PORTS = {"status": 9002, "preflight": 9001}
COMPOSE = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())
RELAYS = [f"{service}-{number}" for service in PORTS for number in range(1, 5)]
PASSWORD = "only-on-loopback"
DRAIN_DELAY = "1300ms"  # 3 s in docker-compose.yml; above the 1.25 s in which haproxy finds a relay not ready


def interpolated(text):
    """As Compose reads a value where no variable is set: ${NAME:-default}, ${NAME-default}, $$."""
    return re.sub(r"\$\{[A-Z_]+:?-([^}]*)\}", r"\1", text).replace("$$", "$")


def environment(name):
    """The variables of a service in docker-compose.yml."""
    return {key: interpolated(str(value)) for key, value in COMPOSE["services"][name].get("environment", {}).items()}


class Haproxy:
    """haproxy as its image and Debian's unit start it, in master-worker mode, with deploy/haproxy.cfg as it is."""

    def __init__(self, directory, addresses, **options):
        self.ports = {service: free_port() for service in PORTS}
        self._admin = directory / "admin.sock"
        where = {name.replace("-", "_").upper(): address for name, address in addresses.items()}
        where |= {service.upper(): f"127.0.0.1:{port}" for service, port in self.ports.items()}
        where |= {"ADMIN": str(self._admin), "HARD_STOP": "2s", **options}
        self.env = os.environ | {f"HAPROXY_{name}": value for name, value in where.items()}
        with (directory / "haproxy.log").open("wb") as log:
            command = ["haproxy", "-W", "-db", "-f", str(DEPLOY / "haproxy.cfg")]
            self.process = subprocess.Popen(command, env=self.env, stdout=log, stderr=log)
        wait_for(self._admin.exists, "haproxy runs")

    def url(self, service):
        return f"ws://127.0.0.1:{self.ports[service]}"

    def workers(self):
        """The process ids of those who serve: one, and after a reload the one before it."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def reload(self):
        """The master starts a new worker with `-sf`, and the one before it lets go."""
        before = set(self.workers())
        self.process.send_signal(signal.SIGUSR2)
        wait_for(lambda: set(self.workers()) - before, "a new worker")

    def up(self, backend):
        """The servers of a backend that get clients."""
        with socket.socket(socket.AF_UNIX) as admin, contextlib.suppress(OSError):
            admin.connect(str(self._admin))
            admin.sendall(b"show stat\n")
            table = csv.DictReader(admin.makefile())
            rows = [row for row in table if row["# pxname"] == backend and row["svname"] in RELAYS]
            return {row["svname"] for row in rows if row["status"].startswith("UP")}
        return set()

    def end(self):
        self.process.terminate()
        self.process.wait()


class Topology:
    """All of it, running: `redis`, `relays` by name, `haproxy`."""

    def __init__(self, directory):
        self._directory = directory
        self._stack = contextlib.ExitStack()
        self._password = directory / "redis_password"
        self._password.write_text(f"{PASSWORD}\n")
        self.redis = RedisServer(directory)
        self._ports = {name: free_port() for name in RELAYS}
        self.relays = {}

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            self.start_redis()
            stack.callback(self.redis.stop)
            stack.callback(self._end_relays)
            for name in RELAYS:
                self.start_relay(name)
            for name in RELAYS:
                self.relays[name].wait("ready")
            addresses = {name: f"127.0.0.1:{port}" for name, port in self._ports.items()}
            self.haproxy = Haproxy(self._directory, addresses)
            stack.callback(self.haproxy.end)
            self.settled()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_):
        self._stack.close()

    def _end_relays(self):
        for relay in self.relays.values():
            relay.process.terminate()
        for relay in self.relays.values():
            relay.end()  # the second signal, which ends the drain

    def start_redis(self):
        """With deploy/redis.conf; where it listens and its password come behind it, as in docker-compose.yml."""
        mine = ("--port", str(self.redis.port), "--bind", "127.0.0.1", "--requirepass", PASSWORD)
        self.redis.start("--notify-keyspace-events", "", "--include", str(DEPLOY / "redis.conf"), *mine)

    def start_relay(self, name):
        """As docker-compose.yml has it, but for where it finds what, and a drain that a test can wait for."""
        directory = self._directory / name
        directory.mkdir(exist_ok=True)
        service, port = name.partition("-")[0], self._ports[name]
        here = {
            f"{service.upper()}_LISTEN_ADDR": f"127.0.0.1:{port}",
            "REDIS_URL": self.redis.url,
            "REDIS_PASSWORD_FILE": str(self._password),
            "RELAY_DRAIN": "300ms",
            "RELAY_DRAIN_DELAY": DRAIN_DELAY,
            "RELAY_INTERNAL_ADDR": f"unix:{directory}/internal.sock",
            "RELAY_METRICS_ADDR": f"unix:{directory}/metrics.sock",
            "RELAY_TRUSTED_PROXIES": "127.0.0.1",
        }
        arguments = COMPOSE["services"][name]["command"][1:]
        self.relays[name] = Relay(arguments, environment(name) | here, directory)
        self.relays[name].ports[service] = port

    def restart_relay(self, name):
        """SIGTERM, the end of its drain, a new one that is ready."""
        assert self.relays[name].stop() == 0
        self.relays[name].end()  # which looks at its log
        self.start_relay(name)
        self.relays[name].wait("ready")

    def settled(self):
        """Waits until haproxy has all relays for ready."""
        for service in PORTS:
            mine = {name for name in RELAYS if name.startswith(service)}
            ready = lambda service=service, mine=mine: self.haproxy.up(service) == mine  # noqa: E731
            wait_for(ready, f"all of {service} ready", patience=30)  # three start at once, on a busy machine for 10 s
