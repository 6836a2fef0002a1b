"""The page that the relay serves, where a browser finds it: behind deploy/nginx.conf and deploy/Caddyfile, by IPv6."""

import asyncio

import pytest
from playwright.async_api import expect

from relay.cli.embedded import free_port
from tests.integration.proxies import PREFIX, caddy, in_front, nginx
from tests.integration.topology import PORTS

pytestmark = [pytest.mark.needs("chromium"), pytest.mark.asyncio(loop_scope="module")]


@pytest.fixture(params=[pytest.param(proxy, marks=pytest.mark.needs(proxy.__name__)) for proxy in (nginx, caddy)])
def address(request, relay, tmp_path):
    """host:port/prefix of the proxy before a relay that is told of it, as docs/operations.md says."""
    port = free_port()
    public = {f"RELAY_{name.upper()}_PUBLIC_URL": f"ws://127.0.0.1:{port}{PREFIX}/{name}" for name in PORTS}
    behind = relay(env={"RELAY_TRUSTED_PROXIES": "127.0.0.1", **public})
    with in_front(request.param, behind, tmp_path, port):
        yield f"127.0.0.1:{port}{PREFIX}"


async def live(tab):
    for badge in ("#status-badge", "#preflight-badge"):
        await expect(tab.page.locator(badge)).to_have_attribute("data-state", "live")


async def test_the_page_shows_a_run_below_a_prefix(address, new_tab):
    tab = await new_tab()
    for service in PORTS:
        for path in ("/run/some-run", "/run/some-run/"):
            await tab.page.goto(f"http://{address}/{service}{path}?channels=wepp")
            await live(tab)
        await tab.page.goto(f"http://{address}/{service}/")
        await tab.page.locator("#run").fill("other-run")
        await tab.page.locator("#run").press("Enter")
        await expect(tab.page).to_have_url(f"http://{address}/{service}/run/other-run")
        await live(tab)
    assert tab.complaints == []


async def test_the_page_shows_a_run_at_an_ipv6_address(relay, new_tab):
    ports = {name: free_port() for name in PORTS}
    process = relay(env={f"{name.upper()}_LISTEN_ADDR": f"[::]:{port}" for name, port in ports.items()}, wait=None)
    process.ports = ports
    await asyncio.to_thread(process.wait, "ready")
    tab = await new_tab()
    await tab.page.goto(f"http://[::1]:{ports['status']}/run/some-run?channels=wepp")
    await live(tab)
    assert tab.complaints == []
