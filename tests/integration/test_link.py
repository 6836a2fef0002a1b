"""The link: interest that is never lost, four connections, and a Redis that breaks off or talks nonsense.

Interest is what the clients want to hear of. The judge is Redis itself: PUBSUB CHANNELS is what it believes that
somebody listens to, and the answer to PUBLISH is to how many it has given the message.
"""

import asyncio
import contextlib
import random
import time

import pytest

from tests.integration.fronts import Front
from tests.integration.peers import Wire, address_of, frame, upgrade, wait_for

CLOSE = frame(8, b"\x03\xe8")
QUICK = {"STATUS_REDIS_REQUEST_TIMEOUT": "300ms", "PREFLIGHT_REDIS_REQUEST_TIMEOUT": "300ms"}


@pytest.fixture
def both(relay, redis_server):
    """A relay with both services on a Redis of its own."""
    return relay(env={"REDIS_URL": redis_server.url})


@pytest.fixture
def knock():
    """A factory of connections on which a websocket is asked for, and the answer not awaited: `knock(url)`."""
    with contextlib.ExitStack() as stack:

        def ask(url):
            wire = stack.enter_context(Wire(address_of(url)))
            wire.send(upgrade("/" + url.rpartition("/")[2]))
            return wire

        yield ask


def subscriptions(server):
    return {channel.decode() for channel in server.channels()}


def is_ready(process):
    return all(process.ready(service) for service in process.services)


# ---- interest ----


@pytest.mark.row("F17")
@pytest.mark.parametrize("seed", range(3))
def test_redis_knows_what_the_model_says_after_any_joins_and_leaves(both, redis_server, join, knock, seed):
    choose = random.Random(seed)
    topics = {f"run{number}:wepp": both.status_url for number in range(12)}
    topics |= {f"run{number}": both.preflight_url for number in range(12)}
    peers = []
    for _ in range(10):
        for _ in range(60):
            what = choose.random()
            name, url = choose.choice(list(topics.items()))
            if what < 0.35 or not peers:
                peers.append((name, join(f"{url}/{name}")))
            elif what < 0.55:
                knock(f"{url}/{name}").drop()  # asked, and gone before the answer
            else:
                peer = peers.pop(choose.randrange(len(peers)))[1]
                if what < 0.75:
                    peer.send(CLOSE)
                peer.drop()
        model = {name if ":" in name else f"__keyspace@0__:{name}" for name, _ in peers}
        wait_for(lambda model=model: subscriptions(redis_server) == model, "as the model says")
        counts = redis_server.execute("PUBSUB", "NUMSUB", *model)
        assert set(counts[1::2]) <= {1}, "one subscription for each, however many clients"
    for name, url in topics.items():
        if url == both.status_url:
            wanted = name in {known for known, _ in peers}
            assert redis_server.execute("PUBLISH", name, f"last of {name}") == wanted
    for name, peer in peers:
        if ":" in name:
            assert peer.data() == f"last of {name}"
        else:
            assert peer.alive()


@pytest.mark.row("F17")
@pytest.mark.parametrize("order", ["leaves first", "joins first"])
def test_the_last_client_leaves_as_a_new_one_joins(both, redis_server, join, knock, order):
    """Both in one turn of the relay's loop, in either order, again and again: no subscription is lost."""
    line, checks = f"{both.status_url}/run1:wepp", f"{both.preflight_url}/run1"
    old = [join(line), join(checks)]
    for number in range(400):
        if order == "joins first":
            new = [knock(line), knock(checks)]
        for peer in old:
            peer.send(CLOSE)
            peer.drop()
        if order == "leaves first":
            new = [knock(line), knock(checks)]
        assert [wire.answer().status for wire in new] == [101, 101]
        if number % 10 == 0:
            assert redis_server.execute("PUBLISH", "run1:wepp", number) == 1
        old = new
    peers = [join(line), join(checks)]
    for peer in old:
        peer.drop()
    while peers[1].message().get("last_modified") != 7:
        redis_server.execute("HSET", "run1", "last_modified", 7)
    assert redis_server.execute("PUBLISH", "run1:wepp", "last") == 1
    while peers[0].data() != "last":
        pass  # one of before may have been on its way to the relay when they joined
    wait_for(lambda: subscriptions(redis_server) == {"run1:wepp", "__keyspace@0__:run1"}, "both, and no more")


