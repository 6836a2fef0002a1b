import re
import socket
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from relay import settings, values
from relay.errors import ConfigError
from relay.settings import load
from relay.values import ListenAddress, RedisAddress

SECRET = "s3cr3t"


def one(variable, text, **more):
    """The service settings with one variable set."""
    loaded = load(env={variable: text, **more})
    return loaded.status if variable.startswith("STATUS_") else loaded.preflight


def refusal(env, **more):
    """The sentence with which these settings are refused; it must be one, whole, and have no secret."""
    with pytest.raises(ConfigError) as caught:
        load(env=env, **more)
    text = str(caught.value)
    assert SECRET not in text
    assert "\n" not in text
    return text


# Default, least and most (docs/architecture.md, "Bounds").
BOUNDS = {
    "max_head_size": (8192, 1024, 65536),
    "max_headers": (64, 16, 128),
    "max_heads": (1024, 16, 1 << 20),
    "max_fragments": (64, 1, 2**31 - 1),
    "frame_rate": (20, 1, 100_000),
    "frame_burst": (100, 10, 6553),
    "max_inbound": (64 << 20, 1 << 20, 1 << 40),
    "max_backlog": (256 << 10, 4096, 1 << 30),
    "max_live": (256 << 20, 1 << 20, 1 << 40),
    "max_reply_size": (32 << 20, 65536, 1 << 30),
    "max_topics": (100_000, 1, 10_000_000),
}


# --- defaults (contract, section 6) --------------------------------------------------------------------------


def test_defaults():
    loaded = load(env={})
    status, preflight = loaded.services
    assert (status, preflight) == (loaded.status, loaded.preflight)
    assert (status.name, str(status.listen), str(status.redis)) == ("status", ":9002", "redis://localhost:6379/2")
    assert (preflight.name, str(preflight.listen)) == ("preflight", ":9001")
    assert str(preflight.redis) == "redis://localhost:6379/0"
    for service in loaded.services:
        assert (service.ping_interval, service.pong_timeout, service.write_timeout) == (10.0, 75.0, 10.0)
        assert (service.redis_request_timeout, service.redis_max_retries) == (5.0, 0)
        assert (service.redis_retry_base, service.redis_retry_max) == (0.05, 1.0)
        assert (service.log_level, service.allowed_origins, service.metrics_enabled) == ("INFO", (), False)
        assert service.max_message_size == 65536
    assert (loaded.drain, loaded.drain_delay, loaded.max_published_size) == (10.0, 0.0, 1048576)
    assert (loaded.max_connections, loaded.set_keyspace_events, loaded.coalesce_ms) == (None, False, 0)
    assert {name: getattr(loaded, name) for name in BOUNDS} == {
        name: default for name, (default, _, _) in BOUNDS.items()
    }
    assert loaded.head_timeout == 5.0
    assert loaded.warnings == ()


def test_only_the_services_asked_for_are_looked_at():
    loaded = load(("status",), env={"PREFLIGHT_PING_INTERVAL": "broken"})
    assert loaded.preflight is None
    assert loaded.services == (loaded.status,)
    assert load(("preflight",), env={"STATUS_PING_INTERVAL": "broken"}).status is None


def test_frozen_and_closed():
    loaded = load(env={})
    with pytest.raises(ValidationError):
        loaded.drain = 1.0
    with pytest.raises(ValidationError):
        loaded.status.ping_interval = 1.0
    with pytest.raises(ValidationError, match="png_interval"):
        settings.ServiceSettings(name="status", listen=":0", redis=RedisAddress(), png_interval=1.0)


def test_every_variable_of_a_service_and_of_the_process():
    texts = {"LISTEN_ADDR": "h:1", "PING_INTERVAL": "1s", "PONG_TIMEOUT": "2s", "WRITE_TIMEOUT": "3s"}
    texts |= {
        "REDIS_REQUEST_TIMEOUT": "4s",
        "REDIS_RETRY_BASE": "5ms",
        "REDIS_RETRY_MAX": "6s",
        "REDIS_MAX_RETRIES": "7",
    }
    texts |= {"LOG_LEVEL": "debug", "ALLOWED_ORIGINS": "*.a.b", "METRICS_ENABLED": "t", "MAX_MESSAGE_SIZE": "8"}
    texts |= {"REDIS_URL": "redis://r:9/1"}
    env = {f"STATUS_{name}": text for name, text in texts.items()}
    env |= {"RELAY_DRAIN": "1s", "RELAY_DRAIN_DELAY": "2s", "RELAY_MAX_PUBLISHED_SIZE": "3"}
    env |= {"RELAY_MAX_CONNECTIONS": "4", "RELAY_SET_KEYSPACE_EVENTS": "true", "RELAY_COALESCE_MS": "2.5"}
    loaded = load(env=env)
    values = [ListenAddress("tcp", "h", 1), 1.0, 2.0, 3.0, 4.0, 0.005, 6.0, 7, "DEBUG", ("*.a.b",), True, 8]
    fields = [*(name.lower() for name in texts)][1:-1]
    assert [loaded.status.listen, *(getattr(loaded.status, name) for name in fields)] == values
    assert loaded.status.redis == RedisAddress("r", 9, db=1)
    assert loaded.preflight == load(env={}).preflight
    assert (loaded.drain, loaded.drain_delay, loaded.max_published_size, loaded.max_connections) == (1.0, 2.0, 3, 4)
    assert (loaded.set_keyspace_events, loaded.coalesce_ms) == (True, Decimal("2.5"))
    assert loaded.warnings == ()


