"""The module at `/relay.js`: its streams before real relays, and their rules on a clock and websockets of the test."""

import asyncio
import re

import pytest
import pytest_asyncio
import redis

from relay.tokens import Keys

pytestmark = [pytest.mark.needs("chromium"), pytest.mark.asyncio(loop_scope="module")]

SECRET = "s3cr3t-" + 32 * "x"
NOTE = """
    globalThis.events = [];
    globalThis.note = stream => {
        for (const type of ["state", "gap", "ready", "lines", "trigger", "exception", "times", "snapshot"])
            stream.addEventListener(type, ({ detail }) => events.push({ ...detail, type }));
        return globalThis.stream = stream;
    };
    globalThis.states = () => events.filter(event => event.type === "state").map(event => event.state).join();
    globalThis.names = { run: "some-run", channel: "wepp" };
    globalThis.log = (options = {}) => { note(new relay.StatusStream({ ...names, ...options })); };
    globalThis.hide = hidden => {
        Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
    };
"""
# Websockets that do what the test says: `last().open()`, `say(frame)`, `end(code, reason)`; and no luck in waiting.
FAKE = """
    Math.random = () => 1;
    globalThis.sockets = [];
    globalThis.last = () => sockets.at(-1);
    globalThis.Fake = class {
        constructor(url) { this.url = url; this.sent = []; sockets.push(this); }
        send(text) { this.sent.push(text); }
        close() { this.closed = true; }
        open() { this.onopen(); }
        say(frame) { this.onmessage({ data: JSON.stringify(frame) }); }
        end(code, reason = "") { this.onclose({ code, reason }); }
    };
    globalThis.options = { url: "ws://relay", WebSocket: Fake };
    globalThis.live = (more = {}) => { log({ ...options, ...more }); queueMicrotask(() => last().open()); };
    globalThis.say = (...texts) => texts.forEach(data => last().say({ type: "status", data }));
"""


class Script:
    """A page with the module, in which the test speaks."""

    def __init__(self, tab):
        self.tab = tab
        self.evaluate = tab.page.evaluate
        self.clock = tab.page.clock

    async def until(self, condition, seconds=20.0):
        """Wait until this holds; what was noted is shown where it does not come to hold."""
        try:
            await self.tab.page.wait_for_function(condition, timeout=seconds * 1000, polling=20)
        except Exception as error:
            raise AssertionError(
                f"not {condition}: {await self.evaluate('JSON.stringify(events)')} {self.tab.complaints}"
            ) from error

    async def noted(self, *types):
        """The events of these types, in order."""
        return await self.evaluate("types => events.filter(event => types.includes(event.type))", list(types))

    async def later(self, milliseconds):
        """So much later by the page's clock."""
        await self.clock.run_for(milliseconds)


@pytest_asyncio.fixture(loop_scope="module")
async def script(embed):
    """Opens a page before a relay whose streams are noted."""

    async def open_page(relay):
        return Script(await embed(relay, script=NOTE))

    return open_page


@pytest_asyncio.fixture(loop_scope="module")
async def still(still_tab):
    """A page whose time and websockets are the test's; what the last one has left in it is gone."""
    await still_tab.page.evaluate("globalThis.stream?.stop();" + NOTE + FAKE + "hide(false); null")
    still_tab.all_sockets.clear()
    still_tab.complaints.clear()
    return Script(still_tab)


def publish(url, *lines, channel="some-run:wepp"):
    """-> receivers of the last one."""
    with redis.Redis.from_url(url) as worker, worker.pipeline(transaction=False) as burst:
        for line in lines:
            burst.publish(channel, line)
        return burst.execute()[-1]


# --- what is read --------------------------------------------------------------------------------------------

