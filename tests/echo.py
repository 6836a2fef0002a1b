"""An echo endpoint on the relay's own core, for suites that judge RFC 6455. The product has no such thing.

    python -m tests.echo [PORT]

Same parser, same closes, same clock; only the bounds are as such suites need them. Says where it listens, then serves
until it is ended.
"""

import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from select import POLLIN, poll

from relay import handshake
from relay._fanout import TICK, Core

NEVER = 1e7  # seconds: no heartbeat is expected between a case's frames
BOUNDS = {
    "max_message": 64 << 20,
    "max_fragments": 200_000,
    "max_backlog": 1 << 30,
    "frame_rate": 0,
    "ping_interval": NEVER,
    "pong_timeout": NEVER,
    "write_timeout": 60,
}


class Echo:
    """A core whose clients get back what they send.

    Args:
        port: of 127.0.0.1; 0 for any.
    """

    def __init__(self, port=0):
        self.core = Core(
            limit=1000,
            max_live=1 << 32,
            max_inbound=1 << 32,
            on_request=self.on_request,
            on_text=lambda client, service, text: self.core.send_message(client, text),
            on_binary=lambda client, service, data: self.core.send_message(client, data, True),
            on_idle=lambda service, topic: None,
            on_error=self.on_error,
        )
        self.listener = socket.create_server(("127.0.0.1", port), backlog=1000)
        self.listener.setblocking(False)
        self.core.listen(self.listener.fileno(), self.core.add_service(**BOUNDS))

    def on_request(self, client, service, head, full):
        try:
            answer = handshake.read(head).upgrade
        except handshake.Refused as refused:
            self.core.refuse(client, refused.answer)
            return
        if answer is None:
            self.core.refuse(client, handshake.plain("426 Upgrade Required", "An echo of websocket messages.\n"))
        else:
            self.core.accept(client, answer)
            self.core.attach(client, None)

    def on_error(self, error):
        raise SystemExit(f"a callback failed: {error!r}")

    def serve(self):
        """Never returns."""
        poller = poll()
        poller.register(self.core.fileno(), POLLIN)
        due = time.monotonic() + TICK
        while True:
            poller.poll(max(0, due - time.monotonic()) * 1000)
            self.core.poll()
            if time.monotonic() >= due:
                self.core.tick()
                due += TICK


@contextmanager
def process():
    """An echo endpoint in a process of its own; its URL."""
    command = [sys.executable, "-m", "tests.echo"]
    server = subprocess.Popen(command, cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True)
    try:
        yield server.stdout.readline().strip()
        if server.poll() is not None:
            raise RuntimeError(f"the echo endpoint ended with {server.returncode}")
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()


if __name__ == "__main__":
    echo = Echo(int(sys.argv[1]) if sys.argv[1:] else 0)
    print("ws://{}:{}".format(*echo.listener.getsockname()), flush=True)
    echo.serve()
