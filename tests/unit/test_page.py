import base64
import hashlib
import re

import pytest

from relay.page import index

PAGE = index(status_port=19002, preflight_port=19001).decode()


def test_it_knows_the_ports():
    assert '<html lang="en" data-status-port="19002" data-preflight-port="19001">' in PAGE
    assert "{{" not in PAGE


def test_it_fetches_nothing():
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)", PAGE)
    assert not re.findall(r"url\(|@import|\bfetch\(|import\(", PAGE)


@pytest.mark.parametrize("tag", ["style", "script"])
def test_its_policy_lets_in_what_it_came_with(tag):
    [text] = re.findall(f"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', PAGE)[1]
    assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "connect-src ws: wss:;" in policy
    assert "unsafe" not in policy


def test_text_from_outside_is_never_markup():
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", PAGE)


def test_every_item_of_the_checklist_has_a_place():
    from relay.checklist import snapshot

    groups = re.search(r"const GROUPS = \[(.*?)\n\];", PAGE, re.DOTALL)[1]
    named = re.findall(r'\["(\w+)", "', groups)
    assert sorted(named) == sorted(snapshot({})["checklist"])