def test_every_bound_of_the_process():
    env = {f"RELAY_{name.upper()}": str(most - 1) for name, (_, _, most) in BOUNDS.items()}
    loaded = load(env={**env, "RELAY_HEAD_TIMEOUT": "1500ms"})
    assert {name: getattr(loaded, name) for name in BOUNDS} == {name: most - 1 for name, (_, _, most) in BOUNDS.items()}
    assert loaded.head_timeout == 1.5


# --- durations, booleans, numbers, levels --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("1m30s", 90.0),
        ("1.5h", 5400.0),
        ("+1s", 1.0),
        (".5s", 0.5),
        ("1.s", 1.0),
        ("1h1m1s1ms1us1ns", 3661.001001001),
        ("1µs", 1e-6),  # U+00B5
        ("1μs", 1e-6),  # U+03BC
        ("1s1s", 2.0),
        ("10000h", 3.6e7),
    ],
)
def test_duration(text, seconds):
    assert values.parse_duration(text) == seconds
    assert one("STATUS_PING_INTERVAL", text).ping_interval == seconds


@pytest.mark.parametrize("text", ["0", "0s", "+0", "0h0m"])
def test_zero_where_it_makes_sense_and_where_not(text):
    assert load(env={"RELAY_DRAIN": text, "RELAY_DRAIN_DELAY": text}).drain == 0.0
    for name in ("PING_INTERVAL", "PONG_TIMEOUT", "WRITE_TIMEOUT", "REDIS_REQUEST_TIMEOUT", "REDIS_RETRY_BASE"):
        assert f"PREFLIGHT_{name}='{text}': must be longer than 0" in refusal({f"PREFLIGHT_{name}": text})


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("10", "needs a unit"),
        ("1.5", "needs a unit"),
        ("-1s", "negative"),
        ("-0.5s", "negative"),
        ("1 s", "not a duration"),
        (" 1s", "not a duration"),
        ("1s\n", "not a duration"),
        ("1h2", "not a duration"),
        ("1S", "not a duration"),
        ("1d", "not a duration"),
        ("1.2.3s", "not a duration"),
        (".s", "not a duration"),
        ("s", "not a duration"),
        ("1e3s", "not a duration"),
        ("٣s", "not a duration"),
        ("++1s", "not a duration"),
        ("ten", "not a duration"),
        ("2562048h", "292 years"),
        ("10001h", "not be longer than 10000h"),
    ],
)
def test_no_duration(text, what):
    said = refusal({"STATUS_PING_INTERVAL": text})
    assert said.startswith(f"STATUS_PING_INTERVAL={text!r}: ")
    assert what in said
    assert said.endswith("right is for example STATUS_PING_INTERVAL=10s")


@given(st.integers(0, 10**15))
def test_a_duration_is_read_back_from_its_text(nanoseconds):
    seconds = nanoseconds / 10**9
    assert values.parse_duration(values.duration_text(seconds)) == pytest.approx(seconds, abs=1e-9)


def test_duration_text():
    texts = [values.duration_text(seconds) for seconds in (0.0, 0.05, 1.5, 75.0, 3600.0)]
    assert texts == ["0s", "50ms", "1s500ms", "1m15s", "1h"]


@pytest.mark.parametrize("text", ["1", "t", "T", "TRUE", "true", "True"])
def test_true(text):
    assert one("STATUS_METRICS_ENABLED", text).metrics_enabled is True


@pytest.mark.parametrize("text", ["0", "f", "F", "FALSE", "false", "False"])
def test_false(text):
    assert one("STATUS_METRICS_ENABLED", text).metrics_enabled is False


@pytest.mark.parametrize("text", ["yes", "on", "tRUE", "2", " true", "enabled"])
def test_no_boolean(text):
    said = refusal({"RELAY_SET_KEYSPACE_EVENTS": text})
    assert said.startswith(f"RELAY_SET_KEYSPACE_EVENTS={text!r}: is neither true")
    assert said.endswith("RELAY_SET_KEYSPACE_EVENTS=true")


