"""Signed tokens: what opens which run and channel, and what opens nothing."""

import base64
import hashlib
import hmac
import json
import time

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import ConfigError
from relay.tokens import LONGEST, MAX_TOKEN, Denied, Keys, matches, secrets_of

SECRET = "first-" + 32 * "a"
OTHER = "other-" + 32 * "b"
KEYS = Keys(SECRET)
NAMES = st.text(alphabet="ab.;*", max_size=12)


def made(claims, secret=SECRET, algorithm="HS256", **headers):
    """A token with these claims and, unless they say otherwise, an hour to live."""
    return jwt.encode({"exp": time.time() + 3600, **claims}, secret, algorithm, headers)


def part(value):
    return base64.urlsafe_b64encode(value if isinstance(value, bytes) else json.dumps(value).encode()).rstrip(b"=")


def by_hand(header, payload, secret=SECRET):
    """What PyJWT would not make: any header and payload, properly signed with SHA-256."""
    signed = part(header) + b"." + part(payload)
    return (signed + b"." + part(hmac.digest(secret.encode(), signed, hashlib.sha256))).decode()


HS256 = {"alg": "HS256", "typ": "JWT"}


def later(**claims):
    return {"exp": int(time.time()) + 3600, "run": "*", **claims}


def denial(token, keys=KEYS):
    with pytest.raises(Denied) as denied:
        keys.verify(token)
    assert str(denied.value)
    return str(denied.value)


# --- what opens ---------------------------------------------------------------------------------------------


def test_what_is_signed_is_verified():
    grant = KEYS.verify(KEYS.sign(["r1", "batch;;x;;*"], ["wepp"], 60))
    assert 58 < grant.expires_in <= 60
    assert grant.covers("r1", "wepp")
    assert grant.covers("batch;;x;;7", "wepp")
    assert grant.covers("r1", None)
    assert not grant.covers("r1", "soils")
    assert not grant.covers("r2", "wepp")
    assert not grant.covers("R1", "wepp")


def test_a_claim_is_a_pattern_or_a_list_of_them():
    assert KEYS.verify(made({"run": "r*", "channel": ["a", "b"]})).covers("r1", "b")
    assert not KEYS.verify(made({"run": "r*"})).covers("r1", "a")
    assert not KEYS.verify(made({"channel": "*"})).covers("r1", "a")
    assert not KEYS.verify(made({"run": [], "channel": "*"})).covers("r1", "a")


def test_the_first_secret_signs_and_each_verifies():
    both = Keys(f"{OTHER},\n{SECRET}\n")
    assert Keys(OTHER).verify(both.sign("*", "*", 60))
    assert both.verify(KEYS.sign("*", "*", 60)).covers("r", "c")
    denial(both.sign("*", "*", 60))


def test_a_hundred_years_are_one():
    """The core counts in ticks; what it could not count must not keep anybody out."""
    assert KEYS.verify(made({"exp": 10**30})).expires_in == LONGEST


def test_clocks_may_differ_by_seconds():
    assert KEYS.verify(made({"iat": time.time() + 5, "nbf": time.time() + 5}))


# --- what opens nothing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"exp": 1}, "expired"),
        ({"exp": True}, "expired"),
        ({"exp": -(10**30)}, "expired"),
        ({"exp": None}, "no exp"),
        ({"exp": "soon"}, "malformed"),
        ({"exp": [1]}, "malformed"),
        ({"nbf": 2**40}, "of the future"),
        ({"iat": 2**40}, "of the future"),
        ({"aud": "another service"}, "malformed"),
        ({"run": 1}, "neither a pattern"),
        ({"run": ["a", 1]}, "neither a pattern"),
        ({"channel": {"a": 1}}, "neither a pattern"),
    ],
    ids=repr,
)
def test_claims_that_open_nothing(claims, why):
    assert why in denial(by_hand(HS256, later(**claims)))


def test_no_exp_at_all():
    assert "no exp" in denial(by_hand(HS256, {"run": "*"}))


def test_it_ends_on_the_second_and_not_when_clocks_may_differ():
    assert "expired" in denial(made({"exp": time.time() - 1}))


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ({"alg": "none"}, "not HS256"),
        ({"alg": "None"}, "not HS256"),
        ({"alg": "hs256"}, "not HS256"),
        ({"alg": "HS512"}, "not HS256"),
        ({"alg": "RS256"}, "not HS256"),
        ({"alg": ["HS256"]}, ""),
        ({"alg": None}, "not HS256"),
        ({"alg": "HS256", "b64": False, "crit": ["b64"]}, "malformed"),
        ({"alg": "HS256", "kid": 7}, "malformed"),
        ({}, "not HS256"),
        ([], "malformed"),
        ("HS256", "malformed"),
        (b"\xff\xfe", "malformed"),
        (b"[" * 2900, ""),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_headers_that_open_nothing(header, why):
    assert why in denial(by_hand(header, later()))


