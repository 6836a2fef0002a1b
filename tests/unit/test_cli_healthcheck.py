import contextlib
import http.server
import socket
import threading

import pytest
from click.testing import CliRunner

from relay.cli.commands import relay


@pytest.fixture
def service():
    """A service: `service({path: (status, body)})` -> its URL."""
    with contextlib.ExitStack() as stack:

        def start(answers):
            class Handler(http.server.BaseHTTPRequestHandler):
                def do_GET(self):
                    status, body = answers.get(self.path, (404, "no"))
                    self.send_response(status)
                    self.end_headers()
                    self.wfile.write(body.encode())

                def log_message(self, *_):
                    pass

            server = stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}"

        yield start


def healthcheck(*args):
    return CliRunner().invoke(relay, ["healthcheck", *args], catch_exceptions=False)


def test_it_asks_whether_the_relay_lives(service):
    result = healthcheck("--url", service({"/livez": (200, "OK\n")}))
    assert (result.exit_code, result.stdout, result.stderr) == (0, "OK\n", "")


def test_it_asks_below_the_path_of_a_proxy(service):
    assert healthcheck("--url", service({"/relay/status/livez": (200, "OK")}) + "/relay/status/").exit_code == 0


def test_ready_is_another_question(service):
    url = service({"/livez": (200, "OK"), "/readyz": (503, "redis: down")})
    assert healthcheck("--url", url).exit_code == 0
    result = healthcheck("--ready", "--url", url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"relay: {url} answered 503 Service Unavailable: redis: down\n"


def test_nobody_there():
    result = healthcheck("--url", "http://127.0.0.1:1")
    assert result.exit_code == 1
    assert result.stderr == "relay: http://127.0.0.1:1 does not answer: [Errno 111] Connection refused\n"


def test_one_that_accepts_and_says_nothing():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        result = healthcheck("--timeout", "0.1", "--url", f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert result.exit_code == 1
    assert "does not answer: timed out" in result.stderr


@pytest.mark.parametrize("url", ["localhost:9002", "ws://h", "http://"])
def test_a_url_that_is_none_is_a_usage_error(url):
    result = healthcheck("--url", url)
    assert result.exit_code == 2
    assert "not an address such as http://localhost:9002" in result.stderr