FITTING = {"RELAY_MAX_REPLY_SIZE": str(1 << 30)}


@pytest.mark.parametrize(
    ("variable", "low", "high"),
    [
        ("STATUS_REDIS_MAX_RETRIES", 0, 2**31 - 1),
        ("STATUS_MAX_MESSAGE_SIZE", 1, 32 << 20),
        ("RELAY_MAX_PUBLISHED_SIZE", 1, 32 << 20),
        ("RELAY_MAX_CONNECTIONS", 1, 2**31 - 1),
        *((f"RELAY_{name.upper()}", low, high) for name, (_, low, high) in BOUNDS.items()),
    ],
)
def test_whole_numbers(variable, low, high):
    for text in (str(low), str(high), f"0{high}"):
        more = {"RELAY_MAX_REPLY_SIZE": text, "RELAY_MAX_PUBLISHED_SIZE": "1"}
        load(env={variable: text} | (more if variable == "RELAY_MAX_REPLY_SIZE" else FITTING))
    for text in (str(low - 1), str(high + 1), "1e3", "1_0", "+1", "64k", "0x10", " 1", "²", "9" * 5000):
        said = refusal({variable: text})
        assert re.match(rf"{variable}='.*: is not a whole number from {low} to {high}.*{variable}=\d+$", said)


@pytest.mark.parametrize("text", ["0", "0.0", "0.25", "20", "1000", "1000.000"])
def test_milliseconds(text):
    loaded = load(env={"RELAY_COALESCE_MS": text})
    assert ("RELAY_COALESCE_MS", text, "environment") in settings.describe(loaded)
    assert ("RELAY_COALESCE_MS", "0", "default") in settings.describe(load(env={}))


@pytest.mark.parametrize("text", ["1000.1", "1001", "-1", "+1", "5ms", "1e2", ".5", "1.", "1,5", " 1", "inf", "²"])
def test_no_milliseconds(text):
    said = refusal({"RELAY_COALESCE_MS": text})
    assert said.startswith(f"RELAY_COALESCE_MS={text!r}: is not a number of milliseconds from 0 to 1000")
    assert said.endswith("RELAY_COALESCE_MS=20")


@pytest.mark.parametrize(
    ("text", "level"),
    [("debug", "DEBUG"), ("Info", "INFO"), ("WARN", "WARNING"), ("warning", "WARNING"), ("ERROR", "ERROR")],
)
def test_log_level(text, level):
    assert one("PREFLIGHT_LOG_LEVEL", text).log_level == level


def test_no_log_level():
    assert "debug, info, warn, warning, error" in refusal({"STATUS_LOG_LEVEL": "loud"})


# --- origins -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("", ()),
        ("https://wepp.cloud", ("https://wepp.cloud",)),
        ("https://Wepp.Cloud , *.Example.ORG", ("https://wepp.cloud", "*.example.org")),
        ("http://localhost:8080,https://[::1]:8443", ("http://localhost:8080", "https://[::1]:8443")),
        ("https://a:443,http://a:80,https://a:80", ("https://a", "http://a", "https://a:80")),  # as browsers send them
    ],
)
def test_origins(text, origins):
    assert load(flags={"STATUS_ALLOWED_ORIGINS": text}, env={}).status.allowed_origins == origins


@pytest.mark.parametrize(
    "text",
    [
        "*",
        "wepp.cloud",
        "https://a/",
        "https://a/b",
        "https://a,,https://b",
        "https://a,",
        "https://*.a.b",
        "null",
        "ftp://a",
        "https://u@a",
        "https://a:0",
        "https://a:65536",
        "*.a/b",
        "*.",
        "*a.b",
        "a.*",
        "https://a b",
        "*.a.b.",
        "https://",
        "https://[::1",
        "https://1.2.3",
        "https://bücher.de",
    ],
)
def test_no_origin(text):
    said = refusal({"STATUS_ALLOWED_ORIGINS": text})
    assert "is no origin: https://host, https://host:port or *.domain" in said
    assert said.endswith("STATUS_ALLOWED_ORIGINS=https://wepp.cloud")