PARSED = {
    "Building soils": {"kind": "line"},
    "rq:7f STARTED run_wepp_rq(batch)": {"kind": "started", "job": "7f", "rest": "run_wepp_rq(batch)"},
    "rq:7f COMPLETED f(x) -> (1,)": {"kind": "completed", "job": "7f", "rest": "f(x) -> (1,)"},
    "rq:7f EXCEPTION f(x)\nTrace": {"kind": "exception", "job": "7f", "rest": "f(x)\nTrace"},
    "rq:7f TRIGGER   wepp DONE": {"kind": "trigger", "job": "7f", "channel": "wepp", "event": "DONE"},
    "rq:7f TRIGGER   wepp": {"kind": "line"},
    "rq:7f STARTEDX f()": {"kind": "line"},
    " rq:7f STARTED f()": {"kind": "line"},
    "": {"kind": "line"},
}
RED = "var(--relay-ansi-1, #c93c37)"
COLOURED = {
    "plain\n\ttext": [("plain\n\ttext", {})],
    "a\x1b[1;31mb\x1b[0mc": [("a", {}), ("b", {"bold": True, "fg": RED}), ("c", {})],
    "\x1b[4mu\x1b[24;3mi\x1b[m": [("u", {"underline": True}), ("i", {"italic": True})],
    "\x1b[38;5;196;48;2;1;2;3mb": [("b", {"fg": "rgb(255 0 0)", "bg": "rgb(1 2 3)"})],
    "\x1b[38;5;244mx": [("x", {"fg": "rgb(128 128 128)"})],
    "\x1b[38;2;1;2;300mx\x1b[38my\x1b[38;5mz": [("x", {}), ("y", {}), ("z", {})],
    "\x1b[2J\x1b]0;title\x07\0\x7f\x85": [("␛[2J␛]0;title␇␀␡␚", {})],
    "50 %\rdone\r\nnext": [("50 %␍done\nnext", {})],
    "a\u202eb\u2066c\u200fd": [("a‹RLO›b‹LRI›c‹RLM›d", {})],
    "a\u200bb\u00adc\ufeffd\u2063e\U000e0041f\u200dg": [("a‹ZWSP›b‹SHY›c‹BOM›d‹U+2063›e‹U+E0041›f‹ZWJ›g", {})],
    "\U0001f468\u200d\U0001f469 \u2764\ufe0f été 名前": [("\U0001f468\u200d\U0001f469 \u2764\ufe0f été 名前", {})],
    "\x1b[37;41mFAIL\x1b[30;42mPASS\x1b[39mok": [
        ("FAIL", {"fg": "#fff", "bg": "rgb(201 60 55)"}),
        ("PASS", {"fg": "#000", "bg": "rgb(43 138 62)"}),
        ("ok", {"fg": "#000", "bg": "rgb(43 138 62)"}),
    ],
    "\x1b[32;40mok": [("ok", {"fg": "rgb(43 138 62)", "bg": "rgb(0 0 0)"})],
    "\x1b[7mx\x1b[31my\x1b[27mz": [
        ("x", {"fg": "#000", "bg": "rgb(208 212 217)"}),
        ("y", {"fg": "#fff", "bg": "rgb(201 60 55)"}),
        ("z", {"fg": RED}),
    ],
}
# What is given, what <html> says, and the base that follows.
BASES = [
    ("https://wepp.cloud/x/status/", {}, "wss://wepp.cloud/x/status"),
    ("/weppcloud-microservices/status", {}, "ws://{host}/weppcloud-microservices/status"),
    ("", {"statusUrl": "wss://wepp.cloud/status"}, "wss://wepp.cloud/status"),
    ("ws://other:1", {"statusUrl": "wss://wepp.cloud/status"}, "ws://other:1"),
    ("", {"statusUrl": "", "statusPort": "1234"}, "ws://127.0.0.1:1234"),
    ("", {}, "ws://127.0.0.1:9002"),
]


async def test_lines_are_read(still):
    seen = await still.evaluate("texts => texts.map(relay.parseLine)", list(PARSED))
    assert dict(zip(PARSED, seen, strict=True)) == PARSED


async def test_colours_are_kept_and_nothing_acts_unseen(still):
    seen = await still.evaluate("texts => texts.map(relay.ansi)", list(COLOURED))
    pairs = [[(part["text"], part["style"]) for part in parts] for parts in seen]
    assert dict(zip(COLOURED, pairs, strict=True)) == COLOURED


