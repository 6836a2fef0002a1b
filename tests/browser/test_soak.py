"""Half an hour of a busy run in one tab: `pytest -m long tests/browser`, with RELAY_TEST_SOAK for other seconds."""

import asyncio
import os
import statistics
import time

import pytest
import redis
from playwright.async_api import expect

SECONDS = float(os.environ.get("RELAY_TEST_SOAK") or 1800)
LOOKS = 60  # at its memory
TURN = 0.1  # seconds between two bursts of lines
LINES = 10  # of a burst
MOST_GROWTH = 1.1  # the last quarter beside the second; the first fills the page to its bounds
RUN = "busy-run"
CHANNELS = ("wepp", "soils", "climate")
STEPS = ("build_channels", "set_outlet", "abstract_watershed", "build_landuse", "build_soils", "build_climate")
pytestmark = [pytest.mark.long, pytest.mark.needs("chromium"), pytest.mark.asyncio(loop_scope="module")]


class Worker:
    """A run that never ends: lines of all kinds, and steps that are done again and again."""

    def __init__(self, url):
        self.redis = redis.Redis.from_url(url)
        self.lines = 0

    def work(self):
        with self.redis.pipeline(transaction=False) as burst:
            for _ in range(LINES):
                self.lines += 1
                burst.publish(f"{RUN}:{CHANNELS[self.lines % 3]}", self.line(self.lines))
            if self.lines % 100 == 0:
                step = STEPS[self.lines // 100 % len(STEPS)]
                burst.hset(RUN, mapping={f"timestamps:{step}": time.time(), "locked:wepp": self.lines // 100 % 2})
            burst.execute()

    def line(self, number):
        if number % 500 == 0:
            return f"rq:{number} EXCEPTION Traceback (most recent call last): " + "x" * 500
        if number % 50 == 0:
            return f"rq:{number} TRIGGER wepp WEPP_RUN_TASK_COMPLETED"
        return f"\x1b[32mhillslope {number}\x1b[0m WARNING: completed in 1.23 s " + "." * (number % 97)


async def test_a_tab_holds_its_memory(standing, redis_url, new_tab):
    tab = await new_tab(viewport={"width": 1280, "height": 860})
    await tab.page.goto(f"http://127.0.0.1:{standing.ports['status']}/run/{RUN}?channels={','.join(CHANNELS)}")
    for badge in ("#status-badge", "#preflight-badge"):
        await expect(tab.page.locator(badge)).to_have_attribute("data-state", "live")
    tools = await tab.page.context.new_cdp_session(tab.page)
    worker, seen = Worker(redis_url), []
    began = time.monotonic()
    for look in range(1, LOOKS + 1):
        while time.monotonic() - began < SECONDS * look / LOOKS:
            await asyncio.to_thread(worker.work)
            await asyncio.sleep(TURN)
        await tools.send("HeapProfiler.collectGarbage")
        heap = (await tools.send("Runtime.getHeapUsage"))["usedSize"]
        counters = await tools.send("Memory.getDOMCounters")
        seen.append((heap, counters["nodes"], counters["jsEventListeners"]))
        print(f"{time.monotonic() - began:.0f} s, {worker.lines} lines: heap {heap / 1e6:.2f} MB, {seen[-1][1:]}")
    await expect(tab.page.locator("#count")).to_have_text("9,000 lines")  # 3000 of each channel
    quarter = LOOKS // 4
    for what, values in zip(("heap", "nodes", "listeners"), zip(*seen, strict=True), strict=True):
        before, after = statistics.median(values[quarter : 2 * quarter]), statistics.median(values[-quarter:])
        assert after <= before * MOST_GROWTH, f"{what}: {before} in the second quarter, {after} in the last"
    assert tab.complaints == []
