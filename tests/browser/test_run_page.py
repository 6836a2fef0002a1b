"""WEPPcloud's browser scripts, re-created in fixtures/, before a real relay (contract, section 6)."""

import asyncio

import pytest
import redis
from playwright.async_api import expect

pytestmark = [pytest.mark.needs("chromium"), pytest.mark.asyncio(loop_scope="module")]

RUN = "batch;;upper-valley;;wa-12.3"
ENCODED = "batch%3B%3Bupper-valley%3B%3Bwa-12.3"
PING, PONG, INIT = '{"type":"ping"}', '{"type":"pong"}', '{"type":"init"}'
# The dump in the project's description, and what it must tick.
DUMP = {
    "attrs:loaded": "true",
    "attrs:has_sbs": "false",
    "timestamps:landuse_map": 1712535018,
    "timestamps:build_channels": 1712028840,
    "timestamps:set_outlet": 1712515206,
    "timestamps:abstract_watershed": 1712515226,
    "timestamps:build_landuse": 1712535023,
    "timestamps:build_soils": 1712535083,
    "timestamps:build_climate": 1712515667,
    "timestamps:run_wepp": 1714168234,
}
NOT_RUN = {name: value for name, value in DUMP.items() if name != "timestamps:run_wepp"}
BUILT = {"channels", "outlet", "subcatchments", "landuse", "soils", "climate"}
FAST = {"STATUS_PING_INTERVAL": "300ms", "PREFLIGHT_PING_INTERVAL": "300ms"}
STRICT = {**FAST, "STATUS_PONG_TIMEOUT": "1500ms", "PREFLIGHT_PONG_TIMEOUT": "1500ms"}
ROUNDS = 3  # of which one must go well: in each this machine may stand still for as long as a client may be silent


class Worker:
    """What a model run writes."""

    def __init__(self, url):
        self.url = url

    def publish(self, channel, *lines):
        """Publish the lines on this channel of the run -> receivers of the last one."""
        with redis.Redis.from_url(f"{self.url}/2") as connection, connection.pipeline(transaction=False) as burst:
            for line in lines:
                burst.publish(f"{RUN}:{channel}", line)
            return burst.execute()[-1]

    def write(self, fields):
        with redis.Redis.from_url(f"{self.url}/0") as connection:
            connection.hset(RUN, mapping=fields)


@pytest.fixture
def worker(redis_url):
    return Worker(redis_url)


class RunPage:
    """The page of a run with all its clients."""

    def __init__(self, tab):
        self.tab = tab
        self.page = tab.page
        self.log = tab.page.locator("#wepp pre")
        self.line = tab.page.locator("#climate output")
        self.command = tab.page.locator("#command")

    async def boxes(self, expected):
        """Wait until these are ticked, and no others."""
        ticked = "[...document.querySelectorAll('[data-task]:checked')].map(box => box.dataset.task).sort().join()"
        await self.page.wait_for_function(f"expected => {ticked} === expected", arg=",".join(sorted(expected)))

    async def events(self, expected):
        """Wait until exactly these have happened, in this order."""
        await self.page.wait_for_function("expected => events.join() === expected", arg=",".join(expected))

    async def live(self, since=0):
        """Wait until all four clients, the first `since` sockets aside, have one open that has answered a ping."""

        def answered():
            sockets = [socket for socket in self.tab.all_sockets[since:] if socket.open and PONG in socket.sent]
            return len({socket.url for socket in sockets}) == 4

        await self.tab.until(answered, "four sockets in talk")


@pytest.fixture
def open_run(front, new_tab):
    """Opens the page of the run before a relay, with all its clients in talk."""

    async def open_page(relay):
        page = RunPage(await new_tab())
        await page.page.goto(f"http://{(await front(relay)).host}/weppcloud/runs/{ENCODED}/disturbed/")
        await page.live()
        return page

    return open_page


async def test_the_log_panel_shows_every_line_and_hears_the_last_trigger(relay, open_run, worker):
    run = await open_run(relay())
    odd = ['a "b" \\ c', "<b>&amp;</b>", "two\nlines", "\u2028", "\N{ROCKET}", '{"type":"hangup"}', "rq:1 EXCEPTION"]
    burst = [f"hillslope {number}" for number in range(500)]
    last = ["rq:7f COMPLETED run_wepp_rq(batch)", "rq:7f TRIGGER   wepp WEPP_RUN_TASK_COMPLETED"]
    worker.publish("wepp", *odd, *burst, "rq:7f TRIGGER   climate NOT_OURS", *last)
    await run.events(["WEPP_RUN_TASK_COMPLETED"])
    lines = [*odd, *burst, "rq:7f TRIGGER   climate NOT_OURS", *last]
    assert await run.log.text_content() == "\n".join(lines) + "\n"
    assert run.tab.complaints == []