def test_four_connections_however_many_clients(both, redis_server, join):
    def kinds():
        return sorted(int(client["sub"]) for client in clients(redis_server))

    wait_for(lambda: kinds() == [0, 0, 1, 1], "four connections, and the two links' probes")
    for number in range(150):
        join(f"{both.status_url}/run{number % 50}:wepp")
        join(f"{both.preflight_url}/run{number % 60}")
    wait_for(lambda: kinds() == [0, 0, 51, 61], "the same four")


def test_five_thousand_channels_are_resubscribed_within_two_seconds(relay, redis_server, knock):
    process = relay("status", env={"REDIS_URL": redis_server.url, "STATUS_PING_INTERVAL": "60s"})
    wires = {f"run{number}:wepp": knock(f"{process.status_url}/run{number}:wepp") for number in range(5000)}
    for wire in wires.values():
        assert wire.answer().status == 101
    # In one of three times: this machine may stand still for as long.
    assert any(seconds_until_resubscribed(redis_server) < 2.0 for _ in range(3))
    for name in ("run0:wepp", "run511:wepp", "run512:wepp", "run4999:wepp"):
        assert redis_server.execute("PUBLISH", name, "x") == 1
        assert wires[name].take(30) == b'\x81\x1c{"type":"status","data":"x"}'


def seconds_until_resubscribed(server):
    before = link_of(server)
    assert before["sub"] == "5001"
    began = time.monotonic()
    server.execute("CLIENT", "KILL", "ID", before["id"])
    after = wait_for(lambda: link_of(server, "5001"), "all subscribed again")
    assert after["id"] != before["id"]
    return time.monotonic() - began


def link_of(server, subscriptions=None):
    """The one subscribed connection, as CLIENT LIST has it; None while there is none with so many."""
    for client in clients(server):
        if client["sub"] == subscriptions or (subscriptions is None and client["sub"] != "0"):
            return client
    return None


def clients(server):
    """The connections of others than the test, as CLIENT LIST has them."""
    lines = server.execute("CLIENT", "LIST").decode().splitlines()
    return [
        client
        for client in (dict(pair.split("=", 1) for pair in line.split()) for line in lines)
        if client["user"] == "default"
    ]


@pytest.mark.parametrize("host", ["[::1]", "localhost"])
def test_a_redis_on_ipv6_and_by_name(relay, new_redis, join, host):
    server = new_redis("--bind", "127.0.0.1", "::1")
    process = relay(env={"REDIS_URL": f"redis://{host}:{server.port}"})
    line, checks = join(f"{process.status_url}/run1:wepp"), join(f"{process.preflight_url}/run1")
    assert checks.checks() == set()
    assert server.execute("PUBLISH", "run1:wepp", "x") == 1
    assert line.data() == "x"
    server.execute("HSET", "run1", "timestamps:build_channels", "10")
    assert checks.checks() == {"channels"}


# ---- a line that is cut in one direction ----


