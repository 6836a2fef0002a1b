"""A core without an event loop: real sockets, turned by hand, so that a test sees each turn."""

import contextlib
import gc
import json
import select
import socket
import struct
import time

import hiredis

from relay._fanout import Core, Intake

ANSWER = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
ENVELOPE = {"prefix": b'{"type":"status","data":"', "suffix": b'"}'}
HEARTBEAT = b'\x81\x0f{"type":"ping"}\x89\x00'
OF_THE_CORE = ("max_inbound", "max_head", "max_heads", "head_timeout")
SECONDS = 5.0


def resp(*parts):
    """A RESP2 array of bulk strings, as a pub/sub message comes."""
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(p), p) for p in parts)


def client_frame(payload=b"", opcode=1, *, fin=True, key=b"\x01\x02\x03\x04", mask=True, rsv=0):
    """A client's frame (RFC 6455, 5.2)."""
    size = len(payload)
    bit = 0x80 if mask else 0
    head = bytes([(0x80 if fin else 0) | rsv | opcode])
    if size < 126:
        head += bytes([bit | size])
    elif size < 65536:
        head += bytes([bit | 126]) + struct.pack("!H", size)
    else:
        head += bytes([bit | 127]) + struct.pack("!Q", size)
    if not mask:
        return head + payload
    return head + key + bytes(b ^ key[i & 3] for i, b in enumerate(payload))


def server_frames(data):
    """(opcode, payload) of each whole frame, and what is left."""
    frames = []
    while len(data) >= 2:
        size, head = data[1], 2
        if size == 126:
            size, head = struct.unpack("!H", data[2:4])[0], 4
        elif size == 127:
            size, head = struct.unpack("!Q", data[2:10])[0], 10
        if len(data) < head + size:
            break
        frames.append((data[0] & 15, data[head : head + size]))
        data = data[head + size :]
    return frames, data


def texts(data):
    """The `data` of each status frame."""
    frames, rest = server_frames(data)
    assert not rest, f"half a frame: {rest[:80]!r}"
    return [json.loads(payload)["data"] for opcode, payload in frames if opcode == 1]


def close_code(data):
    """Of the last frame, which must be a close."""
    opcode, payload = server_frames(data)[0][-1]
    assert opcode == 8, server_frames(data)
    return struct.unpack("!H", payload[:2])[0]


def ready(seconds, *files):
    """Whether one of them is readable; poll, for select ends at descriptor 1023."""
    poller = select.poll()
    for file in files:
        poller.register(file, select.POLLIN)
    return bool(poller.poll(seconds * 1000))


class Reads(Intake):
    """What a link is to the core: bytes from Redis, as many a read as there is room for; `heard` by it."""

    def __init__(self, core, service, room=65536):
        self.core, self.service, self.deliver, self.max_reply = core, service, lambda: None, 1 << 62
        self.begin(room)

    def begin(self, room=65536):
        """A connection that nothing has come by yet."""
        self.heard, self.rests = [], 0
        self.read_by(hiredis.Reader(), memoryview(bytearray(room)), lambda reply: self.heard.append(reply))

    def take(self, data):
        """The replies among `data` that are not for topics."""
        data, before = memoryview(data), len(self.heard)
        while data:
            room = self.get_buffer(-1)
            size = min(len(room), len(data))
            room[:size] = data[:size]
            self.buffer_updated(size)
            data = data[size:]
        return self.heard[before:]

    def rest(self):
        self.rests += 1

    def unreadable(self, error):
        raise error


