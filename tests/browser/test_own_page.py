"""The page that the relay serves at `/` and `/run/<run>`, in a browser."""

import asyncio
import itertools
import json
import re
import socket
import time

import pytest
import pytest_asyncio
import redis
from axe_playwright_python.base import AXE_SCRIPT
from playwright.async_api import expect

from relay.tokens import Keys
from tests.conftest import Relay

SECRET = "s3cr3t-" + 32 * "x"
RUN = "some-run"
# Two channels where nineteen would only take longer.
FEW = "?channels=wepp,soils"
JOB = "rq:7f7f7f7f-0000-4000-8000-000000000000"
BUILT = {"timestamps:build_channels": 10, "timestamps:set_outlet": 20, "timestamps:abstract_watershed": 30}
INPUTS = {"timestamps:build_landuse": 40, "timestamps:build_soils": 50, "timestamps:build_climate": 60}
pytestmark = [pytest.mark.needs("chromium"), pytest.mark.asyncio(loop_scope="module")]


def clock(seconds):
    return time.strftime("%H:%M:%S", time.localtime(seconds))


class Watched:
    """A tab with the page of a run, and what a worker writes."""

    def __init__(self, tab, relay, url):
        self.tab, self.relay, self.url = tab, relay, url
        self.page = tab.page
        self.address = f"http://127.0.0.1:{relay.ports['status']}"
        self.log = tab.page.locator("#log")
        self.rows = tab.page.locator(".row")

    async def open(self, path=f"/run/{RUN}{FEW}", *, redis_away=False):
        """Open the page; where it names a run, wait until both are connected, and Redis is there."""
        await self.page.add_init_script("addEventListener('securitypolicyviolation', e => console.error(e.blockedURI))")
        await self.page.goto(self.address + path)
        if path.startswith("/run/"):
            await expect(self.page.locator("#watched")).to_be_visible()
            await self.live()
            if not redis_away:
                await expect(self.page.locator(".badge[data-missing]")).to_have_count(0)
        return self

    async def live(self):
        for badge in ("#status-badge", "#preflight-badge"):
            await expect(self.page.locator(badge)).to_have_attribute("data-state", "live")

    async def holds(self, expression, seconds=20):
        """Wait until this is true in the page, which lets nobody evaluate anything but from outside."""
        async with asyncio.timeout(seconds):
            look = f"const look = () => ({expression}) ? done() : requestAnimationFrame(look); look();"
            await self.page.evaluate(f"() => new Promise(done => {{ {look} }})")

    def item(self, name):
        return self.page.locator(f"li[data-item={name}]")

    def publish(self, channel, *lines, run=RUN):
        with redis.Redis.from_url(self.url) as worker, worker.pipeline(transaction=False) as burst:
            for line in lines:
                burst.publish(f"{run}:{channel}", line)
            received = burst.execute()
        assert received == [1] * len(lines)

    def write(self, fields):
        with redis.Redis.from_url(self.url) as worker:
            worker.hset(RUN, mapping=fields)


@pytest.fixture(scope="module")
def standing(_shared_redis, tmp_path_factory):
    """One relay for all tests that ask nothing special of it."""
    with Relay([], {"REDIS_URL": _shared_redis.url}, tmp_path_factory.mktemp("relay")) as process:
        yield process


@pytest_asyncio.fixture(loop_scope="module")
async def watch(standing, redis_url, new_tab):
    """A factory of pages before a relay, opened: `await watch()`, `await watch("/")`."""

    async def watch(path=f"/run/{RUN}{FEW}", *, process=None, url=redis_url, viewport=None, away=False, **options):
        tab = await new_tab(viewport=viewport or {"width": 1280, "height": 860}, **options)
        return await Watched(tab, process or standing, url).open(path, redis_away=away)

    return watch


async def test_it_shows_the_log_and_the_checklist(watch):
    run = await watch(f"/run/{RUN}")
    await expect(run.page).to_have_title(re.compile(f"^● {RUN} "))
    await expect(run.page.locator("li[data-state=done]")).to_have_count(0)
    run.publish("soils", "<i>Building</i> soils")
    run.write({"timestamps:build_channels": "10"})
    await expect(run.page.locator(".row[data-channel=soils] .said")).to_have_text("<i>Building</i> soils")
    await expect(run.rows).to_have_count(1)
    await expect(run.page.locator("li[data-state=done]")).to_have_attribute("data-item", "channels")
    await expect(run.item("channels").get_by_role("img", name="done")).to_be_visible()
    await expect(run.page.locator(".chip:visible")).to_have_text("soils1")
    assert run.tab.complaints == []


async def test_a_page_behind_the_other_port_is_the_same(standing, new_tab):
    process = standing
    tab = await new_tab()
    await tab.page.goto(f"http://127.0.0.1:{process.ports['preflight']}/run/{RUN}")
    await expect(tab.page.locator("#status-badge")).to_have_attribute("data-state", "live")
    await expect(tab.page.locator("#preflight-badge")).to_have_attribute("data-state", "live")
    assert len(tab.sockets(f":{process.ports['preflight']}/{RUN}?v=3")) == 1
    assert len(tab.sockets(f":{process.ports['status']}/{RUN}:wepp?v=2")) == 1
    assert tab.complaints == []


async def test_it_takes_its_token_along(relay, watch):
    token = Keys(SECRET).sign([RUN, "other-run"], ["*"], 60)
    run = await watch(f"/run/{RUN}?token={token}", process=relay(env={"RELAY_TOKEN_SECRET": SECRET}))
    await run.page.locator("#run").fill("other-run")
    await run.page.locator("#run").press("Enter")
    await expect(run.page).to_have_url(f"{run.address}/run/other-run?token={token}")
    await run.live()
    await run.page.reload()
    await run.live()
    await expect(run.page).to_have_title(re.compile("other-run"))
    assert run.tab.complaints == []


async def test_a_permission_that_ends_does_not_promise_what_was_missed(relay, watch):
    process = relay(env={"RELAY_TOKEN_SECRET": SECRET})
    token = Keys(SECRET).sign([RUN], ["*"], 8)  # in which a busy machine opens a page
    run = await watch(f"/run/{RUN}{FEW}&token={token}", process=process)
    notice = run.page.locator("#notice [role=status]")
    await expect(notice).to_have_text(
        re.compile(r"^The relay refuses this run: .*permission.*\. Lines are missing since\.$")
    )