class Line:
    """Passes all on to a Redis, until it is told to swallow one direction, or to say something of its own.

    It talks in the thread of its Front; what it is told concerns the connections of that moment, not later ones.

    Args:
        port: of the Redis.
    """

    def __init__(self, port):
        self.port = port
        self.passed = 0  # connections until now
        self._open = []

    async def serve(self, reader, writer):
        self._loop = asyncio.get_running_loop()
        there, back = await asyncio.open_connection("127.0.0.1", self.port)
        connection = (writer, swallowed := set())
        self._open.append(connection)
        self.passed += 1
        try:
            pumps = [
                asyncio.ensure_future(_pump(swallowed, "up", reader, back)),
                asyncio.ensure_future(_pump(swallowed, "down", there, writer)),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
        finally:
            self._open.remove(connection)
            back.transport.abort()

    def swallow(self, way):
        """`up`: nothing gets to Redis any more; `down`: nothing to the relay. The connections stay."""
        self._do(lambda writer, swallowed: swallowed.add(way))

    def say(self, data):
        """Bytes to the relay, on each connection."""
        self._do(lambda writer, swallowed: writer.write(data))

    def cut(self):
        self._do(lambda writer, swallowed: writer.close())

    def _do(self, action):
        async def to_all():
            for connection in self._open:
                action(*connection)

        asyncio.run_coroutine_threadsafe(to_all(), self._loop).result()


async def _pump(swallowed, way, source, sink):
    with contextlib.suppress(OSError):
        while data := await source.read(65536):
            if way not in swallowed:
                sink.write(data)


@pytest.fixture
def new_line():
    """A factory of lines to a Redis -> (the line, its port). Asked for before `relay`, it outlives the relays."""
    with contextlib.ExitStack() as stack:

        def start(server):
            line = Line(server.port)
            return line, stack.enter_context(Front(line.serve)).port

        yield start


TROUBLE = {
    "nothing gets to Redis": lambda line: line.swallow("up"),
    "nothing comes from Redis": lambda line: line.swallow("down"),
    # Whatever follows would be its text, PONGs too.
    "a reply longer than all memory": lambda line: line.say(b"$9223372036854775807\r\n"),
}


def test_a_link_that_has_gone_mute_is_noticed_and_healed(new_line, relay, new_redis, join):
    """All connections stand, and none says a word: a PING without its PONG shows it."""
    tried = []
    for trouble in TROUBLE.values():
        server = new_redis()
        line, port = new_line(server)
        process = relay(env={"REDIS_URL": f"redis://127.0.0.1:{port}", **QUICK})
        channel, run = join(f"{process.status_url}/run1:wepp"), join(f"{process.preflight_url}/run1")
        assert run.checks() == set()
        tried.append((server, line, process, channel, run))
        trouble(line)
        server.execute("HSET", "run1", "timestamps:build_channels", "10")
    for server, line, process, channel, run in tried:
        wait_for(lambda line=line: line.passed >= 8, "four connections given up, and four new ones")
        wait_for(lambda process=process: is_ready(process), "ready again")
        assert run.checks() == {"channels"}
        wait_for(lambda server=server, channel=channel: reaches(server, channel), "a message after it")
        assert channel.alive()
        assert run.alive()


def reaches(server, peer):
    """Whether a message comes through. Redis may still hold the old connection, which nobody reads."""
    server.execute("PUBLISH", "run1:wepp", "x")
    peer.socket.settimeout(0.05)
    try:
        return peer.data() == "x"
    except TimeoutError:
        return False
    finally:
        peer.socket.settimeout(20)


# ---- nonsense in the middle ----


def message(channel, payload):
    """A reply like a pub/sub message, whose payload is a reply of any kind."""
    return b"*3\r\n$7\r\nmessage\r\n$%d\r\n%b\r\n%b\r\n" % (len(channel), channel, payload)


NONSENSE = {
    "no RESP": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "deep nesting": b"*1\r\n" * 1025,
    "a negative length": b"$-5\r\n",
    "an array for which there is no memory": b"*4294967295\r\n:1\r\n",
    "an array beyond all numbers": b"*99999999999999999999\r\n",
    "an answer to nothing": b"+OK\r\n",
    "an error of nothing": b"-ERR of its own accord\r\n",
    "another answer": b"*3\r\n$9\r\nsubscribe\r\n$5\r\nother\r\n:1\r\n",
    "null": b"*-1\r\n",
    "a number on a channel": message(b"run1:wepp", b":5"),
    "a list on a channel": message(b"run1:wepp", b"*2000\r\n" + b":1\r\n" * 2000),
    "nothing on a channel": message(b"run1:wepp", b"$-1"),
    "a number on a run": message(b"__keyspace@0__:run1", b":5") + b"+OK\r\n",
    "a message on a number": b"*3\r\n$7\r\nmessage\r\n:5\r\n$1\r\nx\r\n",
    "a message on nothing": b"*3\r\n$7\r\nmessage\r\n$-1\r\n$1\r\nx\r\n",
    "a message on a list": b"*3\r\n$7\r\nmessage\r\n*1\r\n:1\r\n$1\r\nx\r\n",
    "half a message": b"*3\r\n$7\r\nmessage\r\n$9\r\nrun1:w",
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_in_the_middle_ends_the_connections_and_nothing_else(new_line, relay, redis_server, join, name):
    line, port = new_line(redis_server)
    process = relay(env={"REDIS_URL": f"redis://127.0.0.1:{port}"})
    channel, run = join(f"{process.status_url}/run1:wepp"), join(f"{process.preflight_url}/run1")
    assert run.checks() == set()
    line.say(NONSENSE[name])
    if name.startswith("half"):
        line.cut()
    wait_for(lambda: line.passed >= 6, "two links given up at least, and made anew")
    wait_for(lambda: is_ready(process), "ready again")
    redis_server.execute("HSET", "run1", "timestamps:build_channels", "10")
    assert run.checks() == {"channels"}
    wait_for(lambda: redis_server.execute("PUBLISH", "run1:wepp", "the truth"), "subscribed again")
    assert channel.data() == "the truth", "nonsense was passed on"
    for peer in (channel, run):
        assert peer.alive()
