import click
import pytest

from relay.cli import bench_scenarios
from relay.cli.bench_scenarios import Scenario
from relay.errors import ConfigError

GOOD = 'about = "x"\nclients = 10\ntopics = 2\nmessages = 5\n'


def scenario(**more):
    return Scenario(**{"name": "s", "about": "", "clients": 10, "topics": 2, "messages": 5, "window": 1, **more})


def test_those_that_come_with_the_relay():
    found = bench_scenarios.load(None)
    assert list(found) == [
        *("quick", "hot", "single", "unicast", "mixed", "connect", "latency", "idle"),
        *("size-16", "size-100", "size-1k", "size-16k", "size-256k", "escapes", "accents"),
        *("stalled", "streams", "both"),
    ]
    for one in found.values():
        assert one.about.endswith(".")
        assert one.window * one.size <= 128 << 10 or one.window == 1
    assert (found["quick"].clients, found["quick"].topics, found["quick"].window) == (300, 30, 64)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[hot\n", "no TOML: "),
        ("", "no scenario in it"),
        ("hot = 1\n", "[hot]: a value, where each scenario is a table"),
        (f"[hot]\n{GOOD}windw = 1\n", "[hot]: windw: unknown; there are about, clients"),
        (f"[hot]\n{GOOD}window = 'many'\n", "[hot]: window = 'many': should be int"),
        (f"[hot]\n{GOOD}window = true\n", "[hot]: window = True: should be int"),
        ("[hot]\nwindow = 1\n", "[hot]: about, clients, topics missing"),
        (f"[hot]\n{GOOD}", "[hot]: either a window (closed loop) or a rate (open loop)"),
        (f"[hot]\n{GOOD}window = 1\nrate = 1\n", "[hot]: either a window (closed loop) or a rate (open loop)"),
        (f"[hot]\n{GOOD}window = 1\nsize = 15\n", "[hot]: size = 15: from 16 to 8388608 bytes"),
        (f"[hot]\n{GOOD}window = -1\n", "[hot]: window = -1: at least 0"),
        (f"[hot]\n{GOOD}window = 1\nseconds = 1\n", "[hot]: either a number of messages or a duration"),
        (f"[hot]\n{GOOD}window = 1\nstalled = 10\n", "[hot]: stalled = 10: fewer than the 10 clients"),
        (f"[hot]\n{GOOD}window = 1\nstreams = 11\n", "[hot]: streams = 11: of 10 clients"),
        (f"[hot]\n{GOOD}window = 1\ntext = 'rot13'\n", "[hot]: text = 'rot13': plain, escapes, accents"),
        (f"[hot]\n{GOOD}window = 1\ntopics = 3\n", "no TOML: "),  # twice the same key
    ],
)
def test_a_malformed_file_is_told_where(tmp_path, text, said):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        bench_scenarios.load(path)
    assert str(error.value).startswith(f"--scenarios {path}")
    assert said in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.toml: No such file"):
        bench_scenarios.load(tmp_path / "gone.toml")


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(f"[b]\n{GOOD}rate = 2\n[a]\n{GOOD}window = 3\nrest = 0.5\n")
    assert bench_scenarios.load(path) == {
        "b": Scenario("b", "x", 10, 2, 5, rate=2),
        "a": Scenario("a", "x", 10, 2, 5, window=3, rest=0.5),
    }


def test_choosing_by_name():
    known = {name: scenario(name=name) for name in "abc"}
    assert bench_scenarios.choose(known, "c, a") == [known["c"], known["a"]]
    assert bench_scenarios.choose(known, "all") == list(known.values())
    with pytest.raises(click.UsageError, match="--scenario d: there is none; there are a, b, c, and all"):
        bench_scenarios.choose(known, "a,d")


def test_what_is_said_takes_the_place_of_what_excludes_it():
    assert bench_scenarios.change(scenario(), {"rate": 5.0}) == scenario(window=0, rate=5.0)
    assert bench_scenarios.change(scenario(window=0, rate=5.0), {"window": 2}) == scenario(window=2)
    assert bench_scenarios.change(scenario(), {"seconds": 3.0, "size": None}) == scenario(messages=0, seconds=3.0)
    assert bench_scenarios.change(scenario(), {"clients": 4, "topics": 3}) == scenario(clients=4, topics=3)


def test_a_change_that_makes_no_load_is_a_usage_error():
    with pytest.raises(click.UsageError, match="scenario s: size = 3"):
        bench_scenarios.change(scenario(), {"size": 3})


def test_channels_follow_the_clients():
    """A scenario stays what it is: a sweep that changed the clients of a channel, too, would show neither's cost."""
    assert scenario(clients=10, topics=10).with_clients(300).topics == 300
    assert scenario(clients=10, topics=2).with_clients(300).topics == 60
    assert scenario(clients=10, topics=5).with_clients(3).topics == 2
    assert scenario(clients=1000, topics=1).with_clients(3).topics == 1


def test_event_streams_keep_their_share():
    assert scenario(clients=10, topics=1, streams=10).with_clients(300).streams == 300
    assert scenario(clients=10, topics=1, streams=4).with_clients(300).streams == 120


def test_what_was_changed_is_said_beside_what_a_scenario_is():
    before = scenario(about="Ten clients.", clients=10, topics=5)
    assert bench_scenarios.change(before, {"clients": 20}).about == "Ten clients. Changed: clients 20, topics 10."
    assert bench_scenarios.change(before, {"clients": 10}).about == "Ten clients."
