"""`rediss://` for both classes, through a TLS front of the test's own (contract, section 2)."""

import contextlib
import re
import socket
import ssl
import threading
import time

import pytest
import redis
import trustme

from client import RedisPrep, StatusMessenger, configure, messenger, store


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def front(authority, redis_server):
    """The port of a TLS server that passes all on to a Redis, and the Redis."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with contextlib.ExitStack() as stack, socket.create_server(("127.0.0.1", 0)) as server:
        threads = [threading.Thread(target=serve, args=(server, context, redis_server.port, stack))]
        threads[0].start()
        yield server.getsockname()[1], redis_server
        if messenger._Process.sender is not None:
            messenger._Process.sender.close()
        for used in store._stores.values():
            used.redis.connection_pool.disconnect()
        store._stores.clear()
        server.shutdown(socket.SHUT_RDWR)
        threads[0].join()


def serve(server, context, port, stack):
    with contextlib.suppress(OSError):
        while True:
            plain, _ = server.accept()
            try:
                ours = stack.enter_context(context.wrap_socket(plain, server_side=True))
            except OSError:
                plain.close()
                continue
            theirs = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            for source, sink in ((ours, theirs), (theirs, ours)):
                threading.Thread(target=pump, args=(source, sink), daemon=True).start()


def pump(source, sink):
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def ca_file(authority, tmp_path):
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return tmp_path / "ca.pem"


@pytest.fixture
def wd(tmp_path):
    (tmp_path / "run1").mkdir()
    return str(tmp_path / "run1")


def publish(message):
    """Publish until there is a number of receivers; a TLS handshake may take longer than one publish waits."""
    deadline = time.monotonic() + 10
    while (receivers := StatusMessenger.publish("r1:wepp", message)) is None:
        assert time.monotonic() < deadline, "it was never published"
        time.sleep(0.01)
    return receivers


def refusal():
    """The error of a publish once the first attempt to connect has failed."""
    deadline = time.monotonic() + 10
    while True:
        with pytest.raises(redis.ConnectionError) as caught:
            StatusMessenger.publish("r1:wepp", "x", strict=True)
        if "within the time" not in str(caught.value):
            return str(caught.value)
        assert time.monotonic() < deadline, "no attempt ever ended"
        time.sleep(0.01)


def test_a_certificate_of_a_known_authority(front, ca_file, wd):
    port, server = front
    configure(f"rediss://localhost:{port}?ssl_ca_certs={ca_file}")
    assert publish("x") == 0
    assert publish("x" * 200_000) == 0
    RedisPrep(wd)["x"] = 1
    assert server.execute("HGET", "run1", "timestamps:x") == b"1"


@pytest.mark.parametrize(
    ("host", "options", "reason"),
    [
        ("localhost", "", "CERTIFICATE_VERIFY_FAILED|certificate verify failed"),
        ("127.0.0.1", "?ssl_ca_certs={ca}", "CERTIFICATE_VERIFY_FAILED|IP address mismatch|certificate is not valid"),
    ],
)
def test_a_certificate_that_does_not_fit_is_refused(front, ca_file, wd, host, options, reason):
    port, _ = front
    configure(f"rediss://{host}:{port}{options.format(ca=ca_file)}")
    assert re.search(reason, refusal())
    with pytest.raises(redis.ConnectionError, match=reason):
        RedisPrep(wd, retry=2.0)


@pytest.mark.parametrize("options", ["?ssl_cert_reqs=none", "?ssl_ca_certs={ca}&ssl_check_hostname=false"])
def test_checks_can_be_switched_off(front, ca_file, wd, options):
    port, _ = front
    configure(f"rediss://127.0.0.1:{port}{options.format(ca=ca_file)}")
    assert publish("x") == 0
    assert RedisPrep(wd)["x"] is None


def test_a_connection_that_ended_is_noticed_and_made_anew(front, ca_file):
    port, server = front
    configure(f"rediss://localhost:{port}?ssl_ca_certs={ca_file}")
    assert publish("x") == 0
    server.kill()
    server.start()
    assert publish("y") == 0
    assert publish("z") == 0
