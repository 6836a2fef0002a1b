"""A terminal to run commands on."""

import fcntl
import os
import pty
import re
import select
import struct
import termios


class Terminal:
    """A pseudo terminal, what is drawn on it, and its settings."""

    def __init__(self, lines=30, columns=80):
        self.ours, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.drawn = ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.ours)
        os.close(self.theirs)

    def streams(self):
        return dict.fromkeys(("stdin", "stdout", "stderr"), self.theirs)

    def settings(self):
        return termios.tcgetattr(self.theirs)

    def read(self):
        """What has come until now."""
        while select.select([self.ours], [], [], 0)[0]:
            self.drawn += os.read(self.ours, 65536).decode()
        return self.drawn

    def screens(self):
        """The whole tables that were drawn, as lines."""
        found = re.findall(r"\x1b\[H(.*?)\x1b\[J", self.read(), re.DOTALL)
        return [[line.removesuffix("\x1b[K") for line in screen.split("\r\n")] for screen in found]
