"""What the rows share: the judge, the proxy, relays without a defence, namespaces."""

import contextlib
import os
import re
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.conftest import Relay
from tests.faults.netns import Namespace, RedisThere
from tests.faults.proxy import Proxy
from tests.faults.recorder import Recorder

# ---- fixtures ----


@pytest.fixture
def recorder():
    """A factory of judges, with no clients yet: `recorder()`. One that is asked for no verdict has seen nothing."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(Recorder(**options))


@pytest.fixture
def proxy():
    """A factory of proxies to a Redis: `proxy(redis_server)`. Asked for before `relay`, it outlives the relays."""
    with contextlib.ExitStack() as stack:
        yield lambda server, **options: stack.enter_context(Proxy(server.port, **options))


@pytest.fixture
def namespace():
    """A factory of network namespaces with a way to them: `namespace()`."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(Namespace())


@pytest.fixture
def redis_there(namespace, tmp_path):
    """A Redis in a namespace of its own, running; `redis_there.namespace` is where the cable is cut."""
    server = RedisThere(tmp_path, namespace())
    yield server.start()
    server.stop()


@pytest.fixture
def worker():
    """A factory of connections to a Redis of the tests, as workers have them."""
    with contextlib.ExitStack() as stack:

        def connect(server, **options):
            # No command is sent twice: what was published twice the judge would rightly call a duplicate.
            where = {"unix_socket_path": server.unix} if hasattr(server, "unix") else {"port": server.port}
            connection = redis.Redis(**where, retry=Retry(NoBackoff(), 0), **options)
            return stack.enter_context(contextlib.closing(connection))

        yield connect


# ---- what a relay takes ----


class Footprint:
    """Memory and descriptors of a process, from /proc."""

    def __init__(self, process: Relay):
        self.pid = process.process.pid

    @property
    def memory(self):
        """Bytes of its own in memory."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+) kB", text)[1]) << 10

    @property
    def files(self):
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())

    def open_files(self):
        """What each descriptor is of."""
        return [str(path.readlink()) for path in Path(f"/proc/{self.pid}/fd").iterdir()]

    @property
    def cpu(self):
        """Seconds of processor time until now."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def footprint():
    return Footprint
