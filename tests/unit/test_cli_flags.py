import click
import pytest
from click.testing import CliRunner

from relay.cli import flags
from relay.settings import describe, load

SAMPLES = {"URL": "redis://h:1", "DURATION": "7s", "N": "3", "BYTES": "4096", "LEVEL": "error", "LIST": "https://a.org"}
SAMPLES |= {"N|auto": "auto", "MS": "2.5", "ADDR": "unix:/run/a", "FILE": "/run/secrets/relay_token"}


@click.command()
@flags.options
def given(env_file, **values):
    for variable, value in values.items():
        click.echo(f"{variable}={value!r}")
    click.echo(f"env_file={env_file!r}")


def twins(*args, services=("status", "preflight")):
    """What the environment twins of a command line are."""
    result = CliRunner().invoke(given, args)
    assert result.exit_code == 0, result.output
    values = dict(line.split("=", 1) for line in result.stdout.splitlines())
    values.pop("env_file")
    return flags.environment(services, {name: eval(value) for name, value in values.items()})


def test_nothing_given_is_nothing_set():
    assert twins() == {}


@pytest.mark.parametrize("flag", flags.SERVICE, ids=lambda flag: flag.name)
def test_a_service_flag_is_the_twin_of_the_service_served(flag):
    args = [flag.name, SAMPLES[flag.metavar]] if flag.metavar else [flag.name]
    value = SAMPLES[flag.metavar] if flag.metavar else "true"
    assert twins(*args, services=("status",)) == {f"STATUS_{flag.variable}": value}
    both = {f"STATUS_{flag.variable}": value, f"PREFLIGHT_{flag.variable}": value}
    assert twins(*args) == ({"REDIS_URL": value} if flag.variable == "REDIS_URL" else both)


@pytest.mark.parametrize("flag", flags.PROCESS, ids=lambda flag: flag.name)
def test_a_process_flag_is_the_twin_named_relay(flag):
    args = [flag.name, SAMPLES[flag.metavar]] if flag.metavar else [flag.name]
    assert twins(*args) == {f"RELAY_{flag.variable}": SAMPLES[flag.metavar] if flag.metavar else "true"}


def test_a_switch_can_be_switched_off():
    assert twins("--no-set-keyspace-events", "--no-metrics-enabled", services=("preflight",)) == {
        "RELAY_SET_KEYSPACE_EVENTS": "false",
        "PREFLIGHT_METRICS_ENABLED": "false",
    }


def test_every_setting_has_its_flag_and_every_flag_its_setting():
    said = {"STATUS_LISTEN_ADDR", "STATUS_REDIS_PASSWORD"}  # flags of `serve` itself; a password is none at all
    settings = {name for name, _, _ in describe(load(("status",), env={}))}
    table = {f"STATUS_{flag.variable}" for flag in flags.SERVICE} | {f"RELAY_{flag.variable}" for flag in flags.PROCESS}
    # A secret is given as a file: what stands on a command line is seen by every user of the machine.
    assert table == settings - said - {"RELAY_TOKEN_SECRET"} | {"RELAY_TOKEN_SECRET_FILE"}


@pytest.mark.parametrize("flag", [*flags.SERVICE, *flags.PROCESS], ids=lambda flag: flag.name)
def test_help_names_the_twin(flag):
    shown = " ".join(CliRunner().invoke(given, ["--help"]).stdout.split())
    prefix = "RELAY_" if flag in flags.PROCESS else "{STATUS,PREFLIGHT}_"
    assert flag.name in shown
    assert f"[env: {prefix}{flag.variable}]" in shown


def test_a_flag_wins_over_its_twin_in_the_environment():
    loaded = load(
        flags=twins("--ping-interval", "3s", "--redis-url", "redis://new:1/9"),
        env={"STATUS_PING_INTERVAL": "9s", "STATUS_REDIS_URL": "redis://old:1", "PREFLIGHT_PONG_TIMEOUT": "50s"},
    )
    assert (loaded.status.ping_interval, loaded.preflight.ping_interval) == (3.0, 3.0)
    assert (str(loaded.status.redis), str(loaded.preflight.redis)) == ("redis://new:1/2", "redis://new:1/0")
    assert loaded.preflight.pong_timeout == 50.0
