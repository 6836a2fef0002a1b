"""Jobs for the work-horses of test_workers.py, which name them by their path; not imported by the tests."""

import threading
import time

from client import StatusMessenger


def say(name, threads, lines):
    """Publish from threads, as a job that knows nothing of queues and work-horses; its counts when it returns."""

    def run(thread):
        for line in range(lines):
            StatusMessenger.publish("run1:wepp", f"{name} {thread} {line}")
            if line % 10 == 0:
                time.sleep(0.004)

    running = [threading.Thread(target=run, args=(thread,)) for thread in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return StatusMessenger.counts()._asdict()