async def test_a_run_is_chosen_by_hand_and_the_back_button_goes_back(watch):
    run = await watch("/")
    await expect(run.page.locator("#run")).to_be_focused()
    await expect(run.page.locator("#watched")).to_be_hidden()
    await run.page.keyboard.type("first-run")
    await run.page.keyboard.press("Enter")
    await expect(run.page).to_have_url(f"{run.address}/run/first-run")
    await run.live()
    await run.page.locator("#run").fill("second;;run")
    await run.page.locator(".go").click()
    await expect(run.page).to_have_url(f"{run.address}/run/second;;run")
    await run.live()
    run.publish("wepp", "of the second", run="second;;run")
    await expect(run.rows).to_have_count(1)
    await run.page.go_back()
    await expect(run.page.locator("#run")).to_have_value("first-run")
    await expect(run.rows).to_have_count(0)
    await run.live()
    await run.page.go_back()
    await expect(run.page.locator("#recent a")).to_have_text(["first-run", "second;;run"])
    await run.page.locator("#recent a").last.press("Enter")
    await expect(run.page).to_have_url(f"{run.address}/run/second;;run")
    assert run.tab.complaints == []


async def test_older_addresses_still_lead_to_the_run(watch):
    run = await watch(f"/?run={RUN}&channels=wepp")
    await expect(run.page).to_have_url(f"{run.address}/run/{RUN}?channels=wepp")
    await run.page.goto(f"{run.address}/#other-run")
    await expect(run.page).to_have_url(f"{run.address}/run/other-run")


async def test_what_is_wrong_with_a_run_id_is_said(watch):
    run = await watch("/?run=%3Cimg+src=x+onerror=alert(1)%3E%E2%80%AE")
    wrong = run.page.locator("#wrong")
    await expect(wrong).to_contain_text("“<img src=x onerror=alert(1)>‹RLO›” is no run id: it has “<”, a space")
    for value, words in {
        "a/b": "it has “/”",
        "": "it is empty",
        "..": "of dots only",
        "x" * 200: "200 characters; 175",
        "health": "itself",
    }.items():
        await run.page.locator("#run").fill(value)
        await run.page.locator("#run").press("Enter")
        await expect(wrong).to_contain_text(words)
        await expect(run.page.locator("#run")).to_have_attribute("aria-invalid", "true")
    assert await run.page.locator("img").count() == 0
    assert run.tab.all_sockets == []
    await run.page.locator("#run").fill(RUN)
    await run.page.locator("#run").press("Enter")
    await expect(wrong).to_be_hidden()
    await run.live()
    assert run.tab.complaints == []


async def test_without_a_store_it_works_all_the_same(standing, new_tab):
    tab = await new_tab()
    deny = "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no', 'SecurityError'); } })"
    await tab.page.add_init_script(deny)
    await tab.page.goto(f"http://127.0.0.1:{standing.ports['status']}/")
    await expect(tab.page.locator("#chooser-text")).to_contain_text("Type its id above")
    await tab.page.keyboard.type(RUN)
    await tab.page.keyboard.press("Enter")
    await expect(tab.page.locator("#status-badge")).to_have_attribute("data-state", "live")
    assert tab.complaints == []


async def test_channels_are_added_hidden_and_counted(watch):
    run = await watch("/run/some-run?channels=wepp,-bad%3C,soils")
    await expect(run.page.locator("#wrong-channel")).to_contain_text("“-bad<” is no channel")
    await run.page.locator("#channel").fill("roads")
    await run.page.locator("#channel").press("Enter")
    await expect(run.page).to_have_url(f"{run.address}/run/{RUN}?channels=wepp,soils,roads")
    await run.tab.until(lambda: run.tab.sockets(f"{RUN}:roads?v=2"), "a third channel")
    await run.live()
    run.publish("roads", "graded")
    await expect(run.rows).to_have_count(1)
    run.publish("wepp", "one", "two")
    await expect(run.rows).to_have_count(3)
    chip = run.page.get_by_role("button", name=re.compile("^wepp"))
    await expect(chip).to_have_text("wepp2")
    await chip.press("Space")
    await expect(chip).to_have_attribute("aria-pressed", "false")
    await expect(run.rows).to_have_count(1)
    run.publish("wepp", "three")
    await expect(chip).to_have_text("wepp3")
    await expect(run.rows).to_have_count(1)
    await chip.press("Space")
    await expect(run.rows).to_have_count(4)
    assert await run.page.locator(".said").all_text_contents() == ["graded", "one", "two", "three"]


async def test_it_follows_until_it_is_scrolled_and_says_how_many_are_new(watch):
    run = await watch()
    run.publish("wepp", *(f"line {n}" for n in range(200)))
    at_end = "log.scrollHeight - log.scrollTop - log.clientHeight < 2"
    await expect(run.rows).to_have_count(200)
    await run.holds(at_end)
    await expect(run.page.locator("#jump")).to_be_hidden()
    await run.page.locator("#log").hover()
    await run.page.mouse.wheel(0, -600)
    await expect(run.page.locator("#jump")).to_have_text("↓ Latest")
    await run.holds("log.scrollHeight - log.scrollTop - log.clientHeight == 600")
    before = await run.page.evaluate("log.scrollTop")
    run.publish("wepp", *(f"later {n}" for n in range(11)))
    run.publish("soils", "later too")
    await expect(run.page.locator("#jump")).to_have_text("↓ 12 new lines")
    assert await run.page.evaluate("log.scrollTop") == before
    await run.page.locator("#jump").press("Enter")
    await expect(run.page.locator("#jump")).to_be_hidden()
    run.publish("wepp", "the last")
    await expect(run.rows).to_have_count(213)
    await run.holds(at_end)
    await run.page.locator("#log").focus()
    await run.page.keyboard.press("Home")
    await expect(run.page.locator("#jump")).to_be_visible()
    await run.page.keyboard.press("End")
    await expect(run.page.locator("#jump")).to_be_hidden()


async def test_a_filter_finds_and_marks(watch):
    run = await watch()
    run.publish("wepp", "Hillslope 1", "channel 2", "\x1b[31mHILL\x1b[0mslope 3 (hillslope)", "a.b", "a+b")
    await expect(run.rows).to_have_count(5)
    await run.page.locator("#log").focus()
    await run.page.keyboard.press("/")
    await expect(run.page.locator("#filter")).to_be_focused()
    await run.page.keyboard.type("hillSLOPE")
    await expect(run.rows).to_have_count(2)
    await expect(run.page.locator("#count")).to_have_text("2 of 5 lines match")
    assert await run.page.locator("mark").all_text_contents() == ["Hillslope", "HILL", "slope", "hillslope"]
    await expect(run.page.locator(".said").last).to_have_text("HILLslope 3 (hillslope)")
    run.publish("wepp", "no match", "hillslope 4")
    await expect(run.page.locator("#count")).to_have_text("3 of 7 lines match")
    await run.page.locator("#filter").fill("a+")
    await expect(run.page.locator(".said")).to_have_text(["a+b"])
    await run.page.locator("#filter").fill("nowhere")
    await expect(run.page.locator("#empty")).to_contain_text("No line of those that have come")
    await run.page.keyboard.press("Escape")
    await expect(run.page.locator("#filter")).to_have_value("")
    await expect(run.rows).to_have_count(7)
    await expect(run.log).to_be_focused()


