import re

import pytest

from relay import errors

CODES = {
    "RelayError": 1,
    "ConfigError": 3,
    "RedisGivenUp": 4,
    "ListenError": 5,
    "CoreMissing": 6,
    "SloMissed": 7,
    "FaultsFound": 8,
}


@pytest.mark.parametrize(("name", "code"), CODES.items())
def test_exit_code(name, code):
    error = getattr(errors, name)
    assert error.exit_code == code
    assert issubclass(error, errors.RelayError)


def test_every_error_is_in_the_printed_tree_with_its_code():
    classes = {n: c.exit_code for n, c in vars(errors).items() if isinstance(c, type) and issubclass(c, Exception)}
    printed = {name: int(code) for name, code in re.findall(r"^ *(?:[├└]─ )?(\w+) +(\d)  ", errors.__doc__, re.M)}
    assert printed == classes == CODES


def test_no_code_of_ours_is_clicks_or_success():
    assert not {0, 2} & set(CODES.values())


def test_text_is_the_sentence_given():
    assert str(errors.ConfigError("STATUS_PING_INTERVAL=10: no unit")) == "STATUS_PING_INTERVAL=10: no unit"
