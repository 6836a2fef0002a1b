"""`relay token`, and the token that other commands take along."""

import jwt
import pytest
from click.testing import CliRunner

from relay.cli.commands import relay
from relay.cli.target import query
from relay.tokens import Keys

SECRET = "s3cr3t-" + 32 * "x"


def token(*args, **env):
    return CliRunner().invoke(relay, ["token", *args], env={"RELAY_TOKEN_SECRET": SECRET, **env})


def claims(result):
    assert result.exit_code == 0, result.output
    [line] = result.stdout.splitlines()
    return jwt.decode(line, SECRET, ["HS256"])


def test_it_prints_a_token_that_opens_what_was_named():
    said = claims(token("--run", "r1", "--run", "b;;*", "--channel", "wepp", "--expires", "90m"))
    assert (said["run"], said["channel"], said["exp"] - said["iat"]) == (["r1", "b;;*"], ["wepp"], 5400)
    assert Keys(SECRET).verify(token("--run", "r1").stdout.strip()).covers("r1", "any")


def test_the_secret_may_be_in_a_file(tmp_path):
    path = tmp_path / "secret"
    path.write_text(SECRET + "\n")
    assert claims(token("--run", "*", RELAY_TOKEN_SECRET=None, RELAY_TOKEN_SECRET_FILE=str(path)))
    (tmp_path / "relay.env").write_text(f"RELAY_TOKEN_SECRET={SECRET}\n")
    assert claims(token("--run", "*", "--env-file", str(tmp_path / "relay.env"), RELAY_TOKEN_SECRET=None))


@pytest.mark.parametrize("expires", ["", "soon", "10", "0s", "100ms", "-1h", "100000h"])
def test_no_lifetime(expires):
    result = token("--run", "r1", "--expires", expires)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--expires" in result.stderr


def test_without_a_secret_it_says_where_it_belongs():
    result = token("--run", "r1", RELAY_TOKEN_SECRET=None)
    assert (result.exit_code, result.stdout) == (3, "")
    assert "RELAY_TOKEN_SECRET_FILE" in result.stderr


def test_a_short_secret_is_not_shown():
    result = token("--run", "r1", RELAY_TOKEN_SECRET="s3cr3t")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "s3cr3t" not in result.stderr


def test_a_run_is_needed():
    assert token().exit_code == 2


def test_the_query_of_an_address():
    assert query("") == ""
    assert query("a.b-_c", v="2") == "v=2&token=a.b-_c"
    assert query("a&b") == "token=a%26b"
