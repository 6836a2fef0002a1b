"""Websocket clients on raw sockets: every byte is the test's own, so that any rule can be broken (RFC 6455)."""

import base64
import contextlib
import json
import os
import socket
import struct
import subprocess
import time
from urllib.parse import urlsplit

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
PATIENCE = 20.0  # seconds until what is awaited counts as missing


class Refused(Exception):  # noqa: N818 - what became of the request
    """An answer other than 101."""

    def __init__(self, answer):
        super().__init__(f"{answer.status}: {answer.body!r}")
        self.status = answer.status
        self.answer = answer


class Answer:
    """An HTTP answer; header names in lower case."""

    def __init__(self, head, body=b""):
        first, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(first.split(" ")[1])
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self.body = body


def assert_told_to_come_back(answer):
    """A stream that ends at once (WHATWG HTML, section 9.2.2), which the page of any Origin may read."""
    assert (answer.status, answer.headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.body.endswith(b"retry: 3000\n\n")


def head(path="/", *headers, method="GET", host="localhost", version="HTTP/1.1"):
    """A request head, whatever it is worth."""
    lines = [f"{method} {path} {version}", *([f"Host: {host}"] if host else []), *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def upgrade(path, *headers, **options):
    """A browser's request head for a websocket."""
    key = base64.b64encode(os.urandom(16)).decode()
    ours = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}")
    return head(path, *ours, *headers, **options)


def frame(opcode, payload=b"", *, final=True, reserved=0, masked=True, size=None, form=None):
    """A client's frame. `size` lies about the length, `form` (7, 16 or 64 bits) is how the length is written."""
    size = len(payload) if size is None else size
    form = form or (7 if size < 126 else 16 if size < 65536 else 64)
    short = {7: size, 16: 126, 64: 127}[form]
    length = b"" if form == 7 else size.to_bytes(form // 8, "big")
    first = bytes([final << 7 | reserved << 4 | opcode, masked << 7 | short])
    if not masked:
        return first + length + payload
    key = os.urandom(4)
    return first + length + key + bytes(byte ^ key[i & 3] for i, byte in enumerate(payload))


def text(value):
    """A masked text frame; what is no str is sent as JSON."""
    return frame(TEXT, (value if isinstance(value, str) else json.dumps(value)).encode())


def close(code=1000, reason=b""):
    return frame(CLOSE, struct.pack("!H", code) + reason)


class Wire:
    """A connected socket and what has come over it and is not looked at yet."""

    def __init__(self, address, *, receive_buffer=None, source=None):
        family = (
            socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        )
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(PATIENCE)
        try:
            if source:
                self.socket.bind((source, 0))
            self.socket.connect(address)
        except OSError:
            self.socket.close()
            raise
        self.unread = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.drop()

    def drop(self):
        """Gone without a close frame."""
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def more(self):
        """One read; False at the end. A reset is an end, too: what came before it is what counts."""
        try:
            data = self.socket.recv(1 << 18)
        except ConnectionResetError:
            data = b""
        self.unread += data
        return bool(data)

    def take(self, size):
        while len(self.unread) < size:
            assert self.more(), f"the connection ended, with {self.unread[:200]!r} left, where {size} bytes were due"
        data, self.unread = self.unread[:size], self.unread[size:]
        return data

    def answer(self):
        """The next HTTP answer; its body, unless it is a 101, ends with the connection or its Content-Length."""
        while b"\r\n\r\n" not in self.unread:
            assert self.more(), f"the connection ended within an answer: {self.unread[:200]!r}"
        start, _, self.unread = self.unread.partition(b"\r\n\r\n")
        answer = Answer(start)
        if answer.status != 101:
            while self.more():
                pass
            answer.body, self.unread = self.unread, b""
        return answer

    def ended(self):
        """All that still comes until the peer ends the connection."""
        while self.more():
            pass
        rest, self.unread = self.unread, b""
        return rest


def address_of(url):
    parts = urlsplit(url)
    return parts.hostname, parts.port


def ask(url, data):
    """Sends a request as it is, on a connection of its own -> Answer."""
    with Wire(address_of(url)) as wire:
        wire.send(data)
        return wire.answer()


class Peer(Wire):
    """An open websocket.

    Args:
        url: ws://host:port/path, or a path alone together with `address`.
        headers: further lines of the request.
        address: where to connect instead, such as the path of a Unix socket.
        source: the address to connect from, one of the loopback's many.

    Raises:
        Refused: any answer but 101.
    """

    def __init__(self, url, *headers, address=None, receive_buffer=None, source=None):
        super().__init__(address or address_of(url), receive_buffer=receive_buffer, source=source)
        parts = urlsplit(url)
        self.send(upgrade(parts.path + (f"?{parts.query}" if parts.query else ""), *headers))
        answer = self.answer()
        if answer.status != 101:
            self.drop()
            raise Refused(answer)
        self.answered = answer

    def frame(self):
        """The next frame as (opcode, payload); none of the server's may be masked or in parts."""
        first, second = self.take(2)
        assert first & 0xF0 == 0x80, f"first byte {first:#x}"
        assert second < 128, "a server never masks"
        if second == 126:
            second = int.from_bytes(self.take(2), "big")
        elif second == 127:
            second = int.from_bytes(self.take(8), "big")
        return first & 15, self.take(second)

    def beyond_heartbeats(self):
        """The next frame that is no part of a heartbeat: those come when they like."""
        while (got := self.frame()) in ((TEXT, b'{"type":"ping"}'), (PING, b"")):
            pass
        return got

    def raw(self):
        """The next text message that is no ping."""
        while True:
            opcode, payload = self.frame()
            if opcode == TEXT and payload != b'{"type":"ping"}':
                return payload
            assert opcode in (TEXT, PING), f"opcode {opcode}: {payload!r}"

    def message(self):
        """The next message that is no ping, out of its JSON."""
        return json.loads(self.raw())

    def data(self):
        """The text of the next status message."""
        message = self.message()
        assert message.keys() == {"type", "data"}, message
        assert message["type"] == "status"
        return message["data"]

    def checks(self):
        """The true keys of the next snapshot."""
        message = self.message()
        assert message["type"] == "preflight"
        return {key for key, value in message["checklist"].items() if value}

    def until(self, wanted):
        """The next snapshot whose true keys are `wanted`; the snapshots before it as sets of true keys."""
        before = []
        while (checks := self.checks()) != wanted:
            before.append(checks)
        return before

    def closed(self):
        """The code and reason of the close frame; whatever comes before it is passed over."""
        while True:
            opcode, payload = self.frame()
            if opcode == CLOSE:
                return struct.unpack("!H", payload[:2])[0], payload[2:].decode()

    def told(self):
        """The code of the close frame; None where none came.

        That of one who does not read comes after all that waits for him, and the relay waits 2 s for him to take it:
        where this machine stands still for as long, the connection ends without it.
        """
        with contextlib.suppress(AssertionError):
            return self.closed()[0]

    def pinged(self):
        """Awaits a whole heartbeat; true if both halves came in one go."""
        while self.frame() != (TEXT, b'{"type":"ping"}'):
            pass
        return self.unread[:2] == b"\x89\x00"

    def alive(self):
        """Asks for a ping and awaits it, over everything that comes before."""
        self.send(frame(PING, b"alive?"))
        while self.frame() != (PONG, b"alive?"):
            pass
        return True

    def leave(self):
        """Closes as a browser does and awaits the answer."""
        self.send(close())
        assert self.closed()[0] == 1000
        self.drop()


def wait_for(condition, what, patience=PATIENCE):
    """Asks until the answer is true, and returns it; for what no event announces."""
    deadline = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {patience} s"
        time.sleep(0.01)
    return found


@contextlib.contextmanager
def curl(url, accept="text/event-stream"):
    """The lines of what curl shows as it comes, whatever transfer coding a proxy puts around it."""
    command = ["curl", "-sN", "--max-time", "30", "-H", f"Accept: {accept}", url.replace("ws:", "http:")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield iter(process.stdout.readline, "")
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()