def test_no_signature_and_no_algorithm():
    unsigned = jwt.encode(later(), None, "none")
    assert "not HS256" in denial(unsigned)
    header, payload, _ = KEYS.sign("*", "*", 60).split(".")
    assert "signature" in denial(f"{header}.{payload}.")
    assert "signature" in denial(f"{header}.{part(later(run='x')).decode()}.{_}")


def test_another_secret_and_a_public_key_as_one():
    assert "signature" in denial(made({}, OTHER))
    assert "signature" in denial(by_hand(HS256, later(), ""))
    public = "-----BEGIN PUBLIC KEY----- MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA -----END PUBLIC KEY-----"
    with pytest.raises(ConfigError):  # it is known to all: who trusts it as a secret can be forged for
        Keys(public)


@pytest.mark.parametrize(
    "payload", [[1], "text", 7, None, b"\xff", b"{", b"[" * 2900, {"exp": float("inf")}], ids=lambda v: repr(v)[:20]
)
def test_payloads_that_are_no_claims(payload):
    assert denial(by_hand(HS256, payload))


@pytest.mark.parametrize(
    "token", ["", ".", "..", "a.b", "a.b.c", "a.b.c.d", "é.é.é", "\x00", "null", "%" * 40, "=.=.="]
)
def test_no_tokens(token):
    assert denial(token)


def test_a_huge_one_is_not_looked_at(monkeypatch):
    monkeypatch.setattr(jwt, "decode", None)
    assert "longer than" in denial("a" * (MAX_TOKEN + 1))


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda data: f"{part(data).decode()}.{part(data).decode()}."))
def test_whatever_comes_is_denied_and_not_repeated(token):
    said = denial(token)
    assert len(token) < 12 or token not in said


# --- patterns -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "name", "whether"),
    [
        ("r1", "r1", True),
        ("r1", "r11", False),
        ("", "", True),
        ("*", "", True),
        ("*", "batch;;a;;b", True),
        ("r*", "r", True),
        ("*r", "rr", True),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("ab*ba", "aba", False),
        ("a*b*c", "a-b-c", True),
        ("a*b*c", "a-c", False),
        ("a*b*b", "ab", False),
        ("**", "x", True),
        ("r?", "r1", False),
        ("[r]1", "r1", False),
        ("r.1", "rx1", False),
        ("R1", "r1", False),
    ],
)
def test_patterns(pattern, name, whether):
    assert matches(pattern, name) is whether


def slow(pattern, name):
    """The same, by trying everything."""
    if not pattern:
        return not name
    if pattern[0] == "*":
        return any(slow(pattern[1:], name[i:]) for i in range(len(name) + 1))
    return name[:1] == pattern[0] and slow(pattern[1:], name[1:])


@given(NAMES, NAMES)
def test_a_pattern_means_what_trying_everything_finds(pattern, name):
    assert matches(pattern, name) is slow(pattern, name)


def test_no_pattern_is_slow():
    assert not matches("*a" * 90 + "b", "a" * 200)


# --- secrets ------------------------------------------------------------------------------------------------


def test_secrets_are_separated_by_commas_and_line_ends():
    assert secrets_of(f" {SECRET} ,{OTHER}\r\n\n") == [SECRET, OTHER]


@pytest.mark.parametrize("text", ["", ",", "\n", "a" * 31, f"{SECRET},short", "é" * 15], ids=repr)
def test_short_ones_and_none_are_refused_and_not_shown(text):
    with pytest.raises(ValueError, match="secret") as error:
        secrets_of(text)
    assert "a" * 31 not in str(error.value)
    assert "short" not in str(error.value)
    with pytest.raises(ConfigError) as refused:
        Keys(text)
    assert "aaa" not in str(refused.value)


def test_keys_show_nothing():
    assert SECRET not in repr(KEYS) + str(KEYS)
    assert repr(Keys(f"{SECRET},{OTHER}")) == "<2 secrets>"


def test_an_end_that_no_clock_can_show():
    token = jwt.encode({"run": ["r1"], "channel": ["*"], "exp": 10**400}, SECRET, "HS256")
    with pytest.raises(Denied, match="exp"):
        Keys(SECRET).verify(token)
