"""A websocket server and a Redis of the simplest kind, which do what a test of the load generator tells them."""

import base64
import contextlib
import errno
import hashlib
import json
import re
import socket
import struct
import threading
import time

from relay._swarm import Publisher

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
SECONDS = 10.0


def answer_to(request, extra=b"", accept=None):
    key = re.search(rb"\r\nSec-WebSocket-Key: (\S+)\r\n", request)[1]
    accept = accept or base64.b64encode(hashlib.sha1(key + GUID).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b\r\n%b\r\n" % (accept, extra)
    )


def frame(payload, first=0x81, second=0):
    """A server's frame (RFC 6455, section 5.2); `first` and `second` change its first two bytes."""
    size = len(payload)
    if size < 126:
        return bytes([first, second | size]) + payload
    if size < 65536:
        return bytes([first, second | 126]) + struct.pack("!H", size) + payload
    return bytes([first, second | 127]) + struct.pack("!Q", size) + payload


def status(text):
    """The relay's frame for a published text."""
    return frame(b'{"type":"status","data":%b}' % json.dumps(text.decode(), ensure_ascii=False).encode())


class FakeRelay:
    """Accepts websockets; `clients` are their sockets in the order they came, `requests` what they asked for."""

    def __init__(self, address=("127.0.0.1", 0), family=socket.AF_INET, answer=answer_to, tls=None):
        self.listener = socket.socket(family)
        self.listener.bind(address)
        self.listener.listen(512)
        self.address = self.listener.getsockname()
        self.answer = answer
        self.tls = tls
        self.requests = []
        self.clients = []
        self.thread = threading.Thread(target=self.accept, daemon=True)
        self.thread.start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError as error:
                if error.errno != errno.EMFILE:
                    return
                time.sleep(0.01)  # a test has taken all descriptors of this process, and gives them back
                continue
            with contextlib.suppress(OSError):
                self.welcome(client)

    def welcome(self, client):
        self.clients.append(client)
        if self.tls:
            client = self.clients[-1] = self.tls.wrap_socket(client, server_side=True)
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            part = client.recv(4096)
            if not part:
                return
            request += part
        self.requests.append(request)
        answer = self.answer(request)
        if answer is None:
            client.close()
        else:
            client.sendall(answer)

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(SECONDS)
        for client in self.clients:
            client.close()

    def said(self, index):
        """One frame from a client -> (opcode, payload without its mask)."""
        client = self.clients[index]
        client.settimeout(SECONDS)
        first, second = exactly(client, 2)
        assert second & 128, "a client's frame is masked"
        mask = exactly(client, 4)
        data = exactly(client, second & 127)
        return first & 15, bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))


def exactly(client, size):
    data = b""
    while len(data) < size:
        part = client.recv(size - len(data))
        assert part, "the client ended the connection"
        data += part
    return data


class FakeRedis:
    """Takes PUBLISH and keeps (channel, message) in `published`; `reply` is what it answers."""

    def __init__(self, reply=b":1\r\n"):
        self.publisher, self.side = socket.socketpair()
        self.reply = reply
        self.published = []
        self.more = threading.Condition()
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        with contextlib.suppress(OSError), self.side.makefile("rb", buffering=1 << 20) as commands:
            while commands.readline() == b"*3\r\n":
                _, channel, message = (self.bulk(commands) for _ in range(3))
                with self.more:
                    self.published.append((channel, message))
                    self.more.notify_all()
                self.side.sendall(self.reply)

    def bulk(self, commands):
        size = int(commands.readline()[1:])
        return commands.read(size + 2)[:size]

    def wait_for(self, count):
        with self.more:
            assert self.more.wait_for(lambda: len(self.published) >= count, SECONDS), "Redis was not told"

    def publish(self, swarm, names, messages, **options):
        """Runs a publisher to its end without anyone receiving; the messages, by channel where there are several."""
        before = len(self.published)
        options = {"size": 100, "window": messages} | options
        publisher = Publisher(swarm, fd=self.publisher.fileno(), names=names, messages=messages, **options)
        publisher.run()
        assert (publisher.published, publisher.error, publisher.stalled) == (messages, "", False)
        self.wait_for(before + messages)
        return [message for _, message in self.published[before:]]

    def close(self):
        self.side.shutdown(socket.SHUT_RDWR)
        self.thread.join(SECONDS)
        self.publisher.close()
        self.side.close()


def serve_until(swarm, condition):
    """Serves until the counters fulfil it."""
    until = time.monotonic() + SECONDS
    while not condition(swarm.counters()):
        assert time.monotonic() < until, swarm.counters()
        swarm.serve(0.005)
