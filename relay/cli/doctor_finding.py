"""What a check of `relay doctor` found."""

from typing import Literal, NamedTuple

State = Literal["ok", "warning", "fault", "skipped"]


class Finding(NamedTuple):
    """Of one check.

    Attributes:
        state: `fault`, something does not work; `warning`, it works and should be otherwise; `skipped`, nobody knows.
        check: what was looked at.
        found: what is the case; of a skipped check, why it could not be made.
        means: what follows from that, for who runs the relay.
        mend: the command that mends it, or the setting.
    """

    state: State
    check: str
    found: str
    means: str = ""
    mend: str = ""
