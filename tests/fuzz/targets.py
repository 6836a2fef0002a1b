"""What is fuzzed: each target takes mutated inputs by the thousand and knows what must become of them.

`frames` and `heads` are the parsers alone, at the speed of C; `talk`, `requests` and `replies` go through sockets and
the whole core; `topics` are the operations of tests/unit/test_fanout_random.py under dice of other seeds.
"""

import contextlib
import itertools
import re
import socket
import zlib
from pathlib import Path

import hiredis

from relay import handshake
from relay._fanout import Core, plain_upgrade
from tests.fuzz.reference import Endpoint
from tests.unit.rig import ANSWER, Rig, client_frame, resp, server_frames, texts
from tests.unit.test_fanout_heads import BROWSERS, NEEDED, head, without_date
from tests.unit.test_fanout_random import Chaos

CORPUS = Path(__file__).parent / "corpus"
KEPT = 100  # files of one corpus
LARGEST = 600  # bytes of one of them
MAX_MESSAGE, MAX_FRAGMENTS = 300, 5
MAX_PUBLISHED = 400
NO_REPLY = (hiredis.ProtocolError, TypeError)  # what hiredis raises; the latter for a map with a list as a key

PIECES = [
    client_frame(b""),
    client_frame(b"hello"),
    client_frame(b'{"type":"pong"}'),
    client_frame("é – 🏔".encode()),
    client_frame(b"\xff\x00", 2),
    client_frame(b"x" * 126, 2),
    client_frame(b"y" * 300),
    client_frame(b"z" * 301),
    client_frame(b"be", fin=False),
    client_frame(b"\xc3", fin=False),
    client_frame(b"bin", 2, fin=False),
    client_frame(b"tween", 0, fin=False),
    client_frame(b"\xa9", 0),
    client_frame(b"", 0),
    client_frame(b"?", 9),
    client_frame(b"p" * 125, 9),
    client_frame(b"", 10),
    client_frame(b"\x03\xe8", 8),
    client_frame(b"\x0f\xa0done", 8),
    client_frame(b"", 8),
]
MORE = client_frame(b"more", 0, fin=False)
TALKS = [
    *(client_frame(b"", fin=False) + MORE * count + client_frame(b"", 0) for count in (3, 4, 5)),
    client_frame(b"x" * 200, 2, fin=False) + client_frame(b"y" * 100, 0) + client_frame(b"z" * 299, fin=False) + MORE,
    b"".join(PIECES[:3]),
    b"".join(PIECES[8:14:2]),
    b"".join(PIECES[9:15]),
    b"".join(PIECES[:7]),
    *PIECES,
]
REQUESTS = [
    *(text.replace("\n", "\r\n").encode() + b"\r\n\r\n" for text in BROWSERS.values()),
    head(),
    head(line="GET /r1:wepp?v=2 HTTP/1.1"),
    head(line="GET http://x/y HTTP/1.1"),
    head(["Origin: https://x", "Content-Length: 0", "A: b"]),
    b"HEAD /readyz HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
]
WORDS = [
    *(line.encode() + b"\r\n" for line in NEEDED),
    *(line.encode() + b":" for line in ("Origin", "Content-Length", "Transfer-Encoding", "Sec-WebSocket-Protocol")),
    *(b"\r\n", b"\r\n\r\n", b" ", b"\t", b",", b"GET ", b" HTTP/1.1\r\n", b"/", b"%2e%2e", b"upgrade", b"keep-alive"),
    *(b"http://", b"=", b"==", b"A: b\r\n" * 60, b"x" * 300, b"\xff", b"\x00"),
]

