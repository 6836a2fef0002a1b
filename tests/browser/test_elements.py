"""The elements of `/relay.js`, in a page of another site, before a real relay."""

import asyncio
import itertools
import re

import pytest
import pytest_asyncio
import redis
from playwright.async_api import expect

pytestmark = [pytest.mark.needs("chromium"), pytest.mark.asyncio(loop_scope="module")]

LOG = '<relay-log run="some-run" channel="wepp" url="ws://127.0.0.1:{status}"></relay-log>'
CHECKLIST = '<relay-checklist run="some-run"></relay-checklist>'
HELP = """
    globalThis.element = () => document.querySelector("relay-log, relay-checklist");
    globalThis.rows = () => [...element().shadowRoot.querySelectorAll(".text")].map(row => row.textContent);
    globalThis.hide = hidden => {
        Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
    };
"""
# The times of the animation frames in which the rows of the log changed.
FRAMES = """
    globalThis.drawn = [];
    const log = element().shadowRoot.querySelector(".log");
    const draws = new MutationObserver(() => drawn.push(document.timeline.currentTime));
    draws.observe(log, { childList: true, subtree: true });
    null
"""


class Embedded:
    """A page with one element."""

    def __init__(self, tab):
        self.tab = tab
        self.page = tab.page
        self.evaluate = tab.page.evaluate
        self.note = tab.page.locator(".note")
        self.log = tab.page.locator(".log")
        self.rows = tab.page.locator(".line")
        self.jump = tab.page.locator(".jump")

    async def last_row(self, text):
        """Wait until the last row says so."""
        await expect(self.rows.last.locator(".text")).to_have_text(text)

    async def sockets(self, expected):
        """Wait until the page has had as many websockets, and these are open."""

        def as_expected():
            return [socket.open for socket in self.tab.all_sockets] == expected

        await self.tab.until(as_expected, f"sockets: {expected}")


@pytest_asyncio.fixture(loop_scope="module")
async def embedded(embed, standing):
    """Opens a page with this element, before the standing relay or another one."""

    async def open_page(element, relay=standing, *, live=True):
        page = Embedded(await embed(relay, element.format(**relay.ports), HELP))
        if live:
            await expect(page.note).to_have_text("Live.")
        return page

    return open_page


@pytest.fixture
def publish(redis_url):
    """`publish('a line', ...)` to the log of some-run."""
    with redis.Redis.from_url(redis_url) as worker:

        def send(*lines, channel="some-run:wepp"):
            with worker.pipeline(transaction=False) as burst:
                for line in lines:
                    burst.publish(channel, line)
                assert burst.execute()[-1] == 1

        yield send


# --- the log -------------------------------------------------------------------------------------------------


async def test_two_tags_show_a_log(embedded, publish):
    page = await embedded(LOG)
    publish("one", "<i>two</i>", "rq:1 EXCEPTION f()", "a \x1b[31mred\x1b[0m word")
    await page.last_row("a red word")
    assert await page.evaluate("rows()") == ["one", "<i>two</i>", "rq:1 EXCEPTION f()", "a red word"]
    await expect(page.page.get_by_role("log")).to_have_attribute("aria-live", "polite")
    await expect(page.page.get_by_role("status")).to_have_text("Live.")
    parts = await page.evaluate("[...element().shadowRoot.querySelectorAll('.line')].map(row => row.part.value)")
    assert parts == ["line line", "line line", "line exception", "line line"]
    assert (
        await page.rows.last.locator(".text span").evaluate("span => getComputedStyle(span).color")
        == "rgb(201, 60, 55)"
    )
    assert page.tab.complaints == []


async def test_events_come_from_the_element(embedded, publish):
    page = await embedded(LOG)
    await page.evaluate("element().addEventListener('trigger', ({ detail }) => { globalThis.told = detail.event; })")
    publish("rq:7f TRIGGER   wepp WEPP_RUN_TASK_COMPLETED")
    await page.page.wait_for_function("globalThis.told === 'WEPP_RUN_TASK_COMPLETED'")


