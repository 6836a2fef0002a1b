"""A network namespace with a pair of virtual interfaces: a Redis in it is on another machine, whose cable can be cut.

Needs root and the programs ip, tc and ss; tests say so with `needs("netns", "ip", "tc", "ss")`.
"""

import itertools
import os
import subprocess

import redis

from tests.conftest import ADMIN, RedisServer

_numbers = itertools.count(os.getpid() % 200 * 256)


def run(*command):
    """A program, and what it printed.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Namespace:
    """A machine beside this one, on a network of two; a context manager.

    Attributes:
        here, there: addresses of the two ends.
        inside: the beginning of a command line that runs a program there.
    """

    def __init__(self):
        number = next(_numbers)
        self.name = f"relay{number:x}"
        self.near, self.far = f"rn{number:x}", f"rf{number:x}"
        net = f"10.{200 + number // 16384 % 50}.{number // 64 % 256}"
        self.here, self.there = (f"{net}.{number % 64 * 4 + end}" for end in (1, 2))
        self.inside = ["ip", "netns", "exec", self.name]

    def __enter__(self):
        run("ip", "netns", "add", self.name)
        try:
            run("ip", "link", "add", self.near, "type", "veth", "peer", "name", self.far, "netns", self.name)
            run("ip", "addr", "add", f"{self.here}/30", "dev", self.near)
            run(*self.inside, "ip", "addr", "add", f"{self.there}/30", "dev", self.far)
            run(*self.inside, "ip", "link", "set", "lo", "up")
            run(*self.inside, "ip", "link", "set", self.far, "up")
            run("ip", "link", "set", self.near, "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        run("ip", "netns", "del", self.name)  # and with it the pair

    def cut(self):
        """Both directions: packets are lost, and nobody is told. Half-open connections on both sides."""
        self.blackout("up")
        self.blackout("down")

    def blackout(self, way):
        """One direction: `up` is towards the namespace, `down` from it."""
        blackhole = ("root", "tbf", "rate", "8kbit", "burst", "10", "limit", "1")  # no packet is as small as 10 bytes
        if way == "up":
            run("tc", "qdisc", "replace", "dev", self.near, *blackhole)
        else:
            run(*self.inside, "tc", "qdisc", "replace", "dev", self.far, *blackhole)

    def mend(self):
        """All as at the beginning."""
        for inside, device in ((), self.near), (self.inside, self.far):
            subprocess.run([*inside, "tc", "qdisc", "del", "dev", device, "root"], capture_output=True, check=False)

    def reset(self, port):
        """Resets all connections to a port there: RST to both ends."""
        run(*self.inside, "ss", "-K", "sport", "=", f":{port}")


class RedisThere(RedisServer):
    """A Redis in a namespace; the test's own way to it is a Unix socket, which no cut concerns."""

    def __init__(self, directory, namespace):
        super().__init__(directory)
        self.namespace = namespace
        self.unix = str(directory / "redis.sock")
        self.url = f"redis://{namespace.there}:{self.port}"
        inside = directory / "redis-server"
        inside.write_text(f'#!/bin/sh\nexec {" ".join(namespace.inside)} {self.binary} "$@"\n')
        inside.chmod(0o755)
        self.binary = inside

    def start(self, *options):
        reachable = ("--bind", "0.0.0.0", "--protected-mode", "no", "--unixsocket", self.unix)
        return super().start(*reachable, *options)

    def execute(self, *command, db=0):
        user, password = ADMIN
        with redis.Redis(unix_socket_path=self.unix, db=db, username=user, password=password) as connection:
            return connection.execute_command(*command)
