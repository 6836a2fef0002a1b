"""Random sequences of everything a client, Redis or a callback can do to the core. The debug build asserts its
invariants after each turn, AddressSanitizer watches the memory; here it must end with nothing left over."""

import contextlib
import os
import random
import socket
import struct

import pytest

from tests.unit.rig import ANSWER, Rig, client_frame, resp

STEPS = 8000
TOPICS = [b"a", b"b", *(b"c%d" % i for i in range(5))]
REQUEST = b"GET /t HTTP/1.1\r\n\r\n"
TALK = [
    REQUEST,
    client_frame(b'{"type":"pong"}'),
    client_frame(b"x" * 300),
    client_frame(b"ab", 1, fin=False),
    client_frame(b"cd", 0),
    client_frame(b"ping", 9),
    client_frame(struct.pack("!H", 1000), 8),
    client_frame(b"y" * 66_000, 2),
]


class Chaos:
    """One run: a core, its clients, and the dice."""

    def __init__(self, seed):
        self.dice = random.Random(seed)
        self.rig = Rig(
            limit=150,
            max_live=400_000,
            max_inbound=4000,
            max_backlog=30_000,
            frame_rate=0,
            newest_only=bool(seed % 2),
            notice=b"n" * 20,
            max_published=35_000,
            decide=self.on_request,
            on_text=self.on_text,
            pong_timeout=3,
            write_timeout=1,
            ping_interval=0.3,
        )
        self.socks, self.parked, self.live = [], [], []

    # ---- what callbacks do ----

    def on_request(self, client, head, full):
        core, roll = self.rig.core, self.dice.random()
        if roll < 0.1:
            core.refuse(client, b"HTTP/1.1 404 No\r\n\r\n" + b"z" * self.dice.randrange(200_000))
        elif roll < 0.2:
            core.accept(client, ANSWER)
            self.parked.append(client)
        elif roll > 0.25:  # between the two: left undecided
            core.accept(client, ANSWER, self.dice.randrange(4), self.dice.choice([0, 0, 0, 0.5]))
            first, notice = b"f" * self.dice.choice([0, 5, 70_000]), b"n" * self.dice.choice([0, 20])
            core.attach(
                client, self.dice.choice([None, *TOPICS * 3]), first, notice, self.dice.choice([b"", b'{"times":1}'])
            )
            self.live.append(client)
            if self.dice.random() < 0.05:
                core.close(client, 1000)

    def on_text(self, client, text):
        core, roll = self.rig.core, self.dice.random()
        if roll < 0.1:
            core.close(client, 1008)
        elif roll < 0.3:
            core.ping(client)
        elif roll < 0.4:
            core.close_topic(self.rig.service, b"a", 1008)
        elif roll < 0.5 and self.parked:
            core.attach(self.parked.pop(), b"a")
        elif roll < 0.6:
            core.publish(self.rig.service, b"b", b"q" * self.dice.randrange(50_000), self.dice.randrange(4))
            core.flush()
        elif roll < 0.7:
            core.announce_gap(self.rig.service, b"g" * 30)

    # ---- what the world does ----

    def connect(self):
        if len(self.socks) < 170:
            sock = self.rig.connect(rcvbuf=self.dice.choice([0, 0, 2048]))
            self.socks.append(sock)
            sock.setblocking(False)
            if self.dice.random() < 0.9:
                sock.send(REQUEST)

    def talk(self):
        data = bytearray(b"".join(self.dice.choices(TALK, k=self.dice.randrange(1, 4))))
        if self.dice.random() < 0.15:
            for _ in range(3):
                data[self.dice.randrange(len(data))] = self.dice.randrange(256)
        if self.dice.random() < 0.4:
            del data[self.dice.randrange(1, len(data) + 1) :]
        with contextlib.suppress(OSError, IndexError):
            self.dice.choice(self.socks).send(data)

    def leave(self):
        if self.socks:
            sock = self.socks.pop(self.dice.randrange(len(self.socks)))
            if self.dice.random() < 0.3:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
            sock.close()

    def read(self):
        for sock in self.dice.sample(self.socks, len(self.socks) // 8):
            with contextlib.suppress(OSError):
                sock.recv(1 << 18)

    def publish(self):
        topic = self.dice.choice(TOPICS)
        sizes = [0, 1, 100, 9000, 40_000]
        payloads = [self.dice.choice([b"m", os.urandom(1)]) * self.dice.choice(sizes) for _ in range(5)]
        self.rig.feed(b"".join(resp(b"message", topic, payload) for payload in payloads))

    def close_one(self):
        if self.live:
            self.rig.core.close(self.live.pop(self.dice.randrange(len(self.live))), 1001)

    def step(self):
        core = self.rig.core
        close_some = lambda: core.close_some(self.dice.randrange(5), 1012)  # noqa: E731
        steps = [
            self.connect,
            self.talk,
            self.leave,
            self.read,
            self.publish,
            core.flush,
            core.tick,
            core.poll,
            self.close_one,
            close_some,
        ]
        self.dice.choices(steps, weights=[15, 30, 10, 10, 20, 15, 3, 15, 2, 0.5])[0]()

    def run(self, steps):
        """So many steps; then everybody leaves, and nothing must be left over. What was counted meanwhile."""
        rig = self.rig
        for _ in range(steps):
            self.step()
        for sock in self.socks:
            sock.close()
        rig.flush()
        rig.tick_until(lambda: rig.core.totals()["sockets"] == 0)
        rig.flush()
        assert {**rig.core.totals(), "live_bytes": rig.live_bytes} == dict.fromkeys(rig.core.totals(), 0)
        assert rig.stats["connections"] == rig.stats["topics"] == 0
        stats = rig.stats
        rig.close()
        return stats


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_left_over(seed):
    counted = Chaos(seed).run(STEPS)
    assert counted["opened"] > 100
    assert {1002, 1009, 1012} <= set(counted["closes"]), "the dice should reach every corner"
    assert all(counted["breaches"][bound] for bound in ("inbound", "message_size"))