async def test_it_follows_its_end_unless_the_reader_has_scrolled_up(embedded, publish):
    page = await embedded(LOG)
    at_end = "log => log.scrollHeight - log.scrollTop - log.clientHeight < 2"
    publish(*[f"line {number} {'long ' * (number % 60)}" for number in range(300)], "end of the first")
    await page.last_row("end of the first")
    await page.page.wait_for_function(f"({at_end})(element().shadowRoot.querySelector('.log'))")
    await expect(page.jump).to_be_hidden()
    await page.log.hover()
    await page.page.mouse.wheel(0, -400)
    await page.page.wait_for_function(f"!({at_end})(element().shadowRoot.querySelector('.log'))")
    publish("eleven", "twelve")
    await expect(page.jump).to_have_text("2 new lines")
    assert not await page.log.evaluate(at_end)
    publish("thirteen")
    await expect(page.jump).to_have_text("3 new lines")
    await page.jump.click()
    await page.page.wait_for_function(f"({at_end})(element().shadowRoot.querySelector('.log'))")
    await expect(page.jump).to_be_hidden()
    publish("fourteen")
    await page.last_row("fourteen")
    await page.page.wait_for_function(f"({at_end})(element().shadowRoot.querySelector('.log'))")


@pytest.mark.parametrize(
    "change",
    [
        """element().hidden = true; element().stream.receive({ type: "status", data: "unseen" });
            for (let drawn = 0; drawn < 5; drawn++) await frame();
            element().hidden = false""",
        "element().style.blockSize = '8em'",
        "element().style.inlineSize = '200px'",
        "document.body.append(document.createElement('main')); document.querySelector('main').append(element())",
        "const kept = element(); kept.remove(); document.body.append(kept)",
    ],
    ids=["shown again", "lower", "narrower", "moved", "taken out and in"],
)
async def test_it_keeps_to_its_end_whatever_size_it_takes(embedded, publish, change):
    page = await embedded(LOG)
    publish(*[f"line {number} {'long ' * (number % 60)}" for number in range(300)], "the end")
    await page.last_row("the end")
    at_end = "(log => log.scrollTop > 0 && log.scrollHeight - log.scrollTop - log.clientHeight < 2)"
    at_end += "(element().shadowRoot.querySelector('.log'))"
    await page.page.wait_for_function(at_end)
    await page.evaluate(
        f"""async () => {{
            const frame = () => new Promise(done => requestAnimationFrame(() => setTimeout(done)));
            {change};
            for (let drawn = 0; drawn < 5; drawn++) await frame();
        }}"""
    )
    assert await page.evaluate(at_end)
    await expect(page.jump).to_be_hidden()
    await page.log.hover()
    await page.page.mouse.wheel(0, -100)
    await page.page.wait_for_function(f"!{at_end}")
    publish("another")
    await expect(page.jump).to_have_text("1 new line")
    await page.evaluate("element().style.blockSize = '10em'")
    await expect(page.jump).to_have_text("1 new line")
    assert page.tab.complaints == []


async def test_rows_are_bounded(embedded, publish):
    page = await embedded(LOG.replace("url", 'limit="5" url'))
    publish(*[f"line {number}" for number in range(12)])
    await page.last_row("line 11")
    assert await page.evaluate("rows()") == [f"line {number}" for number in range(7, 12)]
    publish("another")
    await page.last_row("another")
    assert await page.evaluate("rows()") == [*[f"line {number}" for number in range(8, 12)], "another"]
    await page.evaluate("element().stream.clear()")
    await expect(page.rows).to_have_count(0)
    publish("after")
    await expect(page.rows).to_have_count(1)


async def test_it_draws_once_a_frame_at_most(embedded, publish):
    page = await embedded(LOG)
    await page.evaluate(FRAMES)
    for number in range(200):
        publish(f"line {number}")
        if number == 0:
            await page.last_row("line 0")
    await page.last_row("line 199")
    drawn = await page.evaluate("drawn")
    assert len(drawn) > 1
    assert len(set(drawn)) == len(drawn)


async def test_ten_thousand_lines_do_not_freeze_the_tab(embedded, publish, record_property):
    """By the time of the processor: that of the clock is also what this machine stood still for."""
    page = await embedded(LOG)
    tools = await page.page.context.new_cdp_session(page.page)
    await tools.send("Performance.enable", {"timeDomain": "threadTicks"})
    busy = [await busy_seconds(tools)]
    for first in range(0, 10_000, 500):
        numbers = range(first, first + 500)
        publish(*[f"hillslope {number}: \x1b[32msoil loss\x1b[0m {number / 7:.3f} t/ha" for number in numbers])
        await asyncio.sleep(0.1)  # two seconds of a model that writes fast
        # With more waiting than 150 kB the relay takes a page that stands still for too slow.
        await page.page.wait_for_function("n => (element().stream.lines.at(-1)?.n ?? 0) >= n", arg=first - 2000)
        busy.append(await busy_seconds(tools))
    await page.last_row("hillslope 9999: soil loss 1428.429 t/ha")
    busy.append(await busy_seconds(tools))
    longest = max(after - before for before, after in itertools.pairwise(busy))  # no frame took more
    record_property("longest_busy_ms", round(longest * 1000))
    print(f"10 000 lines in {busy[-1] - busy[0]:.2f} s of the tab's processor, {longest:.2f} s between two looks")
    assert await page.rows.count() == 3000
    assert longest < 1.0


