"""Settings that say who may look: listeners of operators, and the secret of tokens."""

import subprocess
import sys
from itertools import combinations

import pytest

from relay import settings
from relay.errors import ConfigError
from relay.settings import ListenAddress, load

SECRET = "s3cr3t-" + 32 * "x"
ADDRESSES = ("STATUS_LISTEN_ADDR", "PREFLIGHT_LISTEN_ADDR", "RELAY_INTERNAL_ADDR", "RELAY_METRICS_ADDR")


def refusal(env, **more):
    with pytest.raises(ConfigError) as caught:
        load(env=env, **more)
    text = str(caught.value)
    assert "s3cr3t" not in text
    assert "\n" not in text
    return text


def test_operators_have_no_listener_unless_they_ask():
    loaded = load(env={})
    assert (loaded.internal_addr, loaded.metrics_addr, loaded.token_secret) == (None, None, None)
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


# --- the secret ---------------------------------------------------------------------------------------------


def test_a_secret_is_kept_and_not_shown():
    loaded = load(env={"RELAY_TOKEN_SECRET": SECRET})
    assert loaded.token_secret.get_secret_value() == SECRET
    assert "s3cr3t" not in repr(loaded) + str(loaded) + str(settings.describe(loaded)) + loaded.model_dump_json()
    assert ("RELAY_TOKEN_SECRET", "***", "environment") in settings.describe(loaded)
    assert ("RELAY_TOKEN_SECRET", "", "default") in settings.describe(load(env={}))
    assert loaded.warnings == ()


def test_a_file_is_trimmed_and_wins(tmp_path):
    path = tmp_path / "secret"
    path.write_text(f"  {SECRET}\n")
    loaded = load(env={"RELAY_TOKEN_SECRET_FILE": str(path), "RELAY_TOKEN_SECRET": "short"})
    assert loaded.token_secret.get_secret_value() == SECRET
    assert load(flags={"RELAY_TOKEN_SECRET_FILE": str(path)}, env={}).sources["RELAY_TOKEN_SECRET"] == "flag"
    assert loaded.warnings == ()


@pytest.mark.parametrize(
    ("content", "what"),
    [(None, "No such file"), (b"", "empty"), (b" \n\t", "empty"), (b"\xff\xfe", "UTF-8"), (b"s3cr3t", "has 6 bytes")],
)
def test_a_file_that_cannot_serve_stops_the_start(tmp_path, content, what):
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    said = refusal({"RELAY_TOKEN_SECRET_FILE": str(path)})
    assert said.startswith(f"RELAY_TOKEN_SECRET_FILE='{path}': ")
    assert what in said


@pytest.mark.parametrize("text", ["s3cr3t", f"{SECRET},s3cr3t", ",", " "])
def test_a_short_secret_stops_the_start(text):
    assert refusal({"RELAY_TOKEN_SECRET": text}).startswith("RELAY_TOKEN_SECRET='***': ")


def test_the_libraries_of_tokens_are_not_loaded_without_a_secret():
    code = "import sys, relay.server; print([m for m in sys.modules if m.partition('.')[0] in ('jwt', 'cryptography')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