async def test_a_pause_collects(watch):
    run = await watch()
    run.publish("wepp", "before")
    await expect(run.rows).to_have_count(1)
    pause = run.page.locator("#pause")
    await pause.click()
    run.publish("wepp", *(f"line {n}" for n in range(1234)))
    await expect(pause).to_have_text("Resume (1,234 waiting)")
    await expect(pause).to_have_attribute("aria-pressed", "true")
    await expect(run.rows).to_have_count(1)
    await pause.click()
    await expect(run.rows).to_have_count(1235)
    await expect(pause).to_have_text("Pause")


async def test_a_pause_lasts_while_other_lines_are_chosen(watch):
    run = await watch()
    run.publish("wepp", "before")
    await expect(run.rows).to_have_count(1)
    pause = run.page.locator("#pause")
    await pause.click()
    run.publish("wepp", *(f"later {n}" for n in range(5)), f"{JOB} EXCEPTION f(x)")
    run.publish("soils", "later too")
    await expect(pause).to_have_text("Resume (7 waiting)")
    await run.page.locator(".chip[data-channel=soils]").click()
    await expect(pause).to_have_text("Resume (6 waiting)")
    await expect(run.rows).to_have_count(1)
    await run.page.locator("#filter").fill("later")
    await expect(pause).to_have_text("Resume (5 waiting)")
    await expect(run.rows).to_have_count(0)
    await run.page.get_by_role("button", name="Show line").click()
    await expect(run.page.locator(".row.found .said")).to_have_text(f"{JOB} EXCEPTION f(x)")
    await expect(pause).to_have_text("Pause")
    assert run.tab.complaints == []


async def test_lines_are_copied_and_kept_in_a_file(watch):
    run = await watch()
    await run.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    run.publish("wepp", "one", "two\nlines\x1b[2J")
    await expect(run.rows).to_have_count(2)  # two channels keep no order among them
    run.publish("soils", "clay")
    await expect(run.rows).to_have_count(3)
    await run.page.get_by_role("button", name=re.compile("^soils")).click()
    await run.page.evaluate(
        """() => {
            const button = document.getElementById("copy");
            new MutationObserver(() => (window.flashed ??= button.textContent)).observe(button, { childList: true });
        }"""
    )
    await run.page.locator("#copy").click()
    await run.holds("window.flashed === 'Copied'")  # for two seconds, in which this machine may stand still
    await expect(run.page.locator("#said")).to_have_text("2 lines copied")
    copied = await run.page.evaluate("navigator.clipboard.readText()")
    assert re.fullmatch(r"\d\d:\d\d:\d\d wepp one\n\d\d:\d\d:\d\d wepp two\n\tlines␛\[2J\n", copied)
    # Where the page came without TLS from another host there is no such clipboard.
    await run.page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    await run.page.locator("#filter").fill("one")
    await run.page.locator("#copy").click()
    await expect(run.page.locator("#said")).to_have_text("1 line copied")
    await run.page.locator("#filter").fill("")
    await run.page.locator("#filter").press("Control+v")
    await expect(run.page.locator("#filter")).to_have_value(copied.split("\n")[0])
    async with run.page.expect_download() as download:
        await run.page.locator("#download").click()
    file = await download.value
    assert re.fullmatch(rf"{RUN}-\d{{4}}-\d\d-\d\dT\d{{6}}\.log", file.suggested_filename)
    text = (await file.path()).read_text()
    assert re.sub(r"^\S+Z", "T", text, flags=re.M) == "T\twepp\tone\nT\twepp\ttwo\n\tlines␛[2J\nT\tsoils\tclay\n"
    await run.page.locator("#clear").click()
    await expect(run.rows).to_have_count(0)
    await expect(run.page.locator("#empty")).to_contain_text("Cleared. New lines appear here")
    await expect(run.page.locator("#copy")).to_be_disabled()
    assert run.tab.complaints == []


