"""One lean connection against peers of the test's own: every end that a request can have."""

import contextlib
import socket
import threading
import time

import pytest

from client import wire
from client.connection import Address
from client.wire import ReplyError, Unanswered, Unsent, Wire, open_wire, pack


def soon(seconds=0.1):
    return time.monotonic() + seconds


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    theirs.settimeout(10)
    with ours, theirs:
        yield Wire(ours, {BlockingIOError: None}), theirs


@contextlib.contextmanager
def answering(peer, *replies):
    """For each request the peer gets, in one read each, one reply; yields the requests."""
    seen = []

    def answer():
        for reply in replies:
            seen.append(peer.recv(65536))
            peer.sendall(reply)

    thread = threading.Thread(target=answer)
    thread.start()
    yield seen
    thread.join()


def test_pack_counts_bytes():
    assert pack(b"PUBLISH", b"a", "é".encode()) == b"*3\r\n$7\r\nPUBLISH\r\n$1\r\na\r\n$2\r\n\xc3\xa9\r\n"


@pytest.mark.parametrize("channel", ["r1:wepp", "100%d:%b%%", "ä:b"])
def test_a_publication_is_packed_as_any_command(pair, channel):
    connection, peer = pair
    with answering(peer, b":1\r\n") as seen:
        connection.publish(channel.encode(), b"50 % of %d", soon(10))
    with answering(peer, b":1\r\n") as seen_of_many:
        assert connection.publish_many([(channel, b"50 % of %d")], soon(10)).answers == [b":1"]
    assert seen == seen_of_many == [pack(b"PUBLISH", channel.encode(), b"50 % of %d")]


def test_publish_is_one_command_and_returns_the_receivers(pair):
    connection, peer = pair
    with answering(peer, b":12\r\n") as seen:
        assert connection.publish(b"r1:wepp", b"x\r\ny", soon(10)) == 12
    assert seen == [pack(b"PUBLISH", b"r1:wepp", b"x\r\ny")]


def test_a_reply_in_pieces_is_one_reply(pair):
    connection, peer = pair

    def dribble():
        peer.recv(65536)
        for byte in b":123\r\n":
            peer.sendall(bytes([byte]))
            time.sleep(0.01)

    thread = threading.Thread(target=dribble)
    thread.start()
    assert connection.publish(b"c", b"m", soon(10)) == 123
    thread.join()


def test_a_reply_that_dribbles_for_ever_ends_at_the_deadline(pair):
    connection, peer = pair
    stop = threading.Event()

    def dribble():
        peer.recv(65536)
        peer.sendall(b":")
        while not stop.wait(0.02):
            peer.sendall(b"1")

    thread = threading.Thread(target=dribble)
    thread.start()
    with pytest.raises(Unanswered, match="did not answer in time"):
        connection.publish(b"c", b"m", soon())
    stop.set()
    thread.join()


def test_an_error_reply_is_raised_and_the_connection_goes_on(pair):
    connection, peer = pair
    with answering(peer, b"-NOPERM no\r\n", b":1\r\n"):
        with pytest.raises(ReplyError, match="NOPERM no"):
            connection.publish(b"c", b"m", soon(10))
        assert connection.publish(b"c", b"m", soon(10)) == 1


def test_a_late_reply_is_not_taken_for_the_next_one(pair):
    connection, peer = pair
    with pytest.raises(Unanswered) as caught:
        connection.publish(b"c", b"first", soon())
    assert not caught.value.lost
    peer.recv(65536)
    with answering(peer, b":1\r\n:2\r\n"):
        assert connection.publish(b"c", b"second", soon(10)) == 2
    with answering(peer, b":3\r\n"):
        assert connection.publish(b"c", b"third", soon(10)) == 3


def test_a_late_reply_that_is_there_already_is_taken_first(pair):
    connection, peer = pair
    with pytest.raises(Unanswered):
        connection.publish(b"c", b"first", soon())
    peer.recv(65536)
    peer.sendall(b":1\r\n")
    with answering(peer, b":2\r\n"):
        assert connection.publish(b"c", b"second", soon(10)) == 2


def test_the_reply_to_what_was_only_told_is_passed_over(pair):
    connection, peer = pair
    connection.tell(b"c", b"first", soon(10))
    peer.recv(65536)
    with answering(peer, b"-NOPERM no\r\n:2\r\n"):
        assert connection.publish(b"c", b"second", soon(10)) == 2


def test_a_peer_silent_beyond_patience_is_given_up_and_nothing_more_is_written(pair, monkeypatch):
    connection, peer = pair
    monkeypatch.setattr(wire, "PATIENCE", 0.0)
    with pytest.raises(Unanswered) as caught:
        connection.publish(b"c", b"first", soon())
    assert caught.value.lost
    with pytest.raises(Unsent, match="left an earlier message unanswered"):
        connection.publish(b"c", b"second", soon())
    assert b"second" not in peer.recv(65536)


def test_a_closed_connection_is_noticed_before_anything_is_written(pair):
    connection, peer = pair
    peer.shutdown(socket.SHUT_WR)
    with pytest.raises(Unsent, match="has closed the connection"):
        connection.publish(b"c", b"m", soon(10))
    peer.setblocking(False)
    with pytest.raises(BlockingIOError):
        peer.recv(1)


