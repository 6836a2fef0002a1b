"""What can end the relay, and with which exit code.

    RelayError      1   anything else that the relay itself gives up on
    ├─ ConfigError  3   a malformed setting, a bad Redis URL, a password refused at the start
    ├─ RedisGivenUp 4   REDIS_MAX_RETRIES is set and used up
    ├─ ListenError  5   an address cannot be listened on: port in use, no permission
    ├─ CoreMissing  6   the server extra or the compiled core is not installed
    ├─ SloMissed    7   `relay bench` saw less than was asked for
    └─ FaultsFound  8   `relay doctor` found what does not work

0 is a clean end; 2 is left to click, which uses it for a wrong command line. The command line prints
`relay: <sentence>` on stderr and exits with `exit_code`, so every message here says by itself what is wrong,
where, and how to mend it.
"""

from typing import ClassVar


class RelayError(Exception):
    """Base of all errors that end a command; its text is a sentence for the operator."""

    exit_code: ClassVar[int] = 1


class ConfigError(RelayError):
    """A setting or Redis URL is malformed, or Redis refuses the password at the start: trying again cannot help."""

    exit_code = 3


class RedisGivenUp(RelayError):  # noqa: N818 - says what happened; "RedisGivenUpError" would say it twice
    """Redis stayed away for `*_REDIS_MAX_RETRIES` attempts; unless that is set, it is tried for ever."""

    exit_code = 4


class ListenError(RelayError):
    """A listen address cannot be had: in use, not permitted, or not of this machine."""

    exit_code = 5


class CoreMissing(RelayError):  # noqa: N818 - as above
    """`relay serve` needs the server extra and the compiled core, and one of them is not there."""

    exit_code = 6


class SloMissed(RelayError):  # noqa: N818 - as above
    """`relay bench` measured, and a bound was missed: of the command line, or one that holds unasked."""

    exit_code = 7


class FaultsFound(RelayError):  # noqa: N818 - as above
    """`relay doctor` looked, and something does not work; what it is stands on stdout."""

    exit_code = 8