# --- listen addresses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":9002", ListenAddress("tcp", "", 9002)),
        ("127.0.0.1:9002", ListenAddress("tcp", "127.0.0.1", 9002)),
        ("wepp1.example:0", ListenAddress("tcp", "wepp1.example", 0)),
        ("[::1]:65535", ListenAddress("tcp", "::1", 65535)),
        ("[fe80::1%eth0]:1", ListenAddress("tcp", "fe80::1%eth0", 1)),
        ("unix:/run/relay/status.sock", ListenAddress("unix", path="/run/relay/status.sock")),
        ("fd:3", ListenAddress("fd", fd=3)),
    ],
)
def test_listen_address(text, address):
    assert one("STATUS_LISTEN_ADDR", text).listen == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "9002",
        "localhost",
        "::1:9002",
        "[::1]",
        "[::1]9002",
        "[]:1",
        "[localhost]:1",
        ":65536",
        ":http",
        ":-1",
        ": 1",
        "a b:1",
        "256.1.1.1:80",
        "http://a:1",
        "a:1/x",
        "*:9002",
        "unix:rel",
        "unix:",
        "unix:/" + "x" * 107,
        "fd:",
        "fd:-1",
        "fd:x",
        "-a:1",
        "[1.2.3.4]:1",
        ":99999",
        "٣:1",
        ":٣",
    ],
)
def test_no_listen_address(text):
    said = refusal({"PREFLIGHT_LISTEN_ADDR": text})
    assert said.startswith(f"PREFLIGHT_LISTEN_ADDR={text!r}: ")
    assert said.endswith("PREFLIGHT_LISTEN_ADDR=:9002")


def test_a_socket_path_that_is_accepted_can_be_bound(tmp_path):
    for length in (107, 108):
        path = f"{tmp_path}/".ljust(length, "x")
        with socket.socket(socket.AF_UNIX) as server:
            if length == 107:
                assert ListenAddress.parse(f"unix:{path}").path == path
                server.bind(path)
            else:
                assert "107 bytes" in refusal({"STATUS_LISTEN_ADDR": f"unix:{path}"})
                with pytest.raises(OSError, match="too long"):
                    server.bind(path)


def test_all_mistakes_are_told_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(
            env={
                "REDIS_URL": "http://wepp1",
                "STATUS_PING_INTERVAL": "soon",
                "STATUS_PONG_TIMEOUT": "75",
                "PREFLIGHT_LISTEN_ADDR": "9001",
                "RELAY_DRAIN": "long",
                "RELAY_TOKEN_SECRET_FILE": str(tmp_path / "gone"),
            }
        )
    assert [line.partition("=")[0] for line in str(caught.value).splitlines()] == [
        "REDIS_URL", "STATUS_PING_INTERVAL", "STATUS_PONG_TIMEOUT", "PREFLIGHT_LISTEN_ADDR", "RELAY_TOKEN_SECRET_FILE",
        "RELAY_DRAIN"]  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        load(env={"RELAY_PROXY_PROTOCOL": "true", "RELAY_PUBLISH": "true"})
    assert [line.split()[0] for line in str(caught.value).splitlines()] == ["RELAY_PROXY_PROTOCOL", "RELAY_PUBLISH"]


def test_two_services_on_one_address_are_refused():
    for text in (":9001", "unix:/run/a.sock", "fd:3"):
        said = refusal({"STATUS_LISTEN_ADDR": text, "PREFLIGHT_LISTEN_ADDR": text})
        assert said.startswith(f"STATUS_LISTEN_ADDR and PREFLIGHT_LISTEN_ADDR are both {text}")
    load(env={"STATUS_LISTEN_ADDR": ":0", "PREFLIGHT_LISTEN_ADDR": ":0"})
    load(env={"STATUS_LISTEN_ADDR": "127.0.0.1:9001", "PREFLIGHT_LISTEN_ADDR": "127.0.0.2:9001"})


@pytest.mark.parametrize("text", [":9001", "0.0.0.0:9001", "[::]:9001"])
def test_all_addresses_of_a_port_are_the_ones_of_another_service_too(text):
    said = refusal({"STATUS_LISTEN_ADDR": text, "PREFLIGHT_LISTEN_ADDR": "127.0.0.1:9001"})
    assert said.startswith(f"STATUS_LISTEN_ADDR and PREFLIGHT_LISTEN_ADDR share a port, {text} and 127.0.0.1:9001: ")


@pytest.mark.parametrize("name", ["REDIS_PASSWORD", "REDIS_URL", "STATUS_REDIS_PASSWORD", "RELAY_TOKEN_SECRET"])
def test_what_is_no_utf_8_is_refused_and_not_shown(name):
    said = refusal({name: "redis://:p\udcffw@h"})
    assert said.startswith(f"{name} is no UTF-8 text: ")
    assert "w@h" not in said
    load(("status",), env={"STATUS_LISTEN_ADDR": ":9001"})