async def test_each_script_is_served_at_the_address_it_writes(relay, open_run):
    run = await open_run(relay())
    for end in (f"/status/{ENCODED}:wepp", f"/status/{RUN}:climate", f"/status/{ENCODED}:command", f"/preflight/{RUN}"):
        [socket] = run.tab.sockets(end)
        assert "/weppcloud-microservices/" in socket.url
        assert socket.sent[:2] == [INIT, PONG]
        assert PING in socket.received
    assert run.tab.complaints == []


async def test_the_form_shows_the_newest_line_and_fires_its_triggers(relay, open_run, worker):
    run = await open_run(relay())
    worker.publish("climate", "Building climates", "Traceback\nof two lines")
    await expect(run.line).to_have_text("Traceback...")
    worker.publish("climate", "x" * 150, "rq:9 TRIGGER   climate CLIMATE_BUILD_TASK_COMPLETED")
    await run.events(["CLIMATE_BUILD_TASK_COMPLETED"])
    assert await run.line.text_content() == "x" * 100 + "..."
    assert await run.log.text_content() == ""
    assert run.tab.complaints == []


async def test_the_command_bar_shows_what_a_command_answers(relay, open_run, worker):
    run = await open_run(relay())
    assert worker.publish("command", "  Project log level set to debug  ") == 1
    await expect(run.command).to_have_text("Project log level set to debug")
    assert run.tab.complaints == []


async def test_the_checklist_ticks_its_boxes_and_shows_its_locks(relay, open_run, worker):
    run = await open_run(relay())
    await run.boxes(set())
    worker.write(DUMP)
    await run.boxes(BUILT | {"wepp"})
    await run.events(["wepp finished"])
    worker.write({"locked:climate.nodb": "true", "locked:wepp": "true", "attrs:has_sbs": "true"})
    await run.boxes(BUILT | {"wepp", "sbs_map"})
    assert await run.page.locator("[data-lock]:visible").count() == 2
    await expect(run.page.locator("[data-lock='climate.nodb']")).to_be_visible()
    worker.write({"locked:climate.nodb": "false", "locked:wepp": "false", "timestamps:build_landuse": 1714168300})
    await run.boxes({"sbs_map", "channels", "outlet", "subcatchments", "landuse", "climate"})
    await expect(run.page.locator("[data-lock]:visible")).to_have_count(0)
    assert run.tab.complaints == []


