"""A relay without one of its defences, for the negative controls: `python -m tests.faults.without probe,ping serve`.

The product has no such switches. Each defence is taken out here, before the relay starts, by what it does.
"""

import sys

from relay import link, logs, preflight, probe, status, upstream
from relay.cli.main import main


def _probe():
    """No message of its own proves the link: one that is up is taken to be good."""
    probe.Probe._publish = lambda self: None
    probe.Probe.proved = property(lambda self: True)


def _ping():
    """No PING, so no PONG that could be missed."""
    upstream.PING_EVERY = 1e9
    upstream.Commands._ping = lambda self: None
    link.Link._ping = lambda self: None


def _user_timeout():
    """The kernel's own patience: a quarter of an hour."""
    upstream.USER_TIMEOUT = 0


def _gap():
    """Clients are not told of a hole."""
    link.Link.gaps = property(lambda self: 0, lambda self, value: None)
    status.Status.on_down = lambda self, since: [self._release(name, b"") for name in list(self._parked)]
    status.gap = lambda *_: b'{"type":"ping"}'


def _size():
    """Nothing is said where a message was dropped for its size."""
    status.gap = lambda reason, since=None: link.gap(reason, since) if reason == "link" else b'{"type":"ping"}'


def _silence():
    """On an error of Redis an empty checklist is sent, as the services before this one did."""
    said = preflight.Preflight.on_down

    def on_down(self, since):
        said(self, since)
        for run, state in self._runs.items():
            self._show(run, state, [], True)

    preflight.Preflight.on_down = on_down


def _recheck():
    """Nothing is read again unless Redis says so."""
    preflight.Preflight.recheck = lambda self, seconds: None


def _reread():
    """Nothing is read again when a subscription has been made anew."""
    preflight.Preflight.on_subscribed = lambda self, channel: None


def _spacing():
    """Each key event is a read at once."""
    preflight.SPACING = 0.0


def _single_flight():
    """Each key event is a read, whatever is under way."""
    preflight.Preflight._touch = lambda self, run: run in self._runs and self._read(run, self._runs[run])


def _max_reply():
    """A reply may be of any length."""
    known = upstream.Upstream.__init__

    def __init__(self, *args, **kwargs):  # noqa: N807
        known(self, *args, **kwargs)
        self.max_reply = 1 << 62

    upstream.Upstream.__init__ = __init__


def _resubscribe():
    """A link that is made anew subscribes to nothing but its probe."""
    up = link.Link.on_up

    def on_up(self):
        wanted, self._wanted = self._wanted, {}
        up(self)
        self._wanted = wanted

    link.Link.on_up = on_up


def _log_room():
    """Ten lines of the log may wait, not 10 000: for the bound itself to be seen."""
    logs.WAITING = 10


def _log_thread():
    """Each line is written by who says it, and waits for who reads it."""
    logs.Lines.emit = lambda self, record: self._write(self.format(record))


def _log_every():
    """Each failure has its line."""
    upstream.LOG_EVERY = 0.0


DEFENCES = {
    function.__name__.strip("_").replace("_", "-"): function
    for function in (
        _probe, _ping, _user_timeout, _gap, _size, _silence, _recheck, _reread, _spacing, _single_flight, _max_reply,
        _log_every, _resubscribe, _log_room, _log_thread,
    )
}  # fmt: skip

if __name__ == "__main__":
    for name in sys.argv.pop(1).split(","):
        DEFENCES[name]()
    sys.exit(main())