# --- Redis ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://wepp1", RedisAddress("wepp1", 6379)),
        ("redis://wepp1:6380/", RedisAddress("wepp1", 6380)),
        ("REDIS://[::1]:1", RedisAddress("::1", 1)),
        ("redis://", RedisAddress()),
        ("redis://:pw@h", RedisAddress("h", password="pw")),
        ("redis://relay:p%40ss%2F%23@h/4", RedisAddress("h", username="relay", password="p@ss/#")),
        ("redis://:p@ss@h", RedisAddress("h", password="p@ss")),
        ("redis://relay@h", RedisAddress("h", username="relay")),
        ("redis://h?username=u&password=p&db=3", RedisAddress("h", username="u", password="p")),
        ("rediss://h", RedisAddress("h", tls=True)),
        ("rediss://h?ssl_cert_reqs=none", RedisAddress("h", tls=True, ssl_cert_reqs="none", ssl_check_hostname=False)),
        ("rediss://h?ssl_check_hostname=false", RedisAddress("h", tls=True, ssl_check_hostname=False)),
        ("unix:///run/redis.sock?db=5", RedisAddress(path="/run/redis.sock")),
        ("unix://u:p@/run/a,b.sock", RedisAddress(path="/run/a,b.sock", username="u", password="p")),
    ],
)
def test_redis_url(url, address):
    assert load(env={"REDIS_URL": url}).preflight.redis == address


def test_tls_files_are_checked(tmp_path):
    ca = tmp_path / "ca.pem"
    ca.touch()
    url = f"rediss://h/0?ssl_ca_certs={ca}&ssl_certfile={ca}&ssl_keyfile={ca}"
    address = load(env={"REDIS_URL": url}).preflight.redis
    assert (address.ssl_ca_certs, address.ssl_certfile, address.ssl_keyfile) == (str(ca),) * 3
    assert "cannot be read" in refusal({"REDIS_URL": f"rediss://h?ssl_ca_certs={ca}.no"})
    assert "without its ssl_certfile" in refusal({"REDIS_URL": f"rediss://h?ssl_keyfile={ca}"})


def test_the_database_of_the_shared_url_is_replaced_and_of_the_services_own_kept():
    loaded = load(env={"REDIS_URL": "redis://h/9"})
    assert (loaded.status.redis.db, loaded.preflight.redis.db) == (2, 0)
    loaded = load(
        env={"STATUS_REDIS_URL": "redis://h/9", "PREFLIGHT_REDIS_URL": "redis://h", "REDIS_URL": "redis://no"}
    )
    assert [(service.redis.host, service.redis.db) for service in loaded.services] == [("h", 9), ("h", 0)]
    assert load(env={"STATUS_REDIS_URL": "unix:///r.sock?db=4"}).status.redis.db == 4


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("http://h", "must start with redis://, rediss:// (TLS) or unix://"),
        ("wepp1:6379", "must start with"),
        (f"u:{SECRET}@h:6379", "must start with"),
        ("redis://h:port", "malformed host, port"),
        ("redis://h:65536", "malformed host, port"),
        ("redis://h:0", "no usable host and port"),
        ("redis://300.1.1.1", "no usable host and port"),
        ("redis://h/x", "other than a database number"),
        ("redis://h/0/1", "other than a database number"),
        ("redis://h ", "spaces or control"),
        (f"redis://:{SECRET} x@h", "spaces or control"),
        (f"redis://:{SECRET}\n@h", "spaces or control"),
        (f"redis://:{SECRET}/x@h", "in a password / ? # are %2F"),
        (f"redis://:x/{SECRET}@h", "in a password / ? # are %2F"),
        (f"redis://:x#{SECRET}@h", "in a password / ? # are %2F"),
        (f"redis://:12#{SECRET}@h", "in a password"),
        (f"redis://:12/{SECRET}@h", "in a password"),
        (f"redis://:12?{SECRET}@h", "in a password"),
        (f"redis://:12?{SECRET}=1@h", "in a password"),
        (f"redis://:{SECRET}://x@h:y", "in a password"),
        (f"redis://:{SECRET}", "malformed host, port"),
        (f"redis://h?password={SECRET}&foo=1", "'foo'"),
        ("redis://h?ssl_ca_cert=x", "'ssl_ca_cert'"),
        ("redis://h?ssl_cert_reqs=none", "needs rediss://"),
        ("rediss://h?ssl_cert_reqs=maybe", "none, optional, required"),
        ("rediss://h?ssl_check_hostname=maybe", "neither true"),
        ("rediss://h?ssl_cert_reqs=none&ssl_check_hostname=true", "without a certificate"),
        ("unix://run/redis.sock", "three slashes"),
        ("unix://", "absolute path"),
        (f"redis+sentinel://:{SECRET}@h/mymaster/0", "cluster or Sentinel"),
        ("redis+cluster://h", "cluster or Sentinel"),
        (f"redis://:{SECRET}@a:1,b:2", "cluster or Sentinel"),
    ],
)
def test_no_redis_url(url, what):
    for variable in ("REDIS_URL", "STATUS_REDIS_URL"):
        said = refusal({variable: url})
        assert said.startswith(f"{variable}='")
        assert what in said
        db = "" if variable == "REDIS_URL" else "/2"  # all services share it, and each has its own database
        assert said.endswith(f"right is for example {variable}=redis://localhost:6379{db}")


