"""What becomes of a message that was posted."""

import asyncio
from types import SimpleNamespace

import hiredis
import pytest

from relay.posts import Posts
from relay.upstream import Lost

PAGE = [("Access-Control-Allow-Origin", "*")]


class Core:
    """Writes down what it is told."""

    def __init__(self):
        self.refused = {}

    def await_body(self, client, size):
        pass

    def refuse(self, client, answer):
        top, _, body = answer.decode().partition("\r\n\r\n")
        self.refused[client] = int(top.split(" ")[1]), top, body


class Commands:
    def __init__(self):
        self.up = True
        self.asked = []

    def call(self, *parts):
        self.asked.append(parts)
        self.answer = asyncio.get_running_loop().create_future()
        return self.answer


@pytest.fixture
def service():
    return SimpleNamespace(commands=Commands(), settings=SimpleNamespace(name="status", max_message_size=100))


async def posted(service, result):
    """The status, head and body of the answer to a message where Redis says that."""
    core = Core()
    posts = Posts(core, 10)
    posts.take(1, service, 1, b"r1:wepp", PAGE)
    posts.publish(1, b"x")
    if service.commands.asked:
        settle = (
            service.commands.answer.set_exception
            if isinstance(result, Exception)
            else service.commands.answer.set_result
        )
        settle(result)
        await asyncio.sleep(0)
    assert "\r\nAccess-Control-Allow-Origin: *" in core.refused[1][1]
    return core.refused[1]


async def test_who_got_it(service):
    assert (await posted(service, 3))[::2] == (200, '{"receivers": 3}\n')
    assert service.commands.asked == [(b"PUBLISH", b"r1:wepp", b"x")]


async def test_what_this_user_may_not_is_403(service):
    status, _, body = await posted(service, hiredis.ReplyError("NOPERM no such channel for you"))
    assert (status, "NOPERM no such" in body) == (403, True)


@pytest.mark.parametrize("error", ["BUSY a script", "LOADING it", "OOM", "MISCONF", "READONLY", "CLUSTERDOWN", "ERR ?"])
async def test_what_redis_does_not_take_now_is_503(service, error):
    status, top, body = await posted(service, hiredis.ReplyError(error))
    assert (status, "\r\nRetry-After: 5" in top, error in body) == (503, True, True)


async def test_a_connection_that_broke_leaves_a_doubt(service):
    status, top, body = await posted(service, Lost("gone"))
    assert (status, "\r\nRetry-After: 5" in top, "may have been published" in body) == (503, True, True)


async def test_where_redis_is_known_to_be_away_nothing_is_sent(service):
    service.commands.up = False
    status, top, body = await posted(service, None)
    assert (status, "\r\nRetry-After: 5" in top) == (503, True)
    assert "was not published" in body
    assert service.commands.asked == []


async def test_the_oldest_of_too_many_gives_way(service):
    core = Core()
    posts = Posts(core, 2)
    for client in (1, 2, 3):
        posts.take(client, service, 1, b"r1:wepp", PAGE)
    ((client, (status, top, _)),) = core.refused.items()
    assert (client, status, "Access-Control-Allow-Origin" in top) == (1, 503, True)