REPLIES = [
    resp(b"message", b"t", b"hello") + resp(b"message", b"u", b"not for it"),
    resp(b"message", b"t", '\x00 é – 🏔 "\\'.encode()) * 3,
    resp(b"message", b"t", b"x" * 400) + resp(b"message", b"t", b"x" * 401) + resp(b"message", b"t", b""),
    b"*3\r\n$9\r\nsubscribe\r\n$1\r\nt\r\n:1\r\n" + resp(b"message", b"t", b"\xff\xc3(\xed\xa0\x80"),
    b"+PONG\r\n*2\r\n$4\r\npong\r\n$0\r\n\r\n-ERR no\r\n$-1\r\n*-1\r\n*0\r\n:1\r\n" + resp(b"message", b"t", b"z"),
]
REPLY_WORDS = [
    *(resp(b"message", b"t", text) for text in (b"", b"word", b"\x7f\x80", b"\n\r\t")),
    *(b"*3\r\n", b"*1\r\n", b"$-1\r\n", b"$9223372036854775807\r\n", b"*9223372036854775807\r\n", b"\r\n"),
    *(b"*1\r\n" * 9, b"%1\r\n", b"~1\r\n", b">3\r\n", b",1.5\r\n", b"#t\r\n", b"_\r\n", b"(1\r\n", b"$1\r\n"),
]


def kept(name):
    """The corpus of a target: what earlier runs found worth keeping."""
    return [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]


class Target:
    """`run` takes one batch of inputs from a mutator; how many those were."""

    def close(self):
        """Gives back what it holds."""


class Frames(Target):
    """Reading and writing of frames, masks, the JSON escape."""

    seeds, words, batch = TALKS, PIECES, 20_000
    corpus = "talk"

    def run(self, mutator):
        mutator.frames(self.batch)
        return self.batch


class Heads(Target):
    """The core's reading of a plain request; what it takes for plain the judge must take, too."""

    seeds, words, batch = REQUESTS, WORDS, 20_000
    corpus = "requests"
    compared = 20  # of a batch: the judge needs 60 µs, the mutants one

    def run(self, mutator):
        for data in mutator.heads(self.batch)[: self.compared]:
            self.one(data)
        return self.batch

    def one(self, data):
        if plain_upgrade(data) is not None:
            compare(data)


def compare(data):
    """The judge accepts what was plain, and answers the same."""
    try:
        judges = handshake.judged(data)
    except handshake.Refused as refused:
        raise AssertionError(f"plain, and the judge refuses it: {refused}: {data!r}") from refused
    mine = handshake.read(data)
    same = mine._replace(upgrade=without_date(mine.upgrade)) == judges._replace(upgrade=without_date(judges.upgrade))
    assert same, f"{mine} is not {judges}: {data!r}"


