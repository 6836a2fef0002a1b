"""The browser's own EventSource on a channel and a run, from a page of another origin, over a restart of the relay."""

import asyncio

import pytest
import redis

pytestmark = [pytest.mark.needs("chromium"), pytest.mark.asyncio(loop_scope="module")]

SOURCE = """([url, kinds]) => {
    globalThis.heard = [];
    globalThis.source = new EventSource(url);
    for (const kind of kinds) source.addEventListener(kind, event => heard.push([kind, JSON.parse(event.data)]));
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
        await page.wait_for_function("heard.filter(([kind]) => kind === 'ready').length === 2", timeout=20_000)
        client.publish("some-run:wepp", "after")
        await page.wait_for_function("heard.at(-1)[1].data === 'after'")
    heard = await page.evaluate("heard")
    assert heard[0] == ["ready", {"type": "ready"}]
    assert heard[1] == ["status", {"type": "status", "data": "<b>before</b>\n"}]
    assert [kind for kind, _ in heard if kind != "gap"] == ["ready", "status", "close", "ready", "status"]
    assert next(data["code"] for kind, data in heard if kind == "close") == 1012
    assert await page.evaluate("source.readyState") == 1


async def test_a_checklist_by_events(embed, standing, redis_url):
    page = (await embed(standing)).page
    url = standing.preflight_url.replace("ws:", "http:")
    await page.evaluate(SOURCE, [f"{url}/events-run", ["preflight"]])
    await page.wait_for_function("heard.length === 1")
    with redis.Redis.from_url(redis_url) as client:
        client.hset("events-run", "timestamps:build_channels", 1)
    await page.wait_for_function("heard.length === 2 && heard[1][1].checklist.channels")
    await page.evaluate("source.close()")