def test_what_is_shown_of_a_malformed_url_helps():
    assert "REDIS_URL='redis://***@wepp1:port': " in refusal({"REDIS_URL": f"redis://u:{SECRET}@wepp1:port"})
    assert "REDIS_URL='wepp1:6379': " in refusal({"REDIS_URL": "wepp1:6379"})


def test_host_and_port():
    address = load(env={"REDIS_HOST": "wepp1", "REDIS_PORT": "6380"}).status.redis
    assert address == RedisAddress("wepp1", 6380, db=2)
    assert load(env={"REDIS_HOST": "::1"}).status.redis == RedisAddress("::1", 6379, db=2)
    assert load(env={"REDIS_PORT": "7"}).preflight.redis == RedisAddress("localhost", 7)
    assert "the port goes into REDIS_PORT" in refusal({"REDIS_HOST": "wepp1:6380"})
    for text in ("tcp://10.0.0.1:6379", "0", "65536"):
        assert f"REDIS_PORT='{text}': is not a whole number" in refusal({"REDIS_PORT": text})
    # Kubernetes' REDIS_PORT=tcp://... beside a URL is nobody's business
    assert load(env={"REDIS_URL": "redis://h", "REDIS_PORT": "tcp://10.0.0.1:6379"}).status.redis.host == "h"


SPECIAL = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(SPECIAL, st.none() | SPECIAL)
def test_a_password_survives_its_url_and_is_never_shown(password, username):
    for path in (None, "/run/a b.sock"):
        address = RedisAddress(path=path, username=username, password=password)
        assert RedisAddress.parse(address.url(), 0) == address
    hidden = RedisAddress(password=f"{SECRET}{password}")
    assert SECRET not in repr(hidden)
    assert SECRET not in str(hidden)


# --- the password's precedence -------------------------------------------------------------------------------


def test_password_order(tmp_path):
    for name in ("own", "shared"):
        (tmp_path / name).write_text(f"\n  of the {name} file \n")
    env = {
        "STATUS_REDIS_URL": "redis://:of%20the%20url@h",
        "STATUS_REDIS_PASSWORD_FILE": str(tmp_path / "own"),
        "REDIS_PASSWORD_FILE": str(tmp_path / "shared"),
        "STATUS_REDIS_PASSWORD": "own",
        "REDIS_PASSWORD": "shared",
    }
    for expected in ("of the url", "of the own file", "of the shared file", "own", "shared"):
        assert load(env=env).status.redis.password == expected
        del env[next(iter(env))]
    assert load(env=env).status.redis.password is None


def test_password_of_one_service_is_not_the_others(tmp_path):
    loaded = load(env={"STATUS_REDIS_PASSWORD": "s", "REDIS_URL": "redis://relay@h"})
    assert (loaded.status.redis.username, loaded.status.redis.password) == ("relay", "s")
    assert loaded.preflight.redis.password is None


@pytest.mark.parametrize(
    ("content", "what"), [(None, "No such file"), (b"", "empty"), (b" \n\t", "empty"), (b"\xff\xfe", "UTF-8")]
)
def test_a_password_file_that_cannot_serve_stops_the_start(tmp_path, content, what):
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
    for variable in ("REDIS_PASSWORD_FILE", "PREFLIGHT_REDIS_PASSWORD_FILE"):
        said = refusal({variable: str(path), "REDIS_PASSWORD": SECRET})
        assert said.startswith(f"{variable}='{path}': ")
        assert what in said
    assert "Is a directory" in refusal({"REDIS_PASSWORD_FILE": str(tmp_path)})


# --- sources -------------------------------------------------------------------------------------------------


@pytest.fixture
def env_file(tmp_path):
    def write(text):
        path = tmp_path / "relay.env"
        path.write_text(text)
        return path

    return write


def test_flags_over_environment_over_file(env_file):
    path = env_file(
        "export STATUS_PING_INTERVAL=3s # slow\nSTATUS_PONG_TIMEOUT='33s'\n\n# no\nSTATUS_WRITE_TIMEOUT=\"4s\"\n"
    )
    flags = {"STATUS_PING_INTERVAL": "1s"}
    env = {"STATUS_PING_INTERVAL": "2s", "STATUS_PONG_TIMEOUT": "22s"}
    status = load(flags=flags, env=env, env_file=path).status
    assert (status.ping_interval, status.pong_timeout, status.write_timeout) == (1.0, 22.0, 4.0)