async def busy_seconds(tools):
    """Of the processor, for the page's one thread."""
    metrics = (await tools.send("Performance.getMetrics"))["metrics"]
    return next(one["value"] for one in metrics if one["name"] == "TaskDuration")


async def test_hostile_lines_are_shown_and_do_nothing(embedded, publish):
    page = await embedded(LOG)
    publish(
        "<img src=x onerror='globalThis.harmed = 1'><script>globalThis.harmed = 1</script>",
        "gpj.\u202etxt.exe \0 \x1b]0;title\x07",
        "\n" * 5000,
        "é" * 500_000,
        '{"type":"hangup"}',
    )
    await page.last_row('{"type":"hangup"}')
    first, second, _, fourth, _ = await page.evaluate("rows()")
    assert first.startswith("<img")
    assert second == "gpj.‹RLO›txt.exe ␀ ␛]0;title␇"
    assert fourth == "é" * 20_000 + "… 500 kB"
    assert await page.rows.locator("img, script").count() == 0
    assert not await page.evaluate("'harmed' in globalThis")
    for number in (2, 3):
        assert (await page.rows.nth(number).bounding_box())["height"] <= 24 * 12.5 + 1
    publish("and on it goes")
    await page.last_row("and on it goes")
    assert page.tab.complaints == []


async def test_a_hidden_tab_draws_nothing_until_it_is_shown(embedded, publish):
    page = await embedded(LOG.replace("url", 'limit="100" url'))
    await page.evaluate("hide(true)")
    publish(*[f"line {number}" for number in range(1000)])
    await page.page.wait_for_function("element().stream.lines.at(-1)?.text === 'line 999'")
    await expect(page.rows).to_have_count(0)
    assert await page.evaluate("element().stream.lines.length") == 100
    await page.evaluate("hide(false)")
    await page.last_row("line 999")
    await expect(page.rows).to_have_count(100)


# --- attributes and life -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", ["relay-log", "relay-checklist"])
async def test_without_a_run_it_says_so_and_connects_nowhere(embedded, tag):
    page = await embedded(f"<{tag} channel=wepp></{tag}>", live=False)
    await expect(page.note).to_have_text("Not connected: no run is named.")
    for run in ("../../evil?x=1#y", "a/b:c", '" onload="globalThis.harmed = 1'):
        await page.evaluate("run => element().setAttribute('run', run)", run)
        await expect(page.note).to_have_text("Not connected: no run has such a name.")
    assert page.tab.all_sockets == []
    await page.evaluate("element().setAttribute('run', 'some-run')")
    await expect(page.note).to_have_text("Live.")
    await page.sockets([True])


async def test_another_run_is_another_stream(embedded, publish):
    page = await embedded(LOG)
    publish("of the first")
    await page.last_row("of the first")
    await page.evaluate(
        "for (const [name, value] of [['run', 'batch;;a'], ['channel', 'soils']]) element().setAttribute(name, value)"
    )
    await page.sockets([False, True])
    await expect(page.rows).to_have_count(0)
    await expect(page.note).to_have_text("Live.")
    assert page.tab.all_sockets[1].url.endswith("/batch%3B%3Ba:soils?v=2")
    publish("of the second", channel="batch;;a:soils")
    await page.last_row("of the second")
    await page.evaluate("element().setAttribute('channel', 'soils')")
    publish("still there", channel="batch;;a:soils")
    await page.last_row("still there")
    await page.sockets([False, True])


async def test_removal_closes_and_a_move_does_not(embedded, publish):
    page = await embedded(LOG)
    await page.evaluate(
        "document.body.append(document.createElement('main')); document.querySelector('main').append(element())"
    )
    publish("moved")
    await page.last_row("moved")
    await page.sockets([True])
    await page.evaluate("globalThis.kept = element(); kept.remove()")
    await page.sockets([False])
    assert await page.evaluate("kept.stream") is None
    await page.evaluate("document.body.append(kept)")
    await page.sockets([False, True])