def luminance(colour):
    """Of a CSS colour, as WCAG 2.2 has it."""
    if found := re.search(r"#([0-9a-f]+)", colour):
        digits = found[1] if len(found[1]) == 6 else "".join(2 * digit for digit in found[1])
        levels = bytes.fromhex(digits)
    else:
        levels = [int(level) for level in re.findall(r"\d+", colour)]
    linear = [
        level / 255 / 12.92 if level / 255 <= 0.04045 else ((level / 255 + 0.055) / 1.055) ** 2.4 for level in levels
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


async def test_no_colour_hides_its_text(still):
    named = [*range(30, 38), *range(90, 98)]
    numbered = [f"38;5;{number}" for number in range(256)]
    true = [f"38;2;{level};{level};{level}" for level in (0, 128, 255)] + ["38;2;0;0;255", "38;2;255;255;0"]
    single = await still.evaluate(
        "codes => codes.map(code => relay.ansi(`\x1b[${code}mx`)[0].style)", [*named, *numbered, *true]
    )
    for style in single:
        for ground in ("#f8faf9", "#101615"):
            assert contrast(style["fg"], ground) >= 3, style
    pairs = [f"{fg};{bg + 10}" for fg in named for bg in named] + [f"7;{code}" for code in (*named, *true)]
    pairs += [f"{code};48;5;{ground}" for code in (*named, *true) for ground in range(256)]
    for style in await still.evaluate("codes => codes.map(code => relay.ansi(`\x1b[${code}mx`)[0].style)", pairs):
        assert contrast(style["fg"], style["bg"]) >= 4.5, style


async def test_services_are_found(still):
    seen = await still.evaluate(
        """cases => cases.map(([url, dataset]) => {
            const document = { baseURI: location.href, documentElement: { dataset } };
            return relay.serviceUrl("status", { url, document });
        })""",
        [[url, dataset] for url, dataset, _ in BASES],
    )
    host = still.tab.page.url.split("/")[2]
    assert seen == [base.format(host=host) for *_, base in BASES]


# --- before a real relay -------------------------------------------------------------------------------------


async def test_lines_come_in_order_and_jobs_are_told(script, standing, redis_url):
    page = await script(standing)
    await page.evaluate("log()")
    await page.until("events.some(event => event.type === 'ready')")
    lines = ["one", "<b>two</b>", "rq:7f EXCEPTION f(x)", "rq:7f TRIGGER   wepp WEPP_RUN_TASK_COMPLETED"]
    assert publish(redis_url, *lines) == 1
    await page.until("stream.lines.length === 4")
    seen = await page.evaluate("stream.lines.map(({ n, text, kind }) => [n, text, kind])")
    assert seen == [
        list(each) for each in zip((1, 2, 3, 4), lines, ("line", "line", "exception", "trigger"), strict=True)
    ]
    exception, trigger = await page.noted("exception", "trigger")
    assert exception["job"] == "7f"
    assert exception["text"] == "f(x)"
    assert (trigger["job"], trigger["channel"], trigger["event"]) == ("7f", "wepp", "WEPP_RUN_TASK_COMPLETED")
    assert trigger["line"]["n"] == 4
    assert await page.evaluate("[states(), stream.gaps, stream.missing]") == ["live", 0, False]
    await page.evaluate("stream.stop()")
    await page.tab.until(lambda: not page.tab.all_sockets[0].open, "closed")
    assert page.tab.complaints == []


async def test_pings_are_answered_and_the_checklist_comes(script, relay, redis_url):
    page = await script(relay(env={"PREFLIGHT_PING_INTERVAL": "200ms"}))
    await page.evaluate("note(new relay.ChecklistStream({ run: 'some-run' })); null")
    [socket] = await sockets(page.tab, 1)
    assert socket.url.endswith("/some-run?v=3")
    await page.tab.until(lambda: '{"type":"pong"}' in socket.sent, "answered")
    with redis.Redis.from_url(redis_url) as worker:
        worker.hset("some-run", "timestamps:build_channels", "10")
    await page.until("stream.snapshot?.checklist.channels")
    await page.until("events.findLast(event => event.type === 'snapshot')?.checklist.channels")
    assert await page.evaluate("stream.times.done") == {"channels": 10}
    told = [event["type"] for event in await page.noted("times", "snapshot")]
    assert told == len(told) // 2 * ["times", "snapshot"]


async def sockets(tab, number):
    await tab.until(lambda: len(tab.all_sockets) >= number, f"{number} sockets")
    return tab.all_sockets


async def test_it_is_live_again_after_a_restart_of_the_relay(script, relay, redis_url):
    first = relay(env={"RELAY_DRAIN": "200ms"})
    page = await script(first)
    await page.evaluate("log()")
    await page.until("stream.state === 'live'")
    publish(redis_url, "before")
    await page.until("stream.lines.length === 1")
    assert await asyncio.to_thread(first.stop) == 0
    await page.until("events.some(event => event.state === 'waiting' && event.code === 1012 && event.retryAt)")
    assert await page.evaluate("stream.missing")
    second = relay(
        env={f"{name.upper()}_LISTEN_ADDR": f"127.0.0.1:{port}" for name, port in first.ports.items()}, wait=None
    )
    second.ports = first.ports
    await asyncio.to_thread(second.wait, "ready")
    await page.until("stream.state === 'live' && !stream.missing")
    publish(redis_url, "after")
    await page.until("stream.lines.at(-1).text === 'after'")
    # Who came back before the relay had its Redis is told of that too.
    kinds = await page.evaluate("stream.lines.map(line => line.kind).join()")
    assert kinds in ("line,gap,line", "line,gap,gap,line")
    gaps, [joined, back] = await page.noted("gap"), await page.noted("ready")
    assert [gap["reason"] for gap in gaps] == ["connection", "link"][: kinds.count("gap")]
    assert [joined["missed"], back["missed"]] == [False, True]


async def test_a_gap_of_the_relays_own_link_is_told(script, relay, redis_server):
    page = await script(relay(env={"REDIS_URL": redis_server.url}))
    await page.evaluate("log()")
    await page.until("events.some(event => event.type === 'ready')")
    redis_server.kill()
    await page.until("stream.missing")
    [gap] = await page.noted("gap")
    assert gap["reason"] == "link"
    assert abs(gap["since"] - await page.evaluate("Date.now()")) < 60_000
    redis_server.start()
    await page.until("!stream.missing")
    publish(redis_server.url, "after")
    await page.until("stream.lines.length === 2")
    assert await page.evaluate("[stream.state, stream.gaps, stream.lines[0].kind]") == ["live", 1, "gap"]
    assert (await page.noted("ready"))[-1]["missed"]


def sign_for(seconds):
    return Keys(SECRET).sign(["some-run"], ["*"], seconds)


async def test_a_permission_that_has_expired_is_a_refusal(script, relay, redis_url):
    process = relay(env={"RELAY_TOKEN_SECRET": SECRET})
    page = await script(process)
    for _ in range(3):  # each of them in vain where this machine comes too late with its token
        await page.evaluate("token => { globalThis.stream?.stop(); log({ token }); }", sign_for(3))
        await page.until("events.some(event => event.state === 'live') || stream.retryAt")
        if not await page.evaluate("stream.retryAt"):
            break
    await page.until("stream.state === 'refused'")
    assert await page.evaluate("[stream.closeCode, stream.closeReason, stream.retryAt]") == [
        1008,
        "permission expired",
        0,
    ]
    await page.evaluate("token => { stream.token = token; stream.reconnect(); }", sign_for(600))
    await page.until("stream.state === 'live' && !stream.missing")
    assert publish(redis_url, "with a new token") == 1


# --- the rules of coming back --------------------------------------------------------------------------------


async def test_silence_of_30_seconds_is_the_end_of_a_connection(still):
    await still.evaluate("live()")
    await still.later(29_000)
    await still.evaluate("last().say({ type: 'ping' })")
    assert await still.evaluate("last().sent") == ['{"type":"pong"}']
    await still.later(29_900)
    assert await still.evaluate("states()") == "live"
    await still.later(200)
    assert await still.evaluate("[states(), last().closed, stream.missing, stream.gaps]") == [
        "live,stale",
        True,
        True,
        1,
    ]
    await still.later(1000)
    assert await still.evaluate("[states(), sockets.length]") == ["live,stale,connecting", 2]
    await still.evaluate("last().open()")
    assert await still.evaluate("[states(), stream.missing]") == ["live,stale,connecting,live", True]
    await still.evaluate("last().say({ type: 'ready' })")
    assert not await still.evaluate("stream.missing")


async def test_silence_is_found_though_the_clock_is_set_back(still):
    await still.evaluate("live()")
    await still.later(29_000)
    await still.evaluate("last().say({ type: 'ping' })")
    await still.evaluate("globalThis.now = Date.now; Date.now = () => now() - 3_600_000; null")
    await still.later(30_100)
    await still.evaluate("Date.now = now; null")
    assert await still.evaluate("states()") == "live,stale"


async def test_an_answer_that_does_not_come_is_not_awaited_for_ever(still):
    await still.evaluate("log(options)")
    await still.later(30_100)
    assert await still.evaluate("[stream.state, stream.closeReason, stream.gaps]") == [
        "waiting",
        "no answer for 30 s",
        0,
    ]


async def waits(page, code, times, reason=""):
    """Seconds until each of the next tries, where luck is at its worst and each is lost at once."""
    seen = []
    for _ in range(times):
        await page.evaluate("([code, reason]) => last().end(code, reason)", [code, reason])
        seen.append(await page.evaluate("Math.round((stream.retryAt - Date.now()) / 1000)"))
        tried = await page.evaluate("sockets.length")
        await page.later(seen[-1] * 1000 - 10)
        assert await page.evaluate("sockets.length") == tried
        await page.later(20)
        assert await page.evaluate("sockets.length") == tried + 1
    return seen


async def test_the_wait_doubles_and_begins_anew_once_a_connection_has_lasted(still):
    await still.evaluate("log(options)")
    assert await waits(still, 1006, 6) == [1, 2, 4, 8, 15, 15]
    await still.evaluate("last().open(), last().say({ type: 'ready' })")
    assert await waits(still, 1006, 1) == [15]  # it did not last
    await still.evaluate("last().open()")
    await still.later(10_000)
    await still.evaluate("last().say({ type: 'ping' })")
    assert await waits(still, 1006, 2) == [1, 2]
    await still.evaluate("Math.random = () => 0.25")
    await still.evaluate("last().end(1006)")
    assert await still.evaluate("stream.retryAt - Date.now()") == 1000


async def test_a_refusal_is_waited_for_long(still):
    await still.evaluate("log(options)")
    assert await waits(still, 1008, 6, "too many frames") == [15, 30, 60, 120, 240, 300]


async def test_a_restart_is_waited_for_shortly(still):
    await still.evaluate("live()")
    await still.later(10_000)
    await still.evaluate("last().say({ type: 'ping' })")
    assert await waits(still, 1012, 1) == [1]
    await still.evaluate("last().open()")
    assert await waits(still, 1012, 4) == [2, 4, 8, 15]  # a relay that lets in, and says so each time


@pytest.mark.parametrize(
    ("code", "reason"), [(1002, ""), (1007, "no UTF-8"), (1009, "too big"), (1008, "permission expired")]
)
async def test_what_coming_back_does_not_mend_is_refused(still, code, reason):
    await still.evaluate("live()")
    await still.evaluate("([code, reason]) => last().end(code, reason)", [code, reason])
    await still.later(600_000)
    assert await still.evaluate("[stream.state, stream.closeCode, stream.closeReason]") == ["refused", code, reason]
    assert await still.evaluate("sockets.length") == 1
    await still.evaluate("stream.reconnect()")
    assert await still.evaluate("[stream.state, sockets.length]") == ["connecting", 2]


async def test_what_redis_does_not_permit_is_refused_and_asked_for_again(still):
    await still.evaluate("log(options)")
    await still.evaluate("last().end(1008, 'Redis does not permit this channel')")
    assert await still.evaluate("[stream.state, stream.retryAt - Date.now()]") == ["refused", 15_000]
    await still.later(15_000)
    assert await still.evaluate("[stream.state, sockets.length]") == ["connecting", 2]


@pytest.mark.parametrize("event", ["dispatchEvent(new Event('online'))", "hide(true), hide(false)"])
async def test_the_network_or_the_reader_comes_back(still, event):
    await still.evaluate("log(options)")
    await waits(still, 1006, 4)
    await still.evaluate("last().end(1006)")
    assert await still.evaluate("stream.state") == "waiting"
    await still.evaluate(event)
    assert await still.evaluate("[stream.state, sockets.length, stream.attempt]") == ["connecting", 6, 0]
    await still.evaluate("last().open()")
    await still.evaluate(event)
    assert await still.evaluate("sockets.length") == 6
    await still.evaluate("stream.stop()")
    await still.evaluate(event)
    assert await still.evaluate("[stream.state, sockets.length]") == ["stopped", 6]


async def test_it_leaves_nothing_behind_in_the_page(still):
    await still.evaluate(
        """globalThis.listening = 0;
        for (const target of [globalThis, document])
            for (const [method, step] of [["addEventListener", 1], ["removeEventListener", -1]])
                target[method] = function (...args) {
                    if (["online", "visibilitychange"].includes(args[0])) listening += step;
                    return EventTarget.prototype[method].apply(target, args);
                };
        live(); null"""
    )
    assert await still.evaluate("listening") == 2
    await still.evaluate("stream.stop()")
    listening = await still.evaluate("listening")
    await still.evaluate(
        """for (const target of [globalThis, document])
            for (const method of ["addEventListener", "removeEventListener"]) delete target[method]"""
    )
    assert listening == 0


async def test_it_stops_and_starts_as_often_as_it_is_told(still):
    await still.evaluate("log({ ...options, autostart: false })")
    await still.later(1000)
    assert await still.evaluate("[stream.state, sockets.length]") == ["stopped", 0]
    await still.evaluate("stream.start(), stream.start()")
    await still.evaluate("last().open()")
    await still.evaluate("stream.start(), stream.reconnect()")
    assert await still.evaluate("[states(), sockets.length]") == ["connecting,live", 1]
    await still.evaluate("stream.stop(), stream.stop()")
    await still.later(60_000)
    assert await still.evaluate("[states(), sockets.length, last().closed]") == ["connecting,live,stopped", 1, True]
    await still.evaluate(
        "last().onmessage?.({ data: '{\"type\":\"gap\"}' }), last().onclose?.({ code: 1005, reason: '' })"
    )
    await still.later(60_000)
    assert await still.evaluate("[states(), stream.gaps]") == ["connecting,live,stopped", 0]
    await still.evaluate("stream.start(), stream.stop()")  # before it came to connect
    await still.later(1000)
    assert await still.evaluate("[stream.state, sockets.length]") == ["stopped", 1]
    await still.evaluate("stream.reconnect()")
    assert await still.evaluate("[stream.state, sockets.length]") == ["connecting", 2]


BAD = [
    {"run": "a/b"},
    {"run": "../../x?y#z"},
    {"run": "..", "channel": "wepp"},
    {"run": "__relay__"},
    {"run": ""},
    {"run": None},
    {"run": "x" * 201},
    {"channel": "we pp"},
    {"channel": "\ud800"},
    {"url": "javascript:alert(1)"},
    {"url": "http://["},
]


@pytest.mark.parametrize("options", BAD, ids=lambda options: repr(options)[:30])
async def test_a_name_or_an_address_that_is_none_is_refused_with_a_reason(still, options):
    await still.evaluate("options => log(options)", options)  # the real WebSocket
    assert await still.evaluate("[states(), stream.closeCode]") == ["refused", 0]
    assert await still.evaluate("stream.closeReason")
    assert still.tab.all_sockets == []


async def test_names_are_encoded_and_the_token_goes_along(still):
    await still.evaluate("log({ ...options, run: 'batch;;a;;b', token: 'a&b=c' })")
    assert await still.evaluate("last().url") == "ws://relay/batch%3B%3Ba%3B%3Bb:wepp?v=2&token=a%26b%3Dc"


# --- lines ---------------------------------------------------------------------------------------------------


async def test_lines_are_told_once_a_frame_and_bounded(still):
    await still.evaluate("live({ limit: 3 })")
    await still.evaluate("say('1', '2')")
    assert await still.evaluate("[stream.lines.length, events.length]") == [0, 1]
    await still.later(20)
    await still.evaluate("say('3', '4'), say('5')")
    await still.later(20)
    told = [([line["text"] for line in event["added"]], event["dropped"]) for event in await still.noted("lines")]
    assert told == [(["1", "2"], 0), (["3", "4", "5"], 2)]
    await still.evaluate("say(...Array.from({ length: 1000 }, (_, index) => `x${index}`))")
    await still.later(20)
    assert await still.evaluate("stream.lines.map(line => line.text)") == ["x997", "x998", "x999"]
    assert await still.evaluate("[stream.dropped, stream.lines[0].n]") == [1002, 1003]
    await still.evaluate("stream.clear()")
    await still.later(20)
    assert await still.evaluate("[stream.lines.length, events.at(-1).added.length]") == [0, 0]


async def test_a_gap_of_a_reason_that_is_not_known_is_one(still):
    await still.evaluate("live()")
    await still.evaluate("last().say({ type: 'gap', reason: 'toString' })")
    await still.later(20)
    texts = await still.evaluate("stream.lines.map(line => line.text)")
    assert texts == ["Lines may be missing here: the connection was lost."]


async def test_a_hidden_tab_keeps_what_came_and_hears_triggers_at_once(still):
    await still.evaluate("live({ limit: 2 })")
    await still.evaluate(
        """{
            const draw = requestAnimationFrame;
            globalThis.requestAnimationFrame = () => 0;
            say("a frame was asked for, and is not drawn");
            globalThis.requestAnimationFrame = draw;
            hide(true);
        }"""
    )
    await still.evaluate("say('2', 'rq:1 TRIGGER   wepp DONE')")
    assert [event["event"] for event in await still.noted("trigger")] == ["DONE"]
    await still.later(1100)
    assert await still.evaluate("stream.lines.map(line => line.text)") == ["2", "rq:1 TRIGGER   wepp DONE"]


async def test_a_line_of_a_megabyte_is_cut(still):
    await still.evaluate("live()")
    await still.evaluate("say('x'.repeat(1_000_000), 'y'.repeat(20_000), 'z'.repeat(20_001))")
    await still.later(20)
    lengths = await still.evaluate("stream.lines.map(line => [line.text.length, line.text.slice(19_999)])")
    assert lengths == [[20_008, "x… 1.0 MB"], [20_000, "y"], [20_007, "z… 20 kB"]]


async def test_what_is_no_frame_is_ignored(still):
    await still.evaluate("live()")
    await still.evaluate(
        """["", "null", "[]", "{", '{"type":1}', '{"type":"hangup"}'].forEach(data => last().onmessage({ data }))"""
    )
    await still.evaluate("last().onmessage({ data: new Blob(['x']) })")
    await still.evaluate("last().say({ type: 'status', data: null }), last().say({ type: 'status', data: { a: 1 } })")
    await still.later(20)
    assert await still.evaluate("stream.lines.map(line => line.text)") == ["null", "[object Object]"]
    assert await still.evaluate("stream.state") == "live"
    assert still.tab.complaints == []


async def test_only_the_newest_snapshot_is_told(still):
    await still.evaluate(
        "note(new relay.ChecklistStream({ ...names, ...options })); queueMicrotask(() => last().open())"
    )
    await still.evaluate(
        "for (let n = 0; n < 5; n++) last().say({ type: 'preflight', checklist: {}, last_modified: n })"
    )
    await still.later(20)
    assert [event["last_modified"] for event in await still.noted("snapshot")] == [4]


async def test_the_times_of_the_steps_are_told_before_the_snapshot(still):
    await still.evaluate(
        "note(new relay.ChecklistStream({ ...names, ...options })); queueMicrotask(() => last().open())"
    )
    assert await still.evaluate("[stream.times, last().url]") == [None, "ws://relay/some-run?v=3"]
    done = "{ type: 'times', done: { soils: 7 }, started: { wepp: 8 }, stale: { soils: ['landuse'] } }"
    await still.evaluate(f"last().say({{ type: 'preflight', checklist: {{}} }}), last().say({done})")
    await still.later(20)
    [times, _] = await still.noted("times", "snapshot")
    assert times["times"] == await still.evaluate(f"({done})") == await still.evaluate("stream.times")
    await still.evaluate("last().say({ type: 'times', done: {}, started: {}, stale: {} })")
    await still.later(20)
    assert [event["type"] for event in await still.noted("times", "snapshot")] == ["times", "snapshot", "times"]