async def test_the_title_of_a_tab_in_the_background_counts_lines(watch):
    run = await watch()
    turn = """hidden => {
        Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    await run.page.evaluate(turn, True)
    run.publish("wepp", *(f"line {n}" for n in range(12)))
    await expect(run.page).to_have_title(f"● 12 {RUN} · WEPPcloud run")
    await run.page.evaluate(turn, False)
    await expect(run.page).to_have_title(f"● {RUN} · WEPPcloud run")
    await expect(run.rows).to_have_count(12)


async def test_levels_and_colours_are_shown(watch):
    run = await watch()
    run.publish("wepp", "ERROR: a", "2026 WARNING b", "0 errors", "\x1b[1;31mred\x1b[0m", f"{JOB} STARTED f(x)")
    run.publish("wepp", "\x1b[31mERROR\x1b[0m c")
    await expect(run.rows).to_have_count(6)
    assert [await row.get_attribute("class") for row in await run.rows.all()] == [
        *("row error", "row warning", "row ", "row ", "row started", "row error"),
    ]
    red = run.page.locator(".said > .ansi-bold")
    await expect(red).to_have_text("red")
    assert await red.evaluate("e => getComputedStyle(e).color") == "rgb(179, 38, 30)"


async def test_exceptions_are_collected_and_lead_to_their_lines(watch):
    run = await watch()
    trace = ["Traceback (most recent call last):", '  File "wepp.py", line 3', "ValueError: <b>x</b>"]
    run.publish("wepp", *(f"line {n}" for n in range(100)), f"{JOB} EXCEPTION run_wepp_rq(some-run)", *trace)
    run.publish("soils", "not of it")
    run.publish("wepp", "hillslope 7 completed", "  not of it either", *(f"line {n}" for n in range(100)))
    panel = run.page.locator("#exceptions")
    await expect(panel.locator("h3")).to_have_text("1 job failed")
    await expect(panel.locator("b")).to_have_text("run_wepp_rq(some-run)")
    await expect(panel.locator("pre")).to_have_text("\n".join([f"{JOB} EXCEPTION run_wepp_rq(some-run)", *trace]))
    await expect(run.page).to_have_title(re.compile("^✗ failed: "))
    await run.page.locator("#filter").fill("hides it")
    await panel.get_by_role("button", name="Show line").click()
    await expect(run.page.locator(".row.found")).to_be_in_viewport()
    await expect(run.page.locator(".row.found")).to_be_focused()
    await expect(run.page.locator(".row.found .said")).to_contain_text("EXCEPTION")
    run.publish("soils", f"{JOB} EXCEPTION g()")
    await expect(panel.locator("h3")).to_have_text("2 jobs failed")
    await panel.get_by_role("button", name="Dismiss: g()").press("Enter")
    await expect(panel.locator("h3")).to_have_text("1 job failed")
    # The same done again and well is no failure any more, whatever else is still to be read of it.
    run.publish("wepp", "rq:other COMPLETED run_wepp_rq(some-run)")
    await expect(run.page).to_have_title(re.compile("^● "))
    run.publish("wepp", *(f"rq:{n} EXCEPTION f({n})" for n in range(21)))
    await expect(panel.locator("h3")).to_have_text("22 jobs failed, the last 20 of them here")
    await panel.get_by_role("button", name="Dismiss all").press("Enter")
    await expect(panel).to_be_hidden()
    await expect(run.log).to_be_focused()
    assert run.tab.complaints == []


async def test_a_step_says_when_it_ran_and_why_it_is_stale(watch, redis_url):
    now = int(time.time())
    past = {field: now - 1000 + at for field, at in (BUILT | INPUTS | {"timestamps:run_wepp": 70}).items()}
    with redis.Redis.from_url(redis_url) as worker:
        worker.hset(RUN, mapping=past | {"started:run_wepp": now - 1000, "timestamps:build_channels": 1000})
    run = await watch()
    await expect(run.page.locator("#progress")).to_have_text("7 done")
    # Of what was done before the page was opened too.
    await expect(run.item("wepp").locator(".word")).to_have_text(f"{clock(now - 930)} · 1:10 min")
    await expect(run.item("channels").locator(".word")).to_have_text("Jan 01 1970")
    run.write({"locked:landuse.nodb": "true"})
    await expect(run.item("landuse")).to_have_attribute("data-state", "running")
    await expect(run.item("landuse").locator(".word")).to_have_text(re.compile(r"^running (< 1|\d+) s$"))
    await expect(run.page.locator("#progress")).to_have_text("7 done, 1 running")
    now = int(time.time())
    run.write({"locked:landuse.nodb": "false", "timestamps:build_landuse": now, "locked:odd": "true"})
    await expect(run.item("landuse")).to_have_attribute("data-state", "done")
    await expect(run.item("landuse").locator(".word")).to_have_text(re.compile(rf"^{clock(now)} · (< 1|\d+) s$"))
    await expect(run.page.locator("#locks")).to_have_text("Locked: odd")
    for name in ("soils", "wepp"):
        await expect(run.item(name)).to_have_attribute("data-state", "stale")
        await expect(run.item(name).locator(".why")).to_have_text("older than Land use")
    run.write({"timestamps:build_soils": now + 1})
    await expect(run.item("soils").locator(".word")).to_have_text(clock(now + 1))
    await expect(run.item("wepp").locator(".why")).to_have_text("older than Land use and Soils")
    words, picture = run.page.locator("#timeline-text li"), run.page.locator("#picture svg")
    ran = r"ran \d\d:\d\d:\d\d to \d\d:\d\d:\d\d"
    await expect(words.filter(has_text="Land use")).to_have_text(re.compile(f"^Land use: {ran}, done at {clock(now)}"))
    again = f"no longer done at {clock(now)}, done at {clock(now + 1)}"
    await expect(words.filter(has_text="Soils")).to_contain_text(f"Soils: {again}")
    await expect(picture.locator("text", has_text="Land use")).to_have_count(1)
    await expect(picture.locator("rect.bar")).to_have_count(1)
    await expect(run.page).to_have_title(re.compile("^✓ done "))
    await run.page.reload()
    await expect(run.item("soils").locator(".word")).to_have_text(clock(now + 1))
    await expect(run.item("wepp").locator(".why")).to_have_text("older than Land use and Soils")
    run.write({"timestamps:build_landuse": 10**18, "timestamps:run_wepp": "soon"})  # no such times
    await expect(run.item("landuse").locator(".word")).to_have_text("")
    await expect(run.item("wepp")).to_have_attribute("data-state", "open")
    assert run.tab.complaints == []


async def test_a_step_that_begins_again_is_neither_stale_nor_the_cause(watch):
    run = await watch()
    now = int(time.time())
    run.write({"locked:landuse": "true"})
    await expect(run.item("landuse")).to_have_attribute("data-state", "running")
    run.write({field: now - 1000 + at for field, at in (BUILT | INPUTS | {"timestamps:run_wepp": 70}).items()})
    run.write({"locked:landuse": "false"})
    await expect(run.page.locator("#progress")).to_have_text("7 done")
    with redis.Redis.from_url(run.url) as worker:
        worker.hdel(RUN, "timestamps:build_landuse")
    await expect(run.item("landuse")).to_have_attribute("data-state", "open")
    await expect(run.item("landuse").locator(".why")).to_have_text("")
    run.write({"started:build_landuse": now - 100, "locked:landuse": "true"})
    await expect(run.item("landuse").locator(".word")).to_have_text(re.compile(r"^running 1:4\d min$"))
    for name in ("soils", "wepp"):
        await expect(run.item(name).locator(".why")).not_to_contain_text("Land use")


async def test_what_it_did_not_see_whole_has_no_length(relay, redis_server, watch):
    run = await watch(process=relay(env={"REDIS_URL": redis_server.url}), url=redis_server.url)
    run.write(BUILT | {"locked:climate.nodb": "true"})
    await expect(run.item("climate")).to_have_attribute("data-state", "running")
    redis_server.kill()
    await expect(run.page.locator("#checks")).to_have_class("checks stale")
    redis_server.start("--notify-keyspace-events", "Kghx")
    done = int(time.time())
    run.write(BUILT | {"timestamps:build_climate": done})
    await expect(run.item("climate")).to_have_attribute("data-state", "done")
    await expect(run.item("climate").locator(".word")).to_have_text(clock(done))
    words = run.page.locator("#timeline-text li", has_text="Climate")
    await expect(words).to_have_text(re.compile(rf": ran \S+ to \S+ or longer, done at {clock(done)}$"))
    await expect(run.page.locator("#picture rect.bar.part")).to_have_count(1)


async def test_what_runs_since_before_it_looked_has_its_bar_from_its_beginning(relay, redis_server, watch):
    began = int(time.time()) - 600
    with redis.Redis.from_url(redis_server.url) as worker:
        worker.hset(RUN, mapping={"started:build_climate": began, "locked:climate.nodb": "true"})
    run = await watch(process=relay(env={"REDIS_URL": redis_server.url}), url=redis_server.url)
    words = run.page.locator("#timeline-text li", has_text="Climate")
    await expect(words).to_have_text(f"Climate: runs since {clock(began)}")
    redis_server.kill()
    await expect(run.page.locator("#checks")).to_have_class("checks stale")
    redis_server.start("--notify-keyspace-events", "Kghx")
    run.write({"started:build_climate": began, "locked:climate.nodb": "true"})
    await expect(run.page.locator("#checks")).to_have_class("checks")
    await expect(words).to_have_text(f"Climate: runs since {clock(began)}")  # one bar, though nobody saw a part of it
    run.write({"locked:climate.nodb": "false"})
    await expect(words).to_have_text(re.compile(rf"^Climate: ran {clock(began)} to \S+$"))
    # Another lock of the same step; its beginning was seen.
    run.write({"locked:climate.nodb": "true"})
    await expect(words).to_have_text(
        re.compile(rf"^Climate: ran {clock(began)} to \S+, runs since (?!{clock(began)})\S+$")
    )


@pytest.mark.parametrize("ago", [3600, 0])
async def test_what_redis_lost_and_got_back_is_not_done_anew(relay, redis_server, watch, ago):
    past = {"timestamps:build_channels": int(time.time()) - ago}
    with redis.Redis.from_url(redis_server.url) as worker:
        worker.hset(RUN, mapping=past)
    run = await watch(process=relay(env={"REDIS_URL": redis_server.url}), url=redis_server.url)
    await expect(run.page.locator("#progress")).to_have_text("1 done")
    words = run.page.locator("#timeline-text li", has_text="Channels")
    with redis.Redis.from_url(run.url) as worker:
        worker.delete(RUN)
    await expect(run.page.locator("#progress")).to_have_text("0 done")
    await expect(words).to_have_text(re.compile(r": no longer done at \S+$"))
    run.write(past)
    await expect(run.page.locator("#progress")).to_have_text("1 done")
    await expect(words).to_have_text(re.compile(r": no longer done at \S+, ticked at \S+$"))
    await expect(run.page.locator("#picture circle").last).to_have_attribute("class", "tick")


async def test_what_came_back_is_not_done_anew_where_its_times_are_seen_first(standing, redis_url, new_tab):
    tab, sockets = await new_tab(), []
    await tab.page.route_web_socket(
        re.compile(f"/{RUN}[?]v=3"), lambda ws: sockets.append((ws, ws.connect_to_server()))
    )
    run = await Watched(tab, standing, redis_url).open()
    ((socket_of_page, _),) = sockets
    done = {"channels": int(time.time())}
    for times in (done, {}, done):
        for frame in (
            {"type": "times", "done": times, "started": {}, "stale": {}},
            {"type": "preflight", "checklist": {"channels": bool(times)}},
        ):
            socket_of_page.send(json.dumps(frame))
            for _ in range(2):  # it is drawn, where the machine goes on: else the two are shown as one, as they may
                await run.page.evaluate("() => new Promise(requestAnimationFrame)")
        await expect(run.page.locator("#progress")).to_have_text("1 done" if times else "0 done")
    words = run.page.locator("#timeline-text li", has_text="Channels")
    await expect(words).to_have_text(re.compile(r": (done|ticked) at \S+, no longer done at \S+, ticked at \S+$"))


@pytest.mark.parametrize("skew", [-7200, -20, 20, 7200])
async def test_a_worker_with_another_clock_is_told_by_the_clock_of_this_page(watch, skew):
    run = await watch()
    run.write({"locked:climate.nodb": "true", "started:build_climate": int(time.time()) + skew})
    await expect(run.item("climate")).to_have_attribute("data-state", "running")
    run.write({"locked:climate.nodb": "false"} | BUILT | {"timestamps:build_climate": int(time.time()) + skew})
    await expect(run.item("climate")).to_have_attribute("data-state", "done")
    words = run.page.locator("#timeline-text li", has_text="Climate")
    await expect(words).to_have_text(re.compile(r"^Climate: ran (\S+) to (\S+), ticked at \S+$"))
    end, ring = await run.page.locator("#picture svg").evaluate(
        """picture => {
            const { x, width } = picture.querySelector("rect.bar");
            const rings = [...picture.querySelectorAll("circle.tick")].map(ring => ring.cx.baseVal.value);
            return [x.baseVal.value + width.baseVal.value, Math.max(...rings)];
        }"""
    )
    assert ring >= end - 2


async def test_a_bar_covers_nothing_that_was_seen_to_be_idle(relay, redis_server, watch):
    began = int(time.time()) - 600
    field = {"started:build_climate": began}  # of a run that failed
    with redis.Redis.from_url(redis_server.url) as worker:
        worker.hset(RUN, mapping=field)
    run = await watch(process=relay(env={"REDIS_URL": redis_server.url}), url=redis_server.url)
    await expect(run.page.locator("#progress")).to_have_text("0 done")
    redis_server.kill()
    await expect(run.page.locator("#checks")).to_have_class("checks stale")
    redis_server.start("--notify-keyspace-events", "Kghx")
    run.write(field | {"locked:climate.nodb": "true"})
    words = run.page.locator("#timeline-text li", has_text="Climate")
    await expect(words).to_have_text(re.compile(r"^Climate: runs since \d\d:\d\d:\d\d( or earlier)?$"))
    assert clock(began) not in await words.text_content()


async def test_a_run_that_began_unseen_is_not_the_one_before_it(relay, redis_server, watch):
    slow = 15  # the worker's clock
    began = int(time.time()) - slow
    with redis.Redis.from_url(redis_server.url) as worker:
        worker.hset(RUN, mapping={"started:build_climate": began, "locked:climate.nodb": "true"})
    run = await watch(process=relay(env={"REDIS_URL": redis_server.url}), url=redis_server.url)
    words = run.page.locator("#timeline-text li", has_text="Climate")
    await expect(words).to_have_text(re.compile("^Climate: runs since "))
    redis_server.kill()
    await expect(run.page.locator("#checks")).to_have_class("checks stale")
    redis_server.start("--notify-keyspace-events", "Kghx")
    run.write(
        {"started:build_climate": began + 2, "timestamps:build_climate": began + 1, "locked:climate.nodb": "true"}
    )
    await expect(words).to_have_text(
        re.compile(r": ran \S+ to \S+ or longer, (ticked at \S+, )?runs since \S+( or earlier)?$")
    )


async def test_a_browser_with_another_clock_keeps_what_it_saw(relay, redis_server, new_tab):
    process, tab = relay(env={"REDIS_URL": redis_server.url}), await new_tab()
    await tab.page.add_init_script("(now => { Date.now = () => now() + 3600000; })(Date.now.bind(Date))")
    run = await Watched(tab, process, redis_server.url).open()
    run.write({"locked:climate.nodb": "true"})
    words = run.page.locator("#timeline-text li", has_text="Climate")
    await expect(words).to_have_text(re.compile(r"^Climate: runs since \S+$"))
    hour = "() => new Date(Date.now()).toTimeString().slice(0, 3)"
    before = await run.page.evaluate(hour)
    redis_server.kill()  # the relay says since when, by its own clock
    await expect(run.page.locator("#checks")).to_have_class("checks stale")
    after = await run.page.evaluate(hour)
    await expect(run.page.locator("#progress")).to_have_text(
        re.compile(rf"^0 done, 1 running, as of ({before}|{after})\d\d:\d\d$")
    )
    redis_server.start("--notify-keyspace-events", "Kghx")
    await expect(words).to_have_text(re.compile(r"^Climate: ran \S+ to \S+ or longer$"))


async def test_a_page_that_opens_while_redis_is_away_has_seen_nothing(relay, redis_server, watch):
    run = await watch(process=relay(env={"REDIS_URL": redis_server.url}), url=redis_server.url)
    run.write({"locked:climate.nodb": "true"})
    await expect(run.item("climate")).to_have_attribute("data-state", "running")
    redis_server.kill()
    await expect(run.page.locator("#checks")).to_have_class("checks stale")
    late = await watch(process=run.relay, url=redis_server.url, away=True)
    await expect(late.item("climate")).to_have_attribute("data-state", "running")
    await expect(late.page.locator("#timeline-note")).to_have_text("nothing seen yet")
    redis_server.start("--notify-keyspace-events", "Kghx")
    late.write({"locked:climate.nodb": "true"})
    words = late.page.locator("#timeline-text li", has_text="Climate")
    await expect(words).to_have_text(re.compile(r"^Climate: runs since \d\d:\d\d:\d\d or earlier$"))


async def test_what_runs_keeps_its_bar_however_much_comes_after_it(standing, redis_url, new_tab):
    tab, sockets = await new_tab(), []
    await tab.page.route_web_socket(
        re.compile(f"/{RUN}[?]v=3"), lambda ws: sockets.append((ws, ws.connect_to_server()))
    )
    run = await Watched(tab, standing, redis_url).open()
    run.write({"locked:climate.nodb": "true"})
    words = run.page.locator("#timeline-text li")
    await expect(words.filter(has_text="Climate")).to_have_text(re.compile(r"^Climate: runs since \S+$"))
    ((socket_of_page, _),) = sockets
    names = await run.page.locator("li[data-item]").evaluate_all("all => all.map(item => item.dataset.item)")
    for n in range(60):
        locks = dict.fromkeys(names, n % 2 == 0) | {"climate": True}
        socket_of_page.send(json.dumps({"type": "preflight", "checklist": {}, "lock_statuses": locks}))
        # More would be drawn as one.
        await run.holds(
            f"(document.querySelectorAll('li[data-state=running]').length > 1) === {str(n % 2 == 0).lower()}"
        )
    await expect(run.page.locator("#picture rect.bar")).to_have_count(200)
    await expect(words.filter(has_text="Climate")).to_have_text(re.compile(r"^Climate: runs since \S+$"))


@pytest.mark.parametrize("began", ["10", "-62135596800", "1763942400000", "9" * 18])
async def test_a_beginning_that_cannot_be_is_none(watch, redis_url, began):
    with redis.Redis.from_url(redis_url) as worker:
        worker.hset(RUN, mapping={"started:build_climate": began, "locked:climate.nodb": "true"})
    run = await watch()
    words = run.page.locator("#timeline-text li", has_text="Climate")
    await expect(words).to_have_text(re.compile(r"^Climate: runs since \d\d:\d\d:\d\d or earlier$"))
    await expect(run.page.locator("#picture line.axis").nth(1)).to_be_attached()
    assert await run.page.locator("#picture line.axis").count() < 30


async def test_the_lines_of_the_timeline_are_the_readers_hours_and_days(standing, redis_url, new_tab):
    """Three and a half hours from UTC, where no hour of the one is an hour of the other."""
    tab = await new_tab(timezone_id="America/St_Johns")
    await tab.page.clock.install(time="2026-07-14T12:10:00Z")
    run = await Watched(tab, standing, redis_url).open()
    run.write({"locked:climate.nodb": "true"})
    await expect(run.item("climate")).to_have_attribute("data-state", "running")
    for hours, lines in ((6, r"\d\d:00"), (66, r"Jul 1[4-7]|12:00"), (720, "Jul|Aug")):
        await tab.page.clock.fast_forward(hours * 3_600_000)
        await run.live()
        texts = run.page.locator("#picture line.axis + text")
        await expect(texts.filter(has_text=re.compile(f"^({lines})")).nth(1)).to_be_attached()
        assert [text for text in await texts.all_text_contents() if not re.match(lines, text)] == []


async def test_a_lock_may_have_any_name(watch):
    run = await watch()
    # Names that every object of JavaScript has.
    run.write({"locked:constructor": "true", "locked:__proto__": "true", "locked:toString.nodb": "true"} | BUILT)
    await expect(run.page.locator("#progress")).to_have_text("3 done")
    await expect(run.page.locator("#locks")).to_have_text("Locked: __proto__, constructor, toString")
    run.write({"locked:  ": "true"})
    await expect(run.page.locator("#locks")).to_have_text(re.compile('^Locked: "  ", __proto__'))
    run.write({"locked:a, b": "true"})
    await expect(run.page.locator("#locks")).to_have_text(re.compile('^Locked: "  ", __proto__, "a, b", constructor'))
    run.write({"locked:a, b": "false"})
    run.write({"locked:  ": "false"})
    run.write({f"locked:{'x' * 3000}": "true"} | {f"locked:a{n}": "true" for n in range(10)})
    await expect(run.page.locator("#locks")).to_have_text(re.compile("^Locked: __proto__, a0, .* and 6 more$"))
    run.write({f"locked:a{n}": "false" for n in range(10)})
    await expect(run.page.locator("#locks")).to_have_text(re.compile("constructor, toString, x{40}…$"))
    assert run.tab.complaints == []


async def test_what_was_let_go_and_is_not_done_is_not_called_done(watch):
    run = await watch()
    run.write({"locked:landuse.nodb": "true"})
    await expect(run.item("landuse")).to_have_attribute("data-state", "running")
    run.write({"locked:landuse.nodb": "false"})
    await expect(run.item("landuse")).to_have_attribute("data-state", "open")
    await run.page.evaluate("(now => { Date.now = () => now() + 5000; })(Date.now.bind(Date))")
    await expect(run.page.locator("#preflight-badge .age")).to_have_text(re.compile(r"([5-9]|\d\d) s ago"))
    await expect(run.page).to_have_title(re.compile(f"^● {RUN} "))


async def test_while_nobody_answers_there_is_no_connection(relay, watch):
    process = relay(env={"RELAY_DRAIN": "100ms"})
    run = await watch(process=process)
    assert await asyncio.to_thread(process.stop) == 0
    mute = [socket.create_server(("127.0.0.1", port)) for port in process.ports.values()]  # nobody accepts
    await expect(run.page.locator("#status-badge")).to_have_attribute("data-state", "connecting")
    await expect(run.page.locator("#preflight-badge")).to_have_attribute("data-state", "connecting")
    await expect(run.page).to_have_title(re.compile("^✗ no connection: "))
    for server in mute:
        server.close()


async def test_a_service_that_lets_nobody_in_is_named(relay, new_tab):
    process = relay(env={"RELAY_STATUS_PUBLIC_URL": "ws://127.0.0.1:1"})
    page = (await new_tab()).page
    await page.goto(f"http://127.0.0.1:{process.ports['preflight']}/run/{RUN}{FEW}")
    await expect(page.locator("#preflight-badge")).to_have_attribute("data-state", "live")
    await expect(page.locator("#notice")).to_contain_text("Not connected to the log: no answer, or the relay does not")
    await expect(page).to_have_title(re.compile("^○ reconnecting: "))
    await expect(page.locator("#empty")).to_contain_text("Not connected: what is published now does not come here.")


async def test_without_a_channel_no_log_is_called_connected(standing, new_tab):
    page = (await new_tab()).page
    await page.goto(f"http://127.0.0.1:{standing.ports['status']}/run/{RUN}?channels=%3Cb%3E")
    await expect(page.locator("#preflight-badge")).to_have_attribute("data-state", "live")
    await expect(page.locator("#status-badge")).to_have_text("Log without a channel")
    await expect(page.locator("#status-badge")).to_have_attribute("data-state", "none")


async def test_to_watch_the_same_run_again_changes_nothing(watch):
    run = await watch()
    run.publish("wepp", "a line")
    await expect(run.rows).to_have_count(1)
    await run.page.locator("#run").press("Enter")
    await expect(run.log).to_be_focused()
    await expect(run.rows).to_have_count(1)


async def test_it_comes_back_after_a_restart_of_the_relay(relay, watch):
    first = relay(env={"RELAY_DRAIN": "100ms"})
    run = await watch(process=first)
    run.publish("wepp", "before")
    run.write(BUILT)
    await expect(run.rows).to_have_count(1)
    assert await asyncio.to_thread(first.stop) == 0
    await expect(run.page.locator("#status-badge")).to_have_attribute("data-state", "waiting")
    await expect(run.page.locator("#status-badge")).to_contain_text(re.compile(r"Log reconnecting.*back in \d+ s"))
    await expect(run.page).to_have_title(re.compile("^✗ no connection: "))
    await expect(run.page.locator("#checks")).to_have_class("checks stale")
    await expect(run.page.locator("#notice")).to_contain_text("Lines may be missing from here on")
    listen = {f"{name.upper()}_LISTEN_ADDR": f"127.0.0.1:{port}" for name, port in first.ports.items()}
    second = relay(env=listen, wait=None)
    second.ports = first.ports
    await asyncio.to_thread(second.wait, "ready")
    await run.live()
    await expect(run.page.locator("#notice")).to_contain_text("The log is whole again since")
    run.publish("wepp", "after")
    await expect(run.page.locator(".said").last).to_have_text("after")
    first, *gaps, _last = await run.page.locator(".row:not([hidden]) .said").all_text_contents()
    assert (first, gaps[0]) == ("before", "Lines may be missing here: the connection was lost (2 channels).")
    assert len(gaps) <= 2  # a channel that came back before the relay had its Redis says that too
    await expect(run.page.locator("#checks")).to_have_class("checks")
    await run.page.locator("#show-gap").click()
    await expect(run.page.locator(".row.found .said")).to_have_text(gaps[-1])
    await run.page.locator("#seen-gap").click()
    await expect(run.page.locator("#notice")).to_be_hidden()


async def test_what_a_redis_outage_hid_is_said(relay, redis_server, watch):
    run = await watch(process=relay(env={"REDIS_URL": redis_server.url}), url=redis_server.url)
    run.publish("wepp", "before")
    await expect(run.rows).to_have_count(1)
    redis_server.kill()
    await expect(run.page.locator("#status-badge")).to_contain_text("Log connected, lines may be missing")
    await expect(run.page.locator("#preflight-badge")).to_contain_text("Checklist connected, may be out of date")
    late = await watch(process=run.relay, url=redis_server.url, away=True)
    await expect(late.page.locator("#progress")).to_have_text("0 done, as of earlier")
    late = await watch("/run/other-run?channels=wepp", process=run.relay, url=redis_server.url, away=True)
    await expect(late.page.locator("#progress")).to_have_text("not known yet")
    await expect(late.page.locator("#empty")).to_contain_text("Not connected: what is published now does not")
    await expect(run.page.locator("#checks")).to_have_class("checks stale")
    await expect(run.page.locator(".row.gap:visible")).to_have_count(1)
    redis_server.start("--notify-keyspace-events", "Kghx")
    await expect(run.page.locator("#status-badge [role=status]")).to_have_text("Log connected")
    await expect(run.page.locator("#checks")).to_have_class("checks")
    await expect(run.page.locator("#notice")).to_contain_text("Lines may be missing: 1 gap.")
    run.publish("wepp", "after")
    gap = "Lines may be missing here: the relay lost Redis (2 channels)."
    shown = run.page.locator(".row:not([hidden]) .said")
    await expect(shown).to_have_text(["before", gap, "after"])
    # Each channel has its own hole, whichever of the others are shown.
    await run.page.locator(".chip[data-channel=wepp]").click()
    await expect(shown).to_have_text(["Lines may be missing here: the relay lost Redis."])
    assert run.tab.complaints == []


async def test_a_line_too_large_is_counted(watch):
    run = await watch()
    run.publish("wepp", "x" * (1 << 20) + "y" * 100, "next")
    await expect(run.page.locator("#notice")).to_contain_text("1 line larger than the relay forwards was left out.")
    await expect(run.page.locator(".said").last).to_have_text("next")
    run.publish("soils", "x" * (1 << 20) + "y" * 100, "next of soils")
    # The second hole is where it is, behind a line, and no hole is a line.
    hole = "Lines may be missing here: a message was too large."
    await expect(run.page.locator(".row:not([hidden]) .said")).to_have_text([hole, "next", hole, "next of soils"])
    await expect(run.page.locator(".row:not([hidden]) .from")).to_have_text(["wepp", "wepp", "soils", "soils"])
    await expect(run.page.locator("#count")).to_have_text("2 lines")


async def test_hostile_lines_are_shown_and_do_nothing(watch):
    run = await watch()
    lines = [
        "<script>document.title='owned'</script><img src=x onerror=alert(1)>",
        "\x1b]0;title\x07\x1b[2J\x00\x08",
        "abc \u202egnp.exe\u2066\u200f",
        "one\u2028two",
        "x" * 1_000_000,
        'rq:<b> EXCEPTION <img src=x onerror="alert(1)">\u202e',
    ]
    run.publish("wepp", *lines)
    await expect(run.rows).to_have_count(len(lines))
    texts = await run.page.locator(".said").all_text_contents()
    assert texts[:3] == [lines[0], "␛]0;title␇␛[2J␀␈", "abc ‹RLO›gnp.exe‹LRI›‹RLM›"]
    assert len(texts[4]) < 5000
    assert re.search(r"… \d+,\d+ more characters, in the download$", texts[4])
    await expect(run.page.locator("#exceptions b")).to_have_text('<img src=x onerror="alert(1)">‹RLO›')
    assert await run.page.locator("main script, main img").count() == 0
    assert RUN in await run.page.title()
    assert await run.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert run.tab.complaints == []


async def test_ten_thousand_lines_do_not_stop_the_tab(watch):
    """By the time of the processor: that of the clock is also what this machine stood still for."""
    run = await watch()
    tools = await run.page.context.new_cdp_session(run.page)
    await tools.send("Performance.enable", {"timeDomain": "threadTicks"})
    looks = [await measures(tools)]
    for part in range(4):  # 200 kB each; with more waiting the relay takes the page for too slow
        burst = range(2500 * part, 2500 * part + 2500)
        run.publish("wepp", *(f"hillslope {n} of 10000 completed in 1.23 s" for n in burst))
        shown = asyncio.create_task(run.holds(f"chips.textContent.startsWith('wepp{burst.stop:,}')"))
        while not shown.done():
            looks.append(await measures(tools))
            await asyncio.sleep(0.02)
        await shown
    await run.holds("log.lastElementChild?.lastElementChild.textContent.includes('hillslope 9999 of')")
    looks.append(await measures(tools))
    assert 3000 <= await run.rows.count() <= 3050
    await run.holds("log.scrollHeight - log.scrollTop - log.clientHeight < 2")
    longest = max(after["TaskDuration"] - before["TaskDuration"] for before, after in itertools.pairwise(looks))
    assert longest < 1.0, f"{longest:.2f} s between two looks, so a frame took as long"
    layouts = (await measures(tools))["LayoutCount"] - looks[0]["LayoutCount"]
    assert layouts < 400, "lines are drawn one by one, and not once per frame"


async def measures(tools):
    """What the page's one thread did until now, in seconds of the processor and in counts."""
    return {one["name"]: one["value"] for one in (await tools.send("Performance.getMetrics"))["metrics"]}