def test_a_connection_that_ends_after_the_write_is_in_doubt(pair):
    connection, peer = pair

    def read_and_close():
        peer.recv(65536)
        peer.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=read_and_close)
    thread.start()
    with pytest.raises(Unanswered, match="ended before Redis answered") as caught:
        connection.publish(b"c", b"m", soon(10))
    assert caught.value.lost
    thread.join()


def test_a_message_that_does_not_fit_in_time_is_unsent(pair):
    connection, _ = pair
    with pytest.raises(Unsent, match="could not write to Redis: timed out"):
        connection.publish(b"c", bytes(64 << 20), soon(0.2))


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n", b"+OK\r\n", b":-1\r\n", b"$3\r\nabc\r\n"])
def test_an_answer_that_is_none_of_redis_is_in_doubt(pair, answer):
    connection, peer = pair
    with answering(peer, answer), pytest.raises(Unanswered, match="none that Redis gives") as caught:
        connection.publish(b"c", b"m", soon(10))
    assert caught.value.lost


def test_an_answer_without_end_is_given_up(pair):
    connection, peer = pair
    with answering(peer, bytes(100_000)), pytest.raises(Unanswered, match="has no end"):
        connection.publish(b"c", b"m", soon(10))


def test_a_peer_that_speaks_unasked_is_no_redis(pair):
    connection, peer = pair
    peer.sendall(b"220 mail.example.org\r\n")
    with pytest.raises(Unsent, match="speaks unasked"):
        connection.publish(b"c", b"m", soon(10))


# --- opening ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def listening(*replies):
    """A server for one connection: reads once, answers once; yields its address and what it read."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        seen = []

        def serve():
            peer, _ = server.accept()
            with peer:
                peer.settimeout(10)
                for reply in replies:
                    seen.append(peer.recv(65536))
                    peer.sendall(reply)
                with contextlib.suppress(ConnectionError):
                    while peer.recv(65536):
                        pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield Address("127.0.0.1", server.getsockname()[1]), seen
        thread.join()


def test_without_a_password_opening_is_one_command():
    with listening(b"+OK\r\n") as (address, seen):
        open_wire(address, 2, 10.0).close()
    assert seen == [pack(b"SELECT", b"2")]


@pytest.mark.parametrize(
    ("names", "auth"),
    [
        ({"password": "s ö"}, pack(b"AUTH", "s ö".encode())),
        ({"username": "u", "password": "p"}, pack(b"AUTH", b"u", b"p")),
    ],
)
def test_with_a_password_both_commands_go_in_one_write(names, auth):
    with listening(b"+OK\r\n+OK\r\n") as (address, seen):
        open_wire(Address(address.host, address.port, **names), 2, 10.0).close()
    assert seen == [auth + pack(b"SELECT", b"2")]


@pytest.mark.parametrize("refusal", [b"-NOPERM no SELECT for you\r\n", b"-ERR DB index is out of range\r\n"])
def test_a_refused_select_does_not_matter(refusal):
    with listening(refusal, b":1\r\n") as (address, seen):
        connection = open_wire(address, 2, 10.0)
        assert connection.publish(b"c", b"m", soon(10)) == 1
        connection.close()
    assert len(seen) == 2


@pytest.mark.parametrize(
    "refusal", [b"-NOAUTH Authentication required.\r\n", b"-ERR max number of clients reached\r\n", b"-DENIED no\r\n"]
)
def test_a_refused_connection_is_an_error(refusal):
    with listening(refusal) as (address, _), pytest.raises(ReplyError, match=refusal[1:6].decode()):
        open_wire(address, 2, 10.0)


def test_a_refused_password_is_an_error():
    with listening(b"-WRONGPASS invalid\r\n-NOAUTH no\r\n") as (address, _):
        address = Address(address.host, address.port, password="p")
        with pytest.raises(ReplyError, match="WRONGPASS"):
            open_wire(address, 2, 10.0)


def test_a_mute_peer_ends_with_the_budget():
    with listening() as (address, _), pytest.raises(TimeoutError):
        open_wire(address, 2, 0.1)


def test_a_second_address_of_the_name_is_tried(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        closed = gone.getsockname()
    with listening(b"+OK\r\n") as (address, seen):
        entry = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        monkeypatch.setattr(
            socket, "getaddrinfo", lambda *_, **__: [(*entry, closed), (*entry, ("127.0.0.1", address.port))]
        )
        open_wire(Address("redis.example.org", 1), 2, 10.0).close()
    assert len(seen) == 1


def test_a_first_address_that_swallows_packets_gets_only_its_share(monkeypatch):
    with swallowing() as hole, listening(b"+OK\r\n") as (address, seen):
        entry = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        monkeypatch.setattr(
            socket, "getaddrinfo", lambda *_, **__: [(*entry, hole), *[(*entry, ("127.0.0.1", address.port))] * 19]
        )
        open_wire(Address("redis.example.org", 1), 2, 10.0).close()  # half a second of it in vain
    assert len(seen) == 1


@contextlib.contextmanager
def swallowing():
    """A port whose listen queue is full, so that the kernel drops every further SYN."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(server.getsockname())
        yield server.getsockname()


def test_a_unix_socket(tmp_path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()

        def serve():
            peer, _ = server.accept()
            with peer:
                peer.sendall(b"+OK\r\n")
                peer.recv(65536)

        thread = threading.Thread(target=serve)
        thread.start()
        open_wire(Address(path=str(tmp_path / "s")), 2, 10.0).close()
        thread.join()


def test_a_missing_unix_socket(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_wire(Address(path=str(tmp_path / "s")), 2, 10.0)
