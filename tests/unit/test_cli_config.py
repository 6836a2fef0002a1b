import pytest
from click.testing import CliRunner

from relay.cli.commands import relay

SECRET = "hunter2"


def config(*args, **env):
    return CliRunner().invoke(relay, ["config", *args], env=env)


def rows(result):
    return {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()}


def test_show_says_value_and_source(tmp_path):
    file = tmp_path / "relay.env"
    file.write_text("STATUS_PONG_TIMEOUT=2m\n")
    result = config("show", "--env-file", str(file), STATUS_PING_INTERVAL="5s")
    assert result.exit_code == 0
    shown = rows(result)
    assert shown["STATUS_PING_INTERVAL"] == ["5s", "environment"]
    assert shown["STATUS_PONG_TIMEOUT"] == ["2m", "file"]
    assert shown["PREFLIGHT_LISTEN_ADDR"] == [":9001", "default"]
    assert shown["RELAY_DRAIN"] == ["10s", "default"]


def test_show_of_one_service():
    assert not [name for name in rows(config("show", "status")) if name.startswith("PREFLIGHT_")]


@pytest.mark.parametrize(
    "env",
    [
        {"REDIS_URL": f"redis://user:{SECRET}@h:1"},
        {"STATUS_REDIS_URL": f"redis://h:1?password={SECRET}"},
        {"REDIS_PASSWORD": SECRET},
    ],
)
def test_secrets_are_masked(env):
    result = config("show", "status", **env)
    assert result.exit_code == 0
    assert SECRET not in result.output
    assert rows(result)["STATUS_REDIS_PASSWORD"] == ["***", "environment"]


def test_check_of_good_settings():
    result = config("check")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "the settings are good\n")


@pytest.mark.parametrize("command", ["show", "check"])
def test_a_malformed_setting_is_exit_code_3_and_a_sentence(command):
    result = config(command, PREFLIGHT_PONG_TIMEOUT="soon")
    assert (result.exit_code, result.stdout) == (3, "")
    [line] = result.stderr.splitlines()
    assert line.startswith("relay: PREFLIGHT_PONG_TIMEOUT='soon'")


def test_a_typo_is_warned_of():
    result = config("check", STATUS_PING_INTERVALL="5s")
    assert result.exit_code == 0
    assert "relay: warning: STATUS_PING_INTERVALL is not a setting" in result.stderr


def test_the_file_may_be_named_by_the_environment(tmp_path):
    file = tmp_path / "relay.env"
    file.write_text("RELAY_DRAIN=3s\n")
    assert rows(config("show", RELAY_ENV_FILE=str(file)))["RELAY_DRAIN"] == ["3s", "file"]


def test_a_missing_file_is_exit_code_3(tmp_path):
    result = config("check", "--env-file", str(tmp_path / "absent"))
    assert result.exit_code == 3
    assert "absent" in result.stderr
