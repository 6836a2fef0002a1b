"""A TCP proxy before Redis that records what each connection says, and can be told to misbehave.

It knows nothing of the client under test: what was published is what stands in the bytes, read by hiredis.
"""

import contextlib
import selectors
import socket
import threading

import hiredis


class Recorder:
    """Listens on a port of its own and forwards to `port`; use it as a context manager.

    Attributes:
        said: what each connection sent and was passed on, in the order of connecting.
        heard: what each connection was answered.
        deaf: while set, nothing is forwarded either way, and nothing is read.
        mute: while set, requests go through and replies do not.
    """

    def __init__(self, port):
        self.target = ("127.0.0.1", port)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self.listener.getsockname()[1]}"
        self.said: list[bytearray] = []
        self.heard: list[bytearray] = []
        self.deaf = threading.Event()
        self.mute = threading.Event()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._ended = False
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc):
        self._ended = True
        self._thread.join()
        for sock in (self.listener, *(sock for pair in self._pairs for sock in pair)):
            sock.close()

    def cut(self):
        """Reset every connection there is."""
        for pair in list(self._pairs):
            for sock in pair:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                    sock.shutdown(socket.SHUT_RDWR)

    def commands(self):
        """For each connection the commands that it sent wholly, as lists of bytes.

        Raises:
            hiredis.ProtocolError: what it sent is no sequence of commands.
        """
        return [list(parsed(bytes(said))) for said in self.said]

    def published(self):
        """For each connection the (channel, message) pairs that it sent wholly."""
        return [[tuple(c[1:]) for c in commands if c[0] == b"PUBLISH"] for commands in self.commands()]

    def answered(self):
        """For each connection the (channel, message) pairs that Redis took, and whose answer went back."""
        found = []
        for commands, heard in zip(self.commands(), self.heard, strict=True):
            replies = hiredis.Reader()
            replies.feed(bytes(heard))
            found.append([])
            for command in commands:
                reply = replies.gets()
                if reply is False:
                    break
                if command[0] == b"PUBLISH" and isinstance(reply, int):
                    found[-1].append(tuple(command[1:]))
        return found

    def _run(self):
        with selectors.DefaultSelector() as selector:
            selector.register(self.listener, selectors.EVENT_READ)
            while not self._ended:
                for key, _ in selector.select(0.01):
                    if key.fileobj is self.listener:
                        self._accept(selector)
                    elif not self.deaf.is_set():
                        self._forward(selector, key)
                if self.deaf.is_set():
                    threading.Event().wait(0.01)

    def _accept(self, selector):
        client, _ = self.listener.accept()
        try:
            server = socket.create_connection(self.target)
        except OSError:
            client.close()
            return
        self.said.append(bytearray())
        self.heard.append(bytearray())
        self._pairs.append((client, server))
        selector.register(client, selectors.EVENT_READ, (server, self.said[-1], False))
        selector.register(server, selectors.EVENT_READ, (client, self.heard[-1], True))

    def _forward(self, selector, key):
        there, record, is_reply = key.data
        if is_reply and self.mute.is_set():
            threading.Event().wait(0.002)
            return
        try:
            data = key.fileobj.recv(65536)
            if data:
                there.sendall(data)
                record += data
                return
        except OSError:
            pass
        selector.unregister(key.fileobj)
        with contextlib.suppress(OSError):
            there.shutdown(socket.SHUT_RDWR)


def parsed(said):
    """The commands in a stream of requests; one that is not whole at the end is left out."""
    reader = hiredis.Reader()
    reader.feed(said)
    while (command := reader.gets()) is not False:
        assert isinstance(command, list), command
        yield command