async def test_it_says_how_it_is_and_is_live_again(embedded, relay, redis_url, publish):
    first = relay(env={"RELAY_DRAIN": "200ms"})
    page = await embedded(LOG, first)
    assert await asyncio.to_thread(first.stop) == 0
    await expect(page.note).to_have_text(
        "Not connected: no answer, or the relay does not let this page in; trying again …"
    )
    await expect(page.note).to_have_class(re.compile("^note (waiting|connecting) missing$"))
    await page.last_row("Lines may be missing here: the connection was lost.")
    second = relay(
        env={f"{name.upper()}_LISTEN_ADDR": f"127.0.0.1:{port}" for name, port in first.ports.items()}, wait=None
    )
    second.ports = first.ports
    await asyncio.to_thread(second.wait, "ready")
    await expect(page.note).to_have_text("Live.")
    publish("after")
    await page.last_row("after")


# --- the checklist -------------------------------------------------------------------------------------------


async def test_the_checklist_shows_what_is_done_and_locked(embedded, redis_url):
    page = await embedded(CHECKLIST)
    items = page.page.locator(".item")
    await expect(items.first).to_contain_text("Channels")
    assert await page.page.locator(".done, .locked").count() == 0
    with redis.Redis.from_url(redis_url) as worker:
        worker.hset(
            "some-run", mapping={"timestamps:build_channels": 10, "locked:climate.nodb": "true", "locked:<b>": "true"}
        )
    await expect(page.page.locator(".done")).to_have_text(["✓Channels"])
    await expect(page.page.locator(".locked")).to_have_text(["·Climatelocked", "·<b>locked"])
    await expect(page.page.get_by_role("img", name="done", exact=True)).to_have_count(1)
    with redis.Redis.from_url(redis_url) as worker:
        worker.delete("some-run")
    await expect(page.page.locator(".done, .locked")).to_have_count(0)
    assert page.tab.complaints == []


async def test_names_that_every_object_has_are_names_like_others(embedded, redis_url):
    names = ["__proto__", "constructor", "toString"]
    with redis.Redis.from_url(redis_url) as worker:
        worker.hset("some-run", mapping={f"locked:{name}": "true" for name in names})
    page = await embedded(CHECKLIST)
    await expect(page.page.locator(".locked .label")).to_have_text(names)
    assert page.tab.complaints == []


async def test_the_checklist_is_marked_while_it_is_not_live(embedded, relay, redis_url):
    with redis.Redis.from_url(redis_url) as worker:
        worker.hset("some-run", "timestamps:build_channels", 10)
    process = relay()
    page = await embedded(CHECKLIST, process)
    await expect(page.page.locator(".list")).to_have_class("list")
    await expect(page.page.locator(".done")).to_have_count(1)
    process.end()
    await expect(page.page.locator(".list")).to_have_class("list stale")
    await expect(page.note).to_contain_text("The last state is from ")
    await expect(page.page.locator(".done")).to_have_count(1)


# --- policies ------------------------------------------------------------------------------------------------


async def test_it_keeps_its_style_under_the_policy_of_the_relays_page(new_tab, standing):
    """A policy without 'unsafe-inline': constructed style sheets are let in, style attributes would not be."""
    tab = await new_tab()
    await tab.page.add_init_script(
        """globalThis.broken = [];
        addEventListener("securitypolicyviolation", event => broken.push(event.violatedDirective));"""
    )
    answer = await tab.page.goto(f"http://127.0.0.1:{standing.ports['status']}/run/some-run")
    assert "unsafe-inline" not in answer.headers["content-security-policy"]
    await tab.page.evaluate(
        """async port => {
            await import("/relay.js");
            const element = document.createElement("relay-log");
            for (const [name, value] of [["run", "some-run"], ["channel", "tested"], ["url", `ws://127.0.0.1:${port}`]])
                element.setAttribute(name, value);
            document.body.append(element);
        }""",
        standing.ports["status"],
    )
    await expect(tab.page.locator("relay-log .note")).to_have_text("Live.")
    style = await tab.page.locator("relay-log").evaluate("element => getComputedStyle(element).display")
    assert style == "flex"
    assert await tab.page.evaluate("broken") == []
