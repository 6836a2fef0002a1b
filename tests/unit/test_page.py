import base64
import hashlib
import random
import re

import pytest

from relay.checklist import snapshot
from relay.page import module, page

PORTS = {"status": 19002, "preflight": 19001}
PAGE = page({}, PORTS)
TEXT = PAGE.body.decode()


def policy(built, host="wepp.cloud:19002"):
    [said] = [value for name, value in built.headers(host) if name == "Content-Security-Policy"]
    return dict(part.strip().partition(" ")[::2] for part in said.split(";"))


def test_it_knows_where_the_services_are():
    assert 'data-status-port="19002" data-preflight-port="19001"' in TEXT
    assert "{{" not in TEXT
    far = page({"status": "wss://wepp.cloud/status", "preflight": 'wss://x/"&'}, {}).body.decode()
    assert 'data-status-url="wss://wepp.cloud/status" data-preflight-url="wss://x/&quot;&amp;"' in far


def test_it_fetches_nothing_from_elsewhere():
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|/)", TEXT)
    assert not re.findall(r"url\(|@import|\bfetch\(", TEXT)
    [imported] = re.findall(r"\bimport\b.*", TEXT)
    assert re.fullmatch(r"import\(`\$\{location\.origin\}\$\{base\}relay\.js\?[0-9a-f]{12}`\);", imported)


@pytest.mark.parametrize("tag", ["style", "script"])
def test_its_policy_lets_in_what_it_came_with(tag):
    [text] = re.findall(f"<{tag}[^>]*>(.*?)</{tag}>", TEXT, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    found = policy(PAGE)
    assert f"'sha256-{digest}'" in found[f"{tag}-src"]
    assert found["default-src"] == "'self'"
    assert "unsafe" not in str(found)


def test_it_may_connect_to_both_services_and_to_nobody_else():
    assert policy(PAGE)["connect-src"].split() == [
        "'self'",
        *("ws://wepp.cloud:19002", "wss://wepp.cloud:19002", "ws://wepp.cloud:19001", "wss://wepp.cloud:19001"),
    ]
    far = page({"status": "wss://far.example/status"}, PORTS)
    assert policy(far, "a")["connect-src"].split() == [
        "'self'",
        *("wss://far.example", "ws://a:19001", "wss://a:19001", "ws://a", "wss://a"),
    ]
    for built, host in ((PAGE, "[::1]:19002"), (page({"status": "ws://[::1]/status"}, PORTS), "a")):
        assert policy(built, host)["connect-src"] == "'self' ws: wss:", "an IPv6 address is no host-source"
    for evil in ("a; script-src *", "a'", "*", "", "a/b", "a,b"):
        assert policy(PAGE, evil)["connect-src"].strip() == "'self'"


def test_text_from_outside_is_never_markup():
    for text in (TEXT, module().decode()):
        assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text)


# --- what page.js knows of the checklist ----------------------------------------------------------------------

SCRIPT = re.search(r'<script type="module">(.*?)</script>', TEXT, re.DOTALL)[1]
INPUTS = ["landuse", "soils", "climate"]
TASKS = {
    "channels": ["build_channels"],
    "outlet": ["set_outlet"],
    "subcatchments": ["abstract_watershed"],
    "sbs_map": ["init_sbs_map"],
    "wepp": ["run_wepp", "run_wepp_watershed"],
    **{item: [f"build_{item}"] for item in (*INPUTS, "rangeland_cover", "rap_ts", "openet_ts", "rusle")},
    **{item: [f"run_{item}"] for item in ("rhem", "geneva", "roads", "observed", "debris", "watar")},
    **{item: [f"run_{item}"] for item in ("omni_scenarios", "omni_contrasts")},
    **{item: [item] for item in ("run_path_ce", "dss_export")},
}


def table(name):
    """A constant of page.js: item -> items."""
    [body] = re.findall(rf"^const {name} = {{\n(.*?)\n}};$", SCRIPT, re.DOTALL | re.MULTILINE)
    rows = re.findall(r"(\w+): (INPUTS|\[[^\]]*\])", body)
    return {item: sorted(re.findall(r'"(\w+)"', text) + INPUTS * ("INPUTS" in text)) for item, text in rows}


def states():
    """Hashes of runs with some of all timestamps, and how they are ticked."""
    rng = random.Random(7)
    for _ in range(700):
        share = rng.random()
        tasks = [task for names in TASKS.values() for task in names if rng.random() < share]
        fields = {f"timestamps:{task}".encode(): b"%d" % rng.randrange(1, 30) for task in tasks}
        if rng.random() < 0.5:
            fields[b"attrs:has_sbs"] = b"true"
        yield fields, snapshot(fields)["checklist"]


def test_every_item_of_the_checklist_has_a_place():
    [groups] = re.findall(r"^const GROUPS = \[(.*?)\n\];$", SCRIPT, re.DOTALL | re.MULTILINE)
    assert sorted(re.findall(r'\["(\w+)", "', groups)) == sorted(snapshot({})["checklist"]) == sorted(TASKS)


def test_what_takes_a_tick_is_what_the_rules_compare_it_with():
    takes = {item: set() for item in TASKS}
    for fields, ticked in states():
        for other, tasks in TASKS.items():
            for task in tasks:
                after = snapshot(fields | {f"timestamps:{task}".encode(): b"99"})["checklist"]
                for item in TASKS:
                    if item != other and ticked[item] and not after[item]:
                        takes[item].add(other)
    assert {item: sorted(others) for item, others in takes.items() if others} == table("NEWER_THAN")


def test_a_tick_proves_that_these_have_a_time():
    proves = table("PROVES")
    for fields, ticked in states():
        for item, others in proves.items():
            for other in others if ticked[item] else ():
                assert any(f"timestamps:{task}".encode() in fields for task in TASKS[other]), (
                    f"{item}, {other}: {fields}"
                )