async def test_it_keeps_a_bounded_number_of_lines(watch):
    run = await watch()
    for part in range(1, 41):
        # More at once, and the relay takes the page for too slow.
        run.publish("wepp", *("x" * 19_000 for _ in range(10)))
        await expect(run.page.locator(".chip").first).to_have_text(f"wepp{10 * part}")
    await expect(run.page.locator("#count")).to_have_text("210 lines")  # four million characters


async def test_nothing_scrolls_sideways(watch):
    long = "batch;;a-name-that-goes-on-and-on-and-on;;" + "and-on-" * 15
    run = await watch(f"/run/{long}")
    run.publish("wepp", "unbroken" * 100, f"{JOB} EXCEPTION {'f' * 300}", run=long)
    run.publish("subcatchment_delineation", "a line", run=long)
    await expect(run.rows).to_have_count(3)
    wide = """[...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > innerWidth + 1
        && !e.closest(".unseen")).map(e => e.id || e.className)"""
    for width in (1280, 768, 360, 320):
        await run.page.set_viewport_size({"width": width, "height": 740})
        assert await run.page.evaluate(wide) == [], f"wider than {width}"
        assert await run.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert await run.page.evaluate("log.clientHeight > 100 && log.scrollWidth <= log.clientWidth")
    await run.page.goto(run.address)
    assert await run.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


