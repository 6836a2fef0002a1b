"""The browser's own EventSource on a channel and a run, from a page of another origin, over a restart of the relay."""

import asyncio
import contextlib

import pytest
import redis

from relay.cli.embedded import free_port
from tests.integration.proxies import PREFIX, caddy, in_front, nginx
from tests.integration.topology import RELAYS, Haproxy

pytestmark = [pytest.mark.needs("chromium"), pytest.mark.asyncio(loop_scope="module")]

SOURCE = """([url, kinds]) => {
    globalThis.heard = [];
    globalThis.source = new EventSource(url);
    for (const kind of kinds) source.addEventListener(kind, event => heard.push([kind, JSON.parse(event.data)]));
}"""

ALL = """urls => {
    globalThis.sources = urls.map(url => Object.assign(new EventSource(url), {ready: 0, opened: 0}));
    for (const source of sources) {
        source.addEventListener("ready", () => source.ready++);
        source.addEventListener("open", () => source.opened++);
    }
}"""


async def test_it_comes_back_by_itself_and_is_told_why_it_went(embed, relay, redis_url):
    first = relay(env={"RELAY_DRAIN": "0s"})
    page = (await embed(first)).page
    url = first.status_url.replace("ws:", "http:")
    await page.evaluate(SOURCE, [f"{url}/some-run:wepp", ["status", "ready", "gap", "close"]])
    await page.wait_for_function("heard.length === 1")
    with redis.Redis.from_url(redis_url) as client:
        client.publish("some-run:wepp", "<b>before</b>\n")
        await page.wait_for_function("heard.length === 2")
        assert await asyncio.to_thread(first.stop) == 0
        addresses = {f"{name.upper()}_LISTEN_ADDR": f"127.0.0.1:{port}" for name, port in first.ports.items()}
        second = relay(env=addresses, wait=None)
        second.ports = first.ports
        await asyncio.to_thread(second.wait, "ready")
        await page.wait_for_function("heard.filter(([kind]) => kind === 'ready').length === 2")
        client.publish("some-run:wepp", "after")
        await page.wait_for_function("heard.at(-1)[1].data === 'after'")
    heard = await page.evaluate("heard")
    assert heard[0] == ["ready", {"type": "ready"}]
    assert heard[1] == ["status", {"type": "status", "data": "<b>before</b>\n"}]
    assert [kind for kind, _ in heard if kind != "gap"] == ["ready", "status", "close", "ready", "status"]
    assert next(data["code"] for kind, data in heard if kind == "close") == 1012
    assert await page.evaluate("source.readyState") == 1


@pytest.mark.needs("haproxy", "nginx", "caddy")
async def test_it_comes_back_behind_each_proxy_that_met_no_relay(embed, relay, redis_url, tmp_path):
    """What a proxy says while the relay is away was the end of it: EventSource does not come back after a 502."""
    first = relay(env={"RELAY_DRAIN": "0s"})
    with contextlib.ExitStack() as stack:
        haproxy = Haproxy(tmp_path, {name: f"127.0.0.1:{first.ports[name.partition('-')[0]]}" for name in RELAYS})
        stack.callback(haproxy.end)
        urls = [haproxy.url("status").replace("ws:", "http:")]
        for make in (nginx, caddy):
            (directory := tmp_path / make.__name__).mkdir()
            port = free_port()
            await asyncio.to_thread(stack.enter_context, in_front(make, first, directory, port))
            urls.append(f"http://127.0.0.1:{port}{PREFIX}/status")
        page = (await embed(first)).page
        await page.evaluate(ALL, [f"{url}/some-run:wepp" for url in urls])
        await page.wait_for_function("sources.every(source => source.ready === 1)")
        assert await asyncio.to_thread(first.stop) == 0
        await page.wait_for_function("sources.every(source => source.opened >= 2)")
        assert await page.evaluate("sources.map(source => source.ready)") == [1, 1, 1], "it was a proxy that answered"
        addresses = {f"{name.upper()}_LISTEN_ADDR": f"127.0.0.1:{port}" for name, port in first.ports.items()}
        relay(env=addresses, wait=None)
        await page.wait_for_function("sources.every(source => source.ready === 2)")


async def test_a_checklist_by_events(embed, standing, redis_url):
    page = (await embed(standing)).page
    url = standing.preflight_url.replace("ws:", "http:")
    await page.evaluate(SOURCE, [f"{url}/events-run", ["preflight"]])
    await page.wait_for_function("heard.length === 1")
    with redis.Redis.from_url(redis_url) as client:
        client.hset("events-run", "timestamps:build_channels", 1)
    await page.wait_for_function("heard.length === 2 && heard[1][1].checklist.channels")
    await page.evaluate("source.close()")