class Rig:
    """A core with one service and one listener; each accepted request joins the topic its path names."""

    def __init__(
        self, *, limit=64, max_live=1 << 30, family=socket.AF_INET, decide=None, on_text=None, on_binary=None, **values
    ):
        bounds = {name: values.pop(name) for name in OF_THE_CORE if name in values}
        introduced = values.pop("introduced", False)
        self.requests, self.texts, self.idle, self.errors = [], [], [], []
        self.decide = decide or self.accept
        self.core = Core(
            limit=limit,
            max_live=max_live,
            on_request=self.on_request,
            on_text=lambda client, service, text: (on_text or self.keep_text)(client, text),
            on_idle=lambda service, topic: self.idle.append(topic),
            on_error=self.errors.append,
            on_binary=on_binary,
            **bounds,
        )
        if self.core.totals()["live_bytes"]:
            gc.collect()  # it counts the process, and so what a core owes that another file's test left in a cycle
        self.live_before = self.core.totals()["live_bytes"]
        self.service = self.core.add_service(**{**ENVELOPE, **values})
        self.listener = socket.socket(family)
        self.listener.bind(("127.0.0.1", 0) if family == socket.AF_INET else "")
        self.listener.listen(4096)
        self.listener.setblocking(False)
        self.core.listen(self.listener.fileno(), self.service, introduced=introduced)
        self.intake = Reads(self.core, self.service)
        self.clients = []
        self.handles = {}

    def on_request(self, client, service, head, full):
        self.requests.append((client, head, full))
        self.decide(client, head, full)

    def keep_text(self, client, text):
        self.texts.append(text)

    def accept(self, client, head, full):
        topic = head.split(b" ")[1][1:]
        self.core.accept(client, ANSWER)
        self.core.attach(client, topic)

    def connect(self, *, rcvbuf=0, source=None):
        """A socket that has said nothing yet; `source` is one of the loopback's many addresses."""
        sock = socket.socket(self.listener.family)
        if source:
            sock.bind((source, 0))
        if rcvbuf:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        sock.settimeout(SECONDS)
        sock.connect(self.listener.getsockname())
        self.clients.append(sock)
        return sock

    def join(self, topic, *, rcvbuf=0):
        """A websocket in a topic, its 101 read. Its handle is in `handles`."""
        sock = self.connect(rcvbuf=rcvbuf)
        before = len(self.requests)
        sock.sendall(b"GET /" + topic + b" HTTP/1.1\r\n\r\n")
        self.until(lambda: len(self.requests) > before)
        self.handles[sock] = self.requests[-1][0]
        got = b""
        while len(got) < len(ANSWER):
            got += sock.recv(len(ANSWER) - len(got))
        assert got == ANSWER
        return sock

    def turn(self):
        """Polls until nothing is ready."""
        while ready(0, self.core):
            self.core.poll()

    def until(self, true):
        """Turns until something holds."""
        end = time.monotonic() + SECONDS
        while not true():
            assert time.monotonic() < end, "it never came to hold"
            ready(0.05, self.core)
            self.core.poll()

    def tick_until(self, true):
        """Lets time pass, a tick at a time, until something holds."""
        end = time.monotonic() + SECONDS
        while not true():
            assert time.monotonic() < end, "it never came to hold"
            ready(0.02, self.core)
            self.core.poll()
            self.core.tick()

    def feed(self, data):
        """Bytes from Redis; the replies that are not for topics."""
        self.intake.service = self.service
        return self.intake.take(data)

    def publish(self, topic, *payloads):
        """Messages in one burst, delivered to the end."""
        self.publish_raw(b"".join(resp(b"message", topic, payload) for payload in payloads))

    def publish_raw(self, replies):
        """The same, from the bytes that Redis would send."""
        self.feed(replies)
        self.flush()

    def flush(self):
        while self.core.flush():
            pass

    def received(self, sock, size=0):
        """What a client has got: all that is there, and at least `size` bytes."""
        data = b""
        end = time.monotonic() + SECONDS
        sock.setblocking(False)
        while True:
            self.turn()
            with contextlib.suppress(BlockingIOError):
                while part := sock.recv(1 << 20):
                    data += part
            if len(data) >= size:
                return data
            assert time.monotonic() < end, f"{len(data)} of {size} bytes came"
            ready(0.05, self.core, sock)

    def ended(self, sock):
        """Everything up to the end of the connection; a close frame is answered as a browser would."""
        data, answered = b"", False
        end = time.monotonic() + SECONDS
        sock.settimeout(0.02)
        while time.monotonic() < end:
            self.core.poll()
            try:
                part = sock.recv(1 << 20)
            except TimeoutError:
                continue
            except ConnectionResetError:
                return data
            if not part:
                return data
            data += part
            if not answered and data[:4] != b"HTTP" and (frames := server_frames(data)[0]) and frames[-1][0] == 8:
                answered = True
                with contextlib.suppress(OSError):
                    sock.sendall(client_frame(frames[-1][1], 8))
        raise AssertionError(f"still open after {SECONDS} s, got {data[:200]!r}")

    @property
    def live_bytes(self):
        """Of frames, by this rig."""
        return self.core.totals()["live_bytes"] - self.live_before

    @property
    def stats(self):
        return self.core.stats(self.service)

    def close(self):
        for sock in self.clients:
            sock.close()
        self.listener.close()
        del self.core  # it holds this rig, which held it: in a cycle, what it owes would count for the next test
        assert not self.errors, self.errors