async def test_many_channels_leave_room_for_the_log(watch):
    names = [f"channel_{n}" for n in range(30)]
    run = await watch(f"/run/{RUN}?channels={','.join(names)}", viewport={"width": 768, "height": 1024})
    for name in names:
        run.publish(name, "a line")
    await expect(run.page.locator(".chip:visible")).to_have_count(30)
    assert await run.page.locator(".chips").evaluate("e => e.clientHeight") < 120
    await run.page.locator("#channel").fill("-<")
    await run.page.locator("#channel").press("Enter")
    await expect(run.page.locator("#wrong-channel")).to_be_in_viewport()


async def test_buttons_have_an_edge_where_the_reader_chooses_the_colours(watch):
    run = await watch("/", forced_colors="active")
    assert await run.page.locator(".go").evaluate("e => getComputedStyle(e).borderStyle") == "solid"


async def violations(page):
    """What axe-core finds: names, roles, contrast, headings, ids."""
    await page.evaluate(AXE_SCRIPT)
    found = (await page.evaluate("axe.run()"))["violations"]
    nodes = [(one["id"], node["html"][:200], node["failureSummary"]) for one in found for node in one["nodes"]]
    return "\n".join(map(" ".join, nodes))


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 360)])
async def test_it_can_be_read_and_worked_by_everybody(watch, scheme, width):
    run = await watch(color_scheme=scheme, viewport={"width": width, "height": 860}, reduced_motion="reduce")
    colours = [f"\x1b[{code}m{code}\x1b[0m" for code in (*range(30, 38), *range(90, 98))]
    run.publish("wepp", *colours, "ERROR a", "WARNING b", "DEBUG c", f"{JOB} STARTED f(x)", f"{JOB} COMPLETED f(x)")
    run.publish("wepp", f"{JOB} TRIGGER   wepp DONE", f"{JOB} EXCEPTION f(x)", "Traceback", "x" * 5000)
    run.write(BUILT | INPUTS | {"timestamps:run_wepp": 70})
    await expect(run.page.locator("#progress")).to_have_text("7 done")
    run.write({"locked:climate": "true", "timestamps:build_landuse": 80, "locked:odd": "true"})
    await expect(run.item("climate")).to_have_attribute("data-state", "running")
    run.publish("soils", "x" * (1 << 20) + "y" * 100, "last")
    await expect(run.page.locator("#notice")).to_be_visible()
    await expect(run.page.locator("#exceptions")).to_be_visible()
    await run.page.locator("#filter").fill("o")
    await run.page.locator(".chip[data-channel=soils]").press("Enter")
    await run.page.locator("#pause").press("Enter")
    assert await violations(run.page) == ""
    await run.page.goto(f"{run.address}/?run=%3C")
    await expect(run.page.locator("#wrong")).to_be_visible()
    assert await violations(run.page) == ""


async def test_all_of_it_is_reached_by_the_keyboard_and_seen_to_be(watch):
    run = await watch()
    run.publish("wepp", *(f"line {n}" for n in range(100)), f"{JOB} EXCEPTION f(x)")
    await expect(run.page.locator("#exceptions")).to_be_visible()
    await run.page.locator("#run").focus()
    reached = {}
    focused = """(({ id, textContent }, { outlineStyle: style, outlineWidth: width }) =>
        [id || textContent, style + width])(document.activeElement, getComputedStyle(document.activeElement))"""
    while not await run.page.evaluate("document.activeElement === document.body"):
        name, outline = await run.page.evaluate(focused)
        reached[name] = outline
        await run.page.keyboard.press("Tab")
    assert {name: outline for name, outline in reached.items() if outline != "solid2px"} == {}  # the focus is seen
    tools = {"filter", "pause", "copy", "download", "clear", "wepp101", "channel", "log"}
    assert {"Watch", "checks", *tools, "dismiss-all", "Show line", "Dismiss", "timeline-title"} <= reached.keys()