class Sockets(Target):
    """A core on a Unix socket, turned by hand; one connection for each input, cut into pieces by its own checksum."""

    batch = 200

    def __init__(self):
        self.errors = []
        self.core = Core(
            limit=64,
            max_live=1 << 30,
            on_request=self.on_request,
            on_text=lambda client, service, text: self.core.send_message(client, text),
            on_binary=lambda client, service, data: self.core.send_message(client, data, True),
            on_idle=lambda service, topic: None,
            on_error=self.errors.append,
        )
        service = self.core.add_service(max_message=MAX_MESSAGE, max_fragments=MAX_FRAGMENTS, frame_rate=0)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind("")
        self.listener.listen(64)
        self.listener.setblocking(False)
        self.core.listen(self.listener.fileno(), service)
        self.seen = set()

    def close(self):
        self.listener.close()

    def run(self, mutator):
        for _ in range(self.batch):
            data = mutator.mutant()
            sign = self.one(data)
            if sign not in self.seen:
                self.seen.add(sign)
                mutator.keep(data)
                self.keep(data)
        return self.batch

    def keep(self, data):
        """Writes down what led to something new."""
        directory = CORPUS / self.corpus
        directory.mkdir(parents=True, exist_ok=True)
        if len(data) <= LARGEST and len(list(directory.iterdir())) < KEPT:
            (directory / f"{zlib.crc32(data):08x}").write_bytes(data)

    def exchange(self, before, data):
        """All that the core answers to `before` and `data`, and then to the end of the connection."""
        chance = zlib.crc32(data)
        cuts = sorted({0, *(chance // step % (len(data) + 1) for step in (1, 999)[: chance >> 30]), len(data)})
        pieces = [data[a:b] for a, b in itertools.pairwise(cuts)] or [b""]
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(self.listener.getsockname())
            sock.send(before + pieces[0])
            for piece in pieces[1:]:
                self.core.poll()
                try:
                    sock.send(piece)
                except OSError:
                    break  # it has ended already
            sock.shutdown(socket.SHUT_WR)
            got = b""
            sock.setblocking(False)
            for _ in range(1000):
                self.core.poll()
                try:
                    part = sock.recv(1 << 16)
                except BlockingIOError:
                    continue
                except ConnectionResetError:
                    break  # what it sent behind its end was never read
                if not part:
                    break
                got += part
            else:
                raise AssertionError(f"the connection has not ended: {data!r}")
        assert not self.errors, f"{self.errors}: {data!r}"
        return got


class Talk(Sockets):
    """A whole conversation, its answers compared with those of the reference."""

    seeds, words = TALKS, PIECES
    corpus = "talk"

    def on_request(self, client, service, head, full):
        self.core.accept(client, ANSWER)
        self.core.attach(client, None)

    def one(self, data):
        got = self.exchange(b"GET / HTTP/1.1\r\n\r\n", data)
        assert got.startswith(ANSWER), f"{got!r}: {data!r}"
        frames, rest = server_frames(got[len(ANSWER) :])
        answers = [(opcode, int.from_bytes(text[:2], "big") if opcode == 8 else text) for opcode, text in frames]
        right = Endpoint(MAX_MESSAGE, MAX_FRAGMENTS).hear(data)
        assert (answers, rest) == (right, b""), f"answered {answers} and {rest!r}, not {right}: {data!r}"
        code = answers[-1][1] if answers and answers[-1][0] == 8 else 0
        return frozenset(opcode for opcode, _ in answers), code, len(answers).bit_length()


class Requests(Sockets):
    """A request head, through the core to the judge."""

    seeds, words = REQUESTS, WORDS
    corpus = "requests"

    def on_request(self, client, service, head, full):
        try:
            answer = handshake.read(head).upgrade
        except handshake.Refused as refused:
            self.core.refuse(client, refused.answer)
        else:
            self.core.refuse(client, answer or handshake.plain("200 OK", "\n"))
        if plain_upgrade(head) is not None:
            compare(head)

    def one(self, data):
        got = self.exchange(b"", data)
        answer = re.match(rb"HTTP/1\.1 (\d{3}) [ -~]*\r\n", got)
        assert answer or (not got and b"\r\n\r\n" not in data), f"answered {got!r}: {data!r}"
        words = got.partition(b"\r\n\r\n")[2].split()[:9]
        return answer and (answer[1], *(word for word in words if word.isalpha()))


class Replies(Target):
    """What Redis sends, to one client of a channel: it gets each message that hiredis sees, as Python decodes it."""

    seeds, words, batch = REPLIES, REPLY_WORDS, 200
    corpus = "none"

    def __init__(self):
        self.rig = Rig(max_published=MAX_PUBLISHED)
        self.sock = self.rig.join(b"t")

    def close(self):
        self.rig.close()

    def run(self, mutator):
        for _ in range(self.batch):
            self.one(mutator.mutant())
        return self.batch

    def one(self, data):
        self.rig.intake.begin()
        with contextlib.suppress(*NO_REPLY):
            self.rig.feed(data)
        self.rig.flush()
        got, right = texts(self.rig.received(self.sock)), list(published(data))
        assert got == right, f"told {got}, not {right}: {data!r}"


def published(data):
    """The texts of all messages on channel `t`, as far as the bytes are replies, those above the bound left out."""
    reader = hiredis.Reader()
    reader.feed(data)
    with contextlib.suppress(*NO_REPLY):
        while (reply := reader.gets()) is not False:
            if type(reply) is list and reply[:2] == [b"message", b"t"] and len(reply) == 3:  # no RESP3 push
                text = reply[2]
                if isinstance(text, bytes) and len(text) <= MAX_PUBLISHED:
                    yield text.decode(errors="replace")


class Topics(Target):
    """Joins, leaves, deliveries, closes, laggards, at random."""

    seeds, words, batch = [b"topics"], [], 4000
    corpus = "none"

    def run(self, mutator):
        data = mutator.mutant()
        Chaos(zlib.crc32(data)).run(self.batch)
        return self.batch


TARGETS = {"frames": Frames, "heads": Heads, "talk": Talk, "requests": Requests, "replies": Replies, "topics": Topics}