def test_the_strongest_source_of_an_address_decides(env_file):
    path = env_file("REDIS_URL=redis://file\nREDIS_PASSWORD_FILE=/nope\n")
    env = {"STATUS_REDIS_URL": "redis://env", "REDIS_PASSWORD": "env"}
    loaded = load(flags={"REDIS_URL": "redis://flag"}, env=env, env_file=path)
    assert [(s.redis.host, s.redis.password) for s in loaded.services] == [("flag", "env"), ("flag", "env")]
    loaded = load(env=env, env_file=path)
    assert [s.redis.host for s in loaded.services] == ["env", "file"]
    assert load(env={"REDIS_HOST": "host", "REDIS_PASSWORD": "x"}, env_file=path).status.redis.host == "host"


def test_the_process_environment_is_the_default(monkeypatch):
    monkeypatch.setenv("STATUS_PING_INTERVAL", "7s")
    assert load().status.ping_interval == 7.0
    assert load(env={}).status.ping_interval == 10.0


def test_empty_is_not_set_but_an_empty_flag_is_meant(env_file):
    env = {"STATUS_PING_INTERVAL": "", "REDIS_URL": "", "REDIS_HOST": "h", "REDIS_PASSWORD": ""}
    status = load(env=env, env_file=env_file("STATUS_PING_INTERVAL=\n")).status
    assert (status.ping_interval, status.redis) == (10.0, RedisAddress("h", db=2))
    assert "STATUS_PING_INTERVAL='' on the command line: " in refusal({}, flags={"STATUS_PING_INTERVAL": ""})
    loaded = load(env={"STATUS_ALLOWED_ORIGINS": "https://a"}, flags={"STATUS_ALLOWED_ORIGINS": ""})
    assert loaded.status.allowed_origins == ()


def test_the_sentence_says_where_the_value_stands(env_file):
    path = env_file("STATUS_PING_INTERVAL=x\n")
    assert refusal({}, env_file=path).startswith("STATUS_PING_INTERVAL='x' in the settings file: ")
    assert refusal({}, flags={"RELAY_DRAIN": "x"}).startswith("RELAY_DRAIN='x' on the command line: ")


def test_a_settings_file_that_cannot_be_read(env_file, tmp_path):
    assert "No such file" in refusal({}, env_file=tmp_path / "none")
    path = env_file("")
    path.write_bytes(b"\xff")
    assert "no UTF-8 text" in refusal({}, env_file=path)
    for text in (
        f"A=1\nREDIS_PASSWORD {SECRET}\n",
        f"A=1\nREDIS_PASSWORD_{SECRET}\n",
        f"A=1\nREDIS_PASSWORD='{SECRET}\n",
    ):
        assert f"{path}, line 2 is not NAME=value" in refusal({}, env_file=env_file(text))


# --- warnings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("STATUS_PING_INTREVAL", "STATUS_PING_INTERVAL"),
        ("STATUS_LISTEN_ADDRESS", "STATUS_LISTEN_ADDR"),
        ("status_listen_addr", "STATUS_LISTEN_ADDR"),
        ("PREFLIGHT_ALLOWED_ORIGIN", "PREFLIGHT_ALLOWED_ORIGINS"),
        ("RELAY_MAX_CONECTIONS", "RELAY_MAX_CONNECTIONS"),
        ("REDIS_URI", "REDIS_URL"),
        ("REDIS_PASSWD", "REDIS_PASSWORD"),
        ("REDIS_HOSTS", "REDIS_HOST"),
    ],
)
def test_a_typo_is_warned_of_with_the_right_name(name, right, env_file):
    sentence = f"{name} is not a setting and has no effect; did you mean {right}?"
    assert load(env={name: SECRET}).warnings == (sentence,)
    assert load(env={}, env_file=env_file(f"{name}={SECRET}\n")).warnings == (sentence,)


def test_a_stranger_is_warned_of_too():
    (sentence,) = load(env={"RELAY_XYZZY": SECRET}).warnings
    assert sentence == "RELAY_XYZZY is not a setting and has no effect; `relay config show` lists all settings"


def test_nobody_elses_variables_are_warned_of():
    env = {"REDIS_SENTINEL_MASTER": "x", "PATH": "x", "RELAYS_X": "x", "STATUS": "x", "RELAY_TEST_REQUIRE": "all"}
    env |= {"RELAY_BUILD": "debug", "RELAY_REQUIRE_CORE": "1", "MYSTATUS_PING": "1"}
    assert load(env=env).warnings == ()


def test_a_timeout_that_cannot_be_met_is_warned_of():
    (sentence,) = load(env={"STATUS_PONG_TIMEOUT": "10s"}).warnings
    assert sentence.startswith("STATUS_PONG_TIMEOUT=10s is not longer than STATUS_PING_INTERVAL=10s: ")
    assert load(env={"STATUS_PONG_TIMEOUT": "11s"}).warnings == ()


