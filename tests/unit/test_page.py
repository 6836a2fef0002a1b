import base64
import hashlib
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


def test_every_item_of_the_checklist_has_a_place():
    [groups] = re.findall(r"^const GROUPS = \[(.*?)\n\];$", SCRIPT, re.DOTALL | re.MULTILINE)
    assert sorted(re.findall(r'\["(\w+)", "', groups)) == sorted(snapshot({})["checklist"])