async def turn(page, *, hidden):
    """Headless Chromium hides no tab, so the page is told so."""
    await page.evaluate(
        """hidden => {
            Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )


async def test_the_checklist_closes_while_hidden_and_is_right_when_shown_again(relay, open_run, worker):
    run = await open_run(relay())
    [socket] = run.tab.sockets(f"/preflight/{RUN}")
    await turn(run.page, hidden=True)
    await run.tab.until(lambda: not socket.open, "closed")
    worker.write(NOT_RUN)
    await turn(run.page, hidden=False)
    await run.boxes(BUILT)
    assert [socket.open for socket in run.tab.sockets(f"/preflight/{RUN}")] == [False, True]
    # A close without a code is answered with the same or with 1000: either is clean, and 1006 is not.
    [code] = await run.page.evaluate("closings")
    assert code in (1000, 1005)
    assert run.tab.complaints == []


async def test_a_second_socket_of_the_same_page_silences_neither(relay, open_run, worker):
    """The script answers every ping on its newest socket: the older one lives by its protocol pongs alone."""
    process = relay(env=STRICT)
    for _ in range(ROUNDS):
        run = await open_run(process)
        await turn(run.page, hidden=False)
        await run.tab.until(lambda run=run: len(run.tab.sockets(f"/preflight/{RUN}")) >= 2, "a second socket")
        older, newer, *_ = run.tab.sockets(f"/preflight/{RUN}")
        await run.tab.until(lambda newer=newer: PONG in newer.sent or not newer.open, "answered on the newer one")
        said = len(older.sent)
        pinged = older.received.count(PING) + 10
        await run.tab.until(
            lambda older=older, pinged=pinged: older.received.count(PING) >= pinged or not older.open,
            "pinged for twice the timeout",
        )
        if older.open and newer.open:
            break
    assert len(older.sent) == said
    worker.write(NOT_RUN)
    await run.boxes(BUILT)
    assert [sum('"channels":true' in frame for frame in socket.received) for socket in (older, newer)] == [1, 1]
    assert older.open
    assert newer.open
    # The script's own flaw: a ping on the older socket while the newer one still connects has nowhere to be answered.
    assert [complaint for complaint in run.tab.complaints if "Still in CONNECTING state" not in complaint] == []


def is_closed_or_awake(socket):
    return not socket.open or any("awake again" in frame or '"channels":true' in frame for frame in socket.received)


async def test_a_tab_whose_script_stands_still_keeps_its_sockets(relay, open_run, worker):
    """The browser answers the protocol's pings below its script, here for twice the timeout."""
    process = relay(env=STRICT)
    for _ in range(ROUNDS):
        run = await open_run(process)
        await run.page.evaluate("const until = Date.now() + 3000; while (Date.now() < until);")
        for channel in ("wepp", "climate", "command"):
            worker.publish(channel, "awake again")
        worker.write({"timestamps:build_channels": 10})
        await run.tab.until(lambda run=run: all(map(is_closed_or_awake, run.tab.all_sockets)), "awake again")
        if [socket.open for socket in run.tab.all_sockets] == [True] * 4:
            break
    await expect(run.log).to_have_text("awake again\n")
    assert await run.page.evaluate("closings") == []
    assert [socket.open for socket in run.tab.all_sockets] == [True] * 4
    assert run.tab.complaints == []


async def test_all_clients_come_back_after_a_restart_of_the_relay(relay, open_run, worker):
    worker.write(NOT_RUN)
    first = relay(env={**FAST, "RELAY_DRAIN": "200ms"})
    run = await open_run(first)
    worker.publish("wepp", "before")
    await expect(run.log).to_have_text("before\n")
    assert await asyncio.to_thread(first.stop) == 0
    await run.tab.until(lambda: not any(socket.open for socket in run.tab.all_sockets), "all told")
    await run.page.wait_for_function("closings.length === 4")  # the page is told behind the tools
    assert await run.page.evaluate("closings") == [1012] * 4
    assert not [frame for socket in run.tab.all_sockets for frame in socket.received if "hangup" in frame]
    worker.write({"timestamps:run_wepp": DUMP["timestamps:run_wepp"]})

    listen = {f"{name.upper()}_LISTEN_ADDR": f"127.0.0.1:{port}" for name, port in first.ports.items()}
    second = relay(env={**FAST, **listen}, wait=None)
    second.ports = first.ports
    await asyncio.to_thread(second.wait, "ready")
    await run.live(since=4)
    await run.boxes(BUILT | {"wepp"})
    await run.events(["wepp finished"])
    worker.publish("wepp", "after")
    worker.publish("climate", "after")
    worker.publish("command", "after")
    await expect(run.log).to_have_text("before\nafter\n")
    await expect(run.line).to_have_text("after")
    await expect(run.command).to_have_text("after")
    # A browser says so itself where a handshake meets a closed port; the scripts say nothing.
    assert [complaint for complaint in run.tab.complaints if not complaint.startswith("WebSocket connection to")] == []


async def test_no_client_notices_a_killed_redis(relay, redis_server, open_run):
    worker = Worker(redis_server.url)
    worker.write(NOT_RUN)
    process = relay(env={**FAST, "REDIS_URL": redis_server.url})
    run = await open_run(process)
    await run.boxes(BUILT)
    [list_socket] = run.tab.sockets(f"/preflight/{RUN}")

    def is_list(frame):
        return '"preflight"' in frame

    redis_server.kill()
    pinged = list_socket.received.count(PING)
    await run.tab.until(lambda: list_socket.received.count(PING) >= pinged + 5, "pinged on")
    assert not process.ready("status")
    assert not process.ready("preflight")
    assert len([frame for frame in list_socket.received if is_list(frame)]) == 1
    await run.boxes(BUILT)

    redis_server.start("--notify-keyspace-events", "Kghx")
    await asyncio.to_thread(process.wait, "ready")
    await run.boxes(set())  # the hashes went with the Redis
    worker.write(DUMP)
    await run.boxes(BUILT | {"wepp"})
    await run.events(["wepp finished"])
    for channel in ("wepp", "climate", "command"):
        assert worker.publish(channel, "first after it") == 1
    await expect(run.log).to_have_text("first after it\n")
    await expect(run.line).to_have_text("first after it")
    await expect(run.command).to_have_text("first after it")
    assert [socket.open for socket in run.tab.all_sockets] == [True] * 4
    assert run.tab.complaints == []


async def test_the_diagnostics_page_passes_every_check(relay, front, new_tab):
    host = (await front(relay())).host
    tab = await new_tab()
    await tab.page.clock.install()
    await tab.page.goto(f"http://{host}/diagnostics.html")
    await expect(tab.page.locator("#status-health")).to_have_text("pass")
    await expect(tab.page.locator("#preflight-health")).to_have_text("pass")
    await tab.until(lambda: len(tab.all_sockets) == 2 and all(PONG in s.sent for s in tab.all_sockets), "in talk")
    [list_socket] = [socket for socket in tab.all_sockets if "/preflight/" in socket.url]
    await tab.until(lambda: any('"preflight"' in frame for frame in list_socket.received), "a snapshot")
    await expect(tab.page.locator("#status-socket")).to_be_empty()
    await tab.page.clock.fast_forward(20_000)
    await expect(tab.page.locator("#status-socket")).to_have_text("pass")
    await expect(tab.page.locator("#preflight-socket")).to_have_text("pass")
    await tab.until(lambda: not any(socket.open for socket in tab.all_sockets), "closed by the page")
    assert tab.complaints == []
