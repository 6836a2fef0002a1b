"""The page that the relay serves at `/`, in a browser."""

import pytest
import redis
from playwright.async_api import expect

from relay.tokens import Keys

SECRET = "s3cr3t-" + 32 * "x"
pytestmark = [pytest.mark.needs("chromium"), pytest.mark.asyncio(loop_scope="module")]


async def test_it_shows_the_log_and_the_checklist(relay, redis_url, new_tab):
    process = relay()
    tab = await new_tab()
    page = tab.page
    await page.add_init_script("addEventListener('securitypolicyviolation', event => console.error(event.blockedURI))")
    await page.goto(f"http://127.0.0.1:{process.ports['status']}/?run=some-run")
    await expect(page).to_have_title("some-run · WEPPcloud run")
    await expect(page.locator("#status-badge")).to_have_attribute("data-state", "live")
    await expect(page.locator("#preflight-badge")).to_have_attribute("data-state", "live")
    await expect(page.locator("li[data-state=done]")).to_have_count(0)
    with redis.Redis.from_url(redis_url) as worker:
        assert worker.publish("some-run:soils", "<i>Building</i> soils") == 1
        worker.hset("some-run", "timestamps:build_channels", "10")
    await expect(page.locator(".row[data-channel=soils] .said")).to_have_text("<i>Building</i> soils")
    await expect(page.locator(".row")).to_have_count(1)
    await expect(page.locator("li[data-state=done]")).to_have_attribute("data-item", "channels")
    assert tab.complaints == []


async def test_a_page_behind_the_other_port_is_the_same(relay, new_tab):
    process = relay()
    tab = await new_tab()
    await tab.page.goto(f"http://127.0.0.1:{process.ports['preflight']}/?run=some-run")
    await expect(tab.page.locator("#status-badge")).to_have_attribute("data-state", "live")
    await expect(tab.page.locator("#preflight-badge")).to_have_attribute("data-state", "live")
    assert len(tab.sockets(f":{process.ports['preflight']}/some-run")) == 1
    assert len(tab.sockets(f":{process.ports['status']}/some-run:wepp")) == 1
    assert tab.complaints == []


async def test_it_takes_its_token_along(relay, new_tab):
    process = relay(env={"RELAY_TOKEN_SECRET": SECRET})
    tab = await new_tab()
    token = Keys(SECRET).sign(["some-run", "other-run"], ["*"], 60)
    await tab.page.goto(f"http://127.0.0.1:{process.ports['status']}/?run=some-run&token={token}")
    await expect(tab.page.locator("#status-badge")).to_have_attribute("data-state", "live")
    await expect(tab.page.locator("#preflight-badge")).to_have_attribute("data-state", "live")
    await tab.page.locator("#run").fill("other-run")
    await tab.page.locator("#run").press("Enter")
    await expect(tab.page).to_have_title("other-run · WEPPcloud run")
    await tab.page.reload()
    await expect(tab.page).to_have_title("other-run · WEPPcloud run")
    await expect(tab.page.locator("#status-badge")).to_have_attribute("data-state", "live")
    assert tab.complaints == []
