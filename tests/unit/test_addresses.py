"""Which address a proxy's X-Forwarded-For names."""

import ipaddress

import pytest

from relay import settings
from relay.addresses import MOST, forwarded, packed
from relay.errors import ConfigError
from relay.values import Proxies

TRUSTED = Proxies.parse("10.0.0.0/8,fd00::/8,192.0.2.7,unix")
PROXY = packed("10.0.0.1")


def client(*lines, peer=PROXY):
    head = "GET /r1 HTTP/1.1\r\n" + "".join(f"{line}\r\n" for line in lines) + "\r\n"
    found = ipaddress.IPv6Address(forwarded(head.encode("latin-1"), peer, TRUSTED.trusts))
    return str(found.ipv4_mapped or found)


@pytest.mark.parametrize(
    ("lines", "address"),
    [
        ([], "10.0.0.1"),
        (["X-Forwarded-For: 1.2.3.4"], "1.2.3.4"),
        (["x-FORWARDED-for:1.2.3.4"], "1.2.3.4"),
        (["X-Forwarded-For: 6.6.6.6, 1.2.3.4"], "1.2.3.4"),
        (["X-Forwarded-For: 6.6.6.6", "X-Forwarded-For: 1.2.3.4"], "1.2.3.4"),
        (["X-Forwarded-For: 1.2.3.4, 10.9.9.9, 192.0.2.7"], "1.2.3.4"),
        (["X-Forwarded-For: 6.6.6.6, 1.2.3.4,10.9.9.9"], "1.2.3.4"),
        (["X-Forwarded-For: 10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        (["X-Forwarded-For: 2001:db8::1"], "2001:db8::1"),
        (["X-Forwarded-For: [2001:db8::1]"], "2001:db8::1"),
        (["X-Forwarded-For: [2001:db8::1]:4711"], "2001:db8::1"),
        (["X-Forwarded-For: 1.2.3.4:4711"], "1.2.3.4"),
        (["X-Forwarded-For: ::ffff:1.2.3.4"], "1.2.3.4"),
        (["X-Forwarded-For: 1.2.3.4, fd00::1"], "1.2.3.4"),
        (["X-Forwarded-For: 6.6.6.6, unknown"], "10.0.0.1"),
        (["X-Forwarded-For: 6.6.6.6, unknown, 10.0.0.2"], "10.0.0.2"),
        (["X-Forwarded-For: 6.6.6.6,"], "10.0.0.1"),
        (["X-Forwarded-For: "], "10.0.0.1"),
        (["X-Forwarded-For: 1.2.3"], "10.0.0.1"),
        (["X-Forwarded-For: 01.2.3.4"], "10.0.0.1"),
        (["X-Forwarded-For: 1.2.3.4\xa0"], "10.0.0.1"),
        (["X-Forwarded-For: _hidden"], "10.0.0.1"),
        (["X-Forwarded-Fors: 1.2.3.4"], "10.0.0.1"),
        (["Y: X-Forwarded-For: 1.2.3.4"], "10.0.0.1"),
        (["Forwarded: for=1.2.3.4"], "10.0.0.1"),
        (["X-Real-IP: 1.2.3.4"], "10.0.0.1"),
    ],
)
def test_read_from_the_right_as_far_as_proxies_are_trusted(lines, address):
    assert client(*lines) == address


def test_only_so_many_are_looked_at():
    chain = ", ".join(["1.2.3.4", *["10.0.0.2"] * (MOST - 1)])
    assert client(f"X-Forwarded-For: {chain}") == "1.2.3.4"
    assert client(f"X-Forwarded-For: {chain}, 10.0.0.2") == "10.0.0.2"
    assert client("X-Forwarded-For: " + "," * 8000) == "10.0.0.1"


@pytest.mark.parametrize(
    ("address", "trusted"),
    [
        ("10.255.0.1", True),
        ("11.0.0.0", False),
        ("9.255.255.255", False),
        ("192.0.2.7", True),
        ("192.0.2.6", False),
        ("fdff::1", True),
        ("fe00::", False),
        ("::10.0.0.1", False),
        ("::", False),
    ],
)
def test_networks(address, trusted):
    assert TRUSTED.trusts(packed(address)) is trusted


def test_everybody():
    assert Proxies.parse("0.0.0.0/0").trusts(packed("1.2.3.4"))
    assert not Proxies.parse("0.0.0.0/0").trusts(packed("2001:db8::1"))
    assert Proxies.parse("::/0").trusts(packed("1.2.3.4"))


# ---- the settings ----


def load(**env):
    return settings.load(("status",), env={f"RELAY_{name}": text for name, text in env.items()})


@pytest.mark.parametrize("text", ["", "unix", "127.0.0.1", "10.0.0.0/8,fd00::/8,unix"])
def test_proxies_are_told_as_they_were_written(text):
    loaded = load(TRUSTED_PROXIES=text)
    told = {name: value for name, value, _ in settings.describe(loaded)}
    assert told["RELAY_TRUSTED_PROXIES"] == text
    assert bool(loaded.trusted_proxies) is bool(text)
    assert loaded.trusted_proxies.unix is ("unix" in text)


@pytest.mark.parametrize("text", ["localhost", "10.0.0.0/33", "unix,", ",", "1.2.3", "10.0.0.0/8;unix", "UNIX", "*"])
def test_no_proxies(text):
    with pytest.raises(ConfigError, match=r"RELAY_TRUSTED_PROXIES=.* is no address, no network"):
        load(TRUSTED_PROXIES=text)


def test_an_address_in_a_network_is_neither():
    with pytest.raises(ConfigError, match=r"in the network 10\.0\.0\.0/8: write one or the other"):
        load(TRUSTED_PROXIES="10.1.2.3/8")


def test_introductions_by_nobody():
    with pytest.raises(ConfigError, match="RELAY_TRUSTED_PROXIES is not"):
        load(PROXY_PROTOCOL="true")
    assert load(PROXY_PROTOCOL="true", TRUSTED_PROXIES="unix").proxy_protocol


def test_a_bound_for_addresses_where_nobody_has_one():
    env = {"STATUS_LISTEN_ADDR": "unix:/run/relay/status.sock", "RELAY_MAX_PER_ADDRESS": "10"}
    [warning] = settings.load(("status",), env=env).warnings
    assert "RELAY_TRUSTED_PROXIES=unix" in warning
    assert not settings.load(("status",), env={**env, "RELAY_TRUSTED_PROXIES": "unix"}).warnings
