"""Signed tokens: who may watch which runs and channels, and until when (SECURITY.md).

A token is a JWT (RFC 7519), signed with HS256 and one of the secrets of RELAY_TOKEN_SECRET, and nothing else is one:
the algorithm is ours, not what the token says. Its claims:

    run       a pattern, or a list of them: the runs it opens
    channel   the same for the channels of these runs; the preflight service does not look at it
    publish   true: it opens them for publishing by POST, too
    exp       unix seconds: who is connected with it is closed then; needed
    nbf, iat  where they are given, not in the future

`*` in a pattern stands for any characters, also for none, and all else for itself, in its own case: `batch;;x;;*`.
PyJWT comes with the server extra and is imported where secrets are set.
"""

import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from relay.errors import ConfigError, CoreMissing

ALGORITHM = "HS256"
LEAST = 32  # bytes of a secret: as many as the hash has (RFC 7518, section 3.2)
MAX_TOKEN = 4096  # bytes; what is longer is not looked at
SKEW = 10.0  # seconds by which the clock of who signs may be ahead of ours
LONGEST = 365 * 86400.0  # seconds that a connection may stay, whatever its token says


class Denied(Exception):  # noqa: N818 - what became of the token
    """A token that opens nothing; the text says why and repeats nothing of it."""


class Grant(NamedTuple):
    """What a token opens, for `expires_in` seconds from now."""

    expires_in: float
    runs: tuple[str, ...]
    channels: tuple[str, ...]
    publish: bool = False

    def covers(self, run: str, channel: str | None) -> bool:
        """Whether it opens this run, and this channel of it where there is one to open."""
        return any(matches(pattern, run) for pattern in self.runs) and (
            channel is None or any(matches(pattern, channel) for pattern in self.channels)
        )


def secrets_of(text: str) -> list[str]:
    """The secrets of RELAY_TOKEN_SECRET, separated by commas or line ends: the first signs, each verifies.

    Raises:
        ValueError: there is none, or a short one; what is wrong, without the secret.
    """
    secrets = [secret for part in re.split(r"[,\r\n]", text) if (secret := part.strip())]
    if not secrets:
        raise ValueError("holds no secret")
    for number, secret in enumerate(secrets, 1):
        if (size := len(secret.encode("utf-8", "surrogateescape"))) < LEAST:
            raise ValueError(f"secret {number} of {len(secrets)} has {size} bytes, and needs {LEAST} at least")
    return secrets


def matches(pattern: str, name: str) -> bool:
    """Whether the name is of that pattern. One pass over the name for each `*`: no pattern is slow."""
    first, *rest = pattern.split("*")
    if not rest:
        return name == pattern
    at, end = len(first), len(name) - len(rest[-1])
    if end < at or not (name.startswith(first) and name.endswith(rest[-1])):
        return False
    for part in rest[:-1]:
        at = name.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True


class Keys:
    """The secrets of a relay, which shows none of them.

    Args:
        text: as RELAY_TOKEN_SECRET holds them.

    Raises:
        CoreMissing: PyJWT is not installed.
        ConfigError: a secret cannot serve.
    """

    def __init__(self, text: str) -> None:
        try:
            import jwt
        except ImportError:
            raise CoreMissing("tokens need PyJWT, not installed here: pip install 'weppcloud-relay[server]'") from None
        try:
            self._secrets = [secret.encode("utf-8", "surrogateescape") for secret in secrets_of(text)]
            for secret in self._secrets:
                jwt.encode({}, secret, ALGORITHM)
        except (ValueError, jwt.InvalidKeyError):
            raise ConfigError(
                f"RELAY_TOKEN_SECRET must hold secrets of {LEAST} bytes at least that are no public key, for example "
                "what `openssl rand -hex 32` prints"
            ) from None

    def __repr__(self) -> str:
        return f"<{len(self._secrets)} secrets>"

    def sign(self, runs: Sequence[str], channels: Sequence[str], lifetime: float, *, publish: bool = False) -> str:
        """A token for these patterns that ends in `lifetime` seconds."""
        import jwt

        now = int(time.time())
        claims: dict[str, object] = {
            "run": list(runs),
            "channel": list(channels),
            "iat": now,
            "exp": now + round(lifetime),
        }
        claims |= {"publish": True} if publish else {}
        return jwt.encode(claims, self._secrets[0], ALGORITHM)

    def verify(self, token: str) -> Grant:
        """What a token opens.

        Raises:
            Denied: nothing.
        """
        if not token:
            raise Denied("there is none: it is given as ?token= or as Authorization: Bearer")
        if len(token) > MAX_TOKEN:
            raise Denied(f"it is longer than {MAX_TOKEN} bytes")
        claims = self._claims(token)
        try:
            left = claims["exp"] - time.time()
        except OverflowError:  # an integer of 400 digits
            raise Denied("its exp is no time") from None
        if left <= 0:
            raise Denied("it has expired")
        return Grant(
            min(left, LONGEST), _patterns(claims, "run"), _patterns(claims, "channel"), claims.get("publish") is True
        )

    def _claims(self, token: str) -> dict[str, Any]:
        """The claims of a token that is signed and in force."""
        import jwt

        why = {
            jwt.InvalidSignatureError: "its signature is not of a secret of this relay",
            jwt.InvalidAlgorithmError: f"its algorithm is not {ALGORITHM}",
            jwt.ExpiredSignatureError: "it has expired",
            jwt.ImmatureSignatureError: "it is of the future: compare the clocks",
            jwt.MissingRequiredClaimError: "it has no exp, and would be valid for ever",
        }
        found: Exception = Denied()
        for secret in self._secrets:
            try:
                claims = jwt.decode(token, secret, [ALGORITHM], {"require": ["exp"]}, leeway=SKEW)
                return {**claims, "exp": int(claims["exp"])}
            except jwt.InvalidSignatureError as error:
                found = error
            except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
                found = error
                break
        raise Denied(why.get(type(found), "it is malformed")) from None


def _patterns(claims: dict[str, Any], name: str) -> tuple[str, ...]:
    value = claims.get(name, [])
    patterns = [value] if isinstance(value, str) else value
    if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
        raise Denied(f"its claim {name!r} is neither a pattern nor a list of them")
    return tuple(patterns)
