"""What a reply of Redis looks like in the log: never what we sent, whoever repeats it."""

import hiredis
import pytest

from relay import settings
from relay.upstream import Commands

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        ("WRONGPASS invalid username-password pair", "WRONGPASS invalid username-password pair"),
        ("NOPERM User relay has no permissions to run the 'select' command",) * 2,
        (f"ERR unknown command 'AUTH', with args beginning with: 'relay' '{SECRET}' ", "ERR unknown command 'AUTH'"),
        (f"ERR unknown command 'AUTH', with args beginning with: 'relay' '{SECRET[:3]}", "ERR unknown command 'AUTH'"),
        (f"ERR what is {SECRET}?", "ERR what is ***?"),
    ],
)
async def test_an_error_is_told_without_what_it_repeats(reply, told):
    upstream = Commands(settings.load(env={"REDIS_PASSWORD": SECRET}).status, pytest.fail)
    assert upstream.told(hiredis.ReplyError(reply)) == told


async def test_a_short_password_is_no_reason_to_blot_out_words():
    upstream = Commands(settings.load(env={"REDIS_PASSWORD": "p"}).status, pytest.fail)
    reply = "MOVED redis://relay:p@wepp1, no permissions"
    assert upstream.told(hiredis.ReplyError(reply)) == "MOVED redis://relay:***@wepp1, no permissions"


@pytest.mark.parametrize(
    ("reply", "told"),
    [(SECRET.encode(), "bytes of 6"), ([b"AUTH", SECRET.encode()], "list of 2"), (7, "7"), (None, "None")],
)
async def test_of_all_else_is_told_what_it_is(reply, told):
    assert Commands(settings.load(env={}).status, pytest.fail).told(reply) == told
