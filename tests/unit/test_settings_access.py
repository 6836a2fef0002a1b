"""Settings that say who may look: listeners of operators."""

from itertools import combinations

import pytest

from relay.errors import ConfigError
from relay.settings import ListenAddress, load

ADDRESSES = ("STATUS_LISTEN_ADDR", "PREFLIGHT_LISTEN_ADDR", "RELAY_INTERNAL_ADDR", "RELAY_METRICS_ADDR")


def refusal(env, **more):
    with pytest.raises(ConfigError) as caught:
        load(env=env, **more)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_operators_have_no_listener_unless_they_ask():
    loaded = load(env={})
    assert (loaded.internal_addr, loaded.metrics_addr) == (None, None)
    assert set(loaded.addresses) == {"STATUS_LISTEN_ADDR", "PREFLIGHT_LISTEN_ADDR"}


def test_their_addresses_are_as_those_of_the_services():
    loaded = load(env={"RELAY_INTERNAL_ADDR": "unix:/run/relay/internal.sock", "RELAY_METRICS_ADDR": "[::1]:9090"})
    assert loaded.internal_addr == ListenAddress("unix", path="/run/relay/internal.sock")
    assert loaded.metrics_addr == ListenAddress("tcp", host="::1", port=9090)
    assert refusal({"RELAY_INTERNAL_ADDR": "here"}).startswith("RELAY_INTERNAL_ADDR='here': is not host:port")


@pytest.mark.parametrize(("one", "other"), list(combinations(ADDRESSES, 2)))
@pytest.mark.parametrize("text", ["127.0.0.1:9009", "unix:/run/a.sock", "fd:3"])
def test_no_two_listen_on_one_address(one, other, text):
    said = refusal({one: text, other: text})
    assert said.startswith(f"{one} and {other} are both {text}: give each an address of its own")


def test_free_ports_are_never_the_same():
    load(env=dict.fromkeys(ADDRESSES, "127.0.0.1:0"))


def test_the_address_of_a_service_that_is_not_served_is_free():
    load(("status",), env={"RELAY_INTERNAL_ADDR": ":9001"})