def test_a_message_that_could_not_come_is_refused():
    said = refusal({"RELAY_MAX_PUBLISHED_SIZE": str(32 << 20)})
    assert said.startswith("RELAY_MAX_PUBLISHED_SIZE=33554432 does not fit into RELAY_MAX_REPLY_SIZE=33554432 ")
    assert load(env={"RELAY_MAX_PUBLISHED_SIZE": "61440", "RELAY_MAX_REPLY_SIZE": "65536"}).warnings == ()


@pytest.mark.parametrize(
    ("env", "start"),
    [
        (
            {"RELAY_FRAME_RATE": "1", "STATUS_PING_INTERVAL": "1s"},
            "RELAY_FRAME_RATE=1 is less than the two pongs with which a client may answer each STATUS_PING_INTERVAL",
        ),
        (
            {"STATUS_MAX_MESSAGE_SIZE": "600000", "RELAY_MAX_INBOUND": "1048576"},
            "STATUS_MAX_MESSAGE_SIZE=600000 is more ",
        ),
        ({"RELAY_MAX_LIVE": "1048576"}, "RELAY_MAX_LIVE=1048576 is less than one message "),
    ],
)
def test_bounds_that_do_not_go_together_are_warned_of(env, start):
    (sentence,) = load(env=env).warnings
    assert sentence.startswith(start)


@pytest.mark.parametrize("text", ["999ms", "0", "10m1s"])
def test_a_head_has_its_time(text):
    assert "is not from 1s to 10m" in refusal({"RELAY_HEAD_TIMEOUT": text})


# --- describe ------------------------------------------------------------------------------------------------


def test_describe(env_file):
    env = {"REDIS_URL": f"redis://relay:{SECRET}@h", "STATUS_ALLOWED_ORIGINS": "https://a,*.b.c"}
    loaded = load(
        flags={"STATUS_PING_INTERVAL": "1m30s"},
        env=env,
        env_file=env_file("RELAY_MAX_CONNECTIONS=5\nPREFLIGHT_METRICS_ENABLED=1\n"),
    )
    rows = settings.describe(loaded)
    told = {name: (text, source) for name, text, source in rows}
    assert len(told) == len(rows) == 2 * 14 + 18 + len(BOUNDS)
    assert told["STATUS_PING_INTERVAL"] == ("1m30s", "flag")
    assert told["STATUS_ALLOWED_ORIGINS"] == ("https://a,*.b.c", "environment")
    assert told["STATUS_REDIS_URL"] == ("redis://relay:***@h:6379/2", "environment")
    assert told["STATUS_REDIS_PASSWORD"] == ("***", "environment")
    assert told["PREFLIGHT_METRICS_ENABLED"] == ("true", "file")
    assert told["RELAY_MAX_CONNECTIONS"] == ("5", "file")
    assert told["STATUS_LISTEN_ADDR"] == (":9002", "default")
    assert told["RELAY_DRAIN"] == ("10s", "default")
    assert SECRET not in repr((rows, loaded))


def test_described_settings_can_be_loaded_again():
    rows = settings.describe(load(env={"STATUS_PING_INTERVAL": "1.5s", "STATUS_LISTEN_ADDR": "[::1]:1"}))
    again = load(env={name: text for name, text, _ in rows})
    assert again.warnings == ()
    assert [row[:2] for row in settings.describe(again)] == [row[:2] for row in rows]


@pytest.mark.parametrize(("text", "count"), [("1", 1), ("64", 64)])
def test_workers(text, count):
    assert load(env={"RELAY_WORKERS": text}).workers == count


def test_workers_auto_are_the_processors(monkeypatch):
    monkeypatch.setattr(values, "processors", lambda: 3)
    assert load(env={"RELAY_WORKERS": "auto"}).workers == 3


@pytest.mark.parametrize("text", ["0", "65", "many", "-1", "1.5"])
def test_workers_that_are_none(text):
    with pytest.raises(ConfigError, match="RELAY_WORKERS"):
        load(env={"RELAY_WORKERS": text})


@pytest.mark.parametrize(("quota", "count"), [("max 100000", 8), ("150000 100000", 2), ("50000 100000", 1), ("", 8)])
def test_processors_are_no_more_than_the_container_may_use(monkeypatch, tmp_path, quota, count):
    monkeypatch.setattr(values.os, "sched_getaffinity", lambda pid: set(range(8)))
    (tmp_path / "cpu.max").write_text(quota)
    assert values.processors(tmp_path / "cpu.max") == count
    assert values.processors(tmp_path / "absent") == 8
