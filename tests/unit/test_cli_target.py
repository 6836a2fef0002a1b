import click
import pytest

from relay.cli.target import Target, address, parse


@pytest.mark.parametrize(
    ("text", "target", "path"),
    [
        ("run1:wepp", Target("run1", "wepp"), "run1:wepp"),
        ("batch;;a b;;r:soils", Target("batch;;a b;;r", "soils"), "batch%3B%3Ba%20b%3B%3Br:soils"),
        ("a/b:c?d", Target("a/b", "c?d"), "a%2Fb:c%3Fd"),
    ],
)
def test_parse(text, target, path):
    parsed = parse(None, None, text)
    assert parsed == target
    assert str(parsed) == text
    assert parsed.path() == path


@pytest.mark.parametrize("text", ["", ":", "run1", "run1:", ":wepp", "run1:a:b"])
def test_what_is_no_run_and_channel(text):
    with pytest.raises(click.BadParameter, match=r"as in run1:wepp"):
        parse(None, None, text)


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("ws://localhost:9002", "ws://localhost:9002/r:c"),
        ("ws://localhost:9002/", "ws://localhost:9002/r:c"),
        ("http://h", "ws://h/r:c"),
        ("https://h/relay/status/", "wss://h/relay/status/r:c"),
        ("wss://[::1]:1", "wss://[::1]:1/r:c"),
    ],
)
def test_address(base, url):
    assert address(base, "r:c") == url


@pytest.mark.parametrize(
    "base",
    [
        "localhost:9002",
        "ftp://h",
        "ws://",
        "",
        "http:/h",
        "ws://h:port",
        "ws://h:0",
        "ws://:9002",
        "ws://[",
        "ws://u@h",
    ],
)
def test_what_is_no_address(base):
    with pytest.raises(click.UsageError, match="not an address such as ws://localhost:9002"):
        address(base, "r:c")


@pytest.mark.parametrize("base", ["ws://h/?token=s3cret", "ws://h#x"])
def test_a_token_is_not_dropped_in_silence(base):
    with pytest.raises(click.UsageError, match="a token is given by --token or RELAY_TOKEN") as raised:
        address(base, "r:c")
    assert "s3cret" not in str(raised.value)


def test_a_password_is_not_repeated():
    with pytest.raises(click.UsageError) as raised:
        address("ws://user:s3cret@h:port", "r:c")
    assert str(raised.value).startswith("--url ws://***@h:port: not an address")
