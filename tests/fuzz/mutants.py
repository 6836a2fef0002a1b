"""Ten million mutants of frames and request heads, and as many of the rest as some seconds allow.

For the builds of tests/other_build.sh, which names this file: the release build has no mutator.
"""

import time

import pytest

from relay._fanout import BUILD
from tests.fuzz._parsers import Mutator
from tests.fuzz.targets import TARGETS, kept

ROOM = 1 << 13
SEED = 6455
MOST = {"frames": 5_000_000, "heads": 5_000_000, "talk": 1_000_000, "requests": 1_000_000, "replies": 1_000_000}
SECONDS = {"frames": 10, "heads": 10, "talk": 3, "requests": 3, "replies": 3}
LEAST = {"frames": 100_000, "heads": 100_000, "talk": 1000, "requests": 1000, "replies": 1000}  # on whatever machine


@pytest.mark.parametrize("name", MOST)
def test_no_mutant_breaks_a_rule(name, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.fuzz.targets.CORPUS", tmp_path)
    target = TARGETS[name]()
    mutator = Mutator(target.seeds + kept(target.corpus), target.words, SEED, bytearray(ROOM))
    begun, count = time.monotonic(), 0
    while count < LEAST[name] or (count < MOST[name] and time.monotonic() - begun < SECONDS[name]):
        count += target.run(mutator)
    target.close()
    print(f"{name}: {count} mutants of seed {SEED} on the {BUILD} build")


def test_the_same_seed_makes_the_same_inputs():
    one, two = (Mutator([b"abcdef"], [b"word"], 7, bytearray(ROOM)) for _ in range(2))
    assert [one.mutant() for _ in range(1000)] == [two.mutant() for _ in range(1000)]
