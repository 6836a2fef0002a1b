"""Promise 4 as assertions: however delivery breaks, it is known within 15 s, and heals by itself."""

import time

NOTICED = 15.0  # seconds (delivery, section 1)


def doubts(process, recorder, since, bound=NOTICED):
    """It says that it is not ready, and each client that asks has heard of the hole -> seconds it took.

    Args:
        process: the relay.
        recorder: its clients.
        since: `time.time()` of the fault.
        bound: seconds.

    Raises:
        AssertionError: it has not noticed.
    """
    seen = False
    while True:
        seen = seen or not all(process.ready(service) for service in process.services)
        deaf = [c for c in recorder.clients if c.judge.version == 2 and not any(at > since for at, _ in c.judge.gaps)]
        took = time.time() - since
        if seen and not deaf:
            return took
        says = "says in /readyz that it is not ready" if seen else "says in /readyz that all is well"
        assert took < bound, (
            f"promise 4, bounded doubt: after {took:.1f} s the relay {says}, and {len(deaf)} clients know nothing"
        )
        time.sleep(0.01)


def heals(process, recorder, patience=10.0):
    """It is ready, and each client that asks was told so -> seconds it took.

    Raises:
        AssertionError: it was not within `patience` seconds.
    """
    took = recorder.wait(lambda c: c.judge.version == 1 or c.judge.sure, "promise 4, heals", patience)
    for service in process.services:
        start = time.monotonic()
        while not process.ready(service):
            assert time.monotonic() - start < patience, f"promise 4, heals: {service} is not ready"
            time.sleep(0.01)
    return took


def stays_unready(process, seconds):
    """It goes on saying so while it goes on trying.

    Raises:
        AssertionError: it said that it was ready.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ready = [service for service in process.services if process.ready(service)]
        assert not ready, f"promise 4, bounded doubt: {ready} is ready again, and nothing is delivered"
        time.sleep(0.01)
