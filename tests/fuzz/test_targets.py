"""Everything the fuzzer ever kept, once more; and that it would see a wrong answer."""

import pytest

from tests.fuzz.reference import Endpoint
from tests.fuzz.targets import MAX_FRAGMENTS, MAX_MESSAGE, TALKS, Heads, Requests, Talk, kept
from tests.unit.rig import client_frame

pytestmark = pytest.mark.row("S10")


@pytest.mark.parametrize("target", [Talk, Requests])
def test_what_was_kept_breaks_no_rule(target):
    one = target()
    inputs = one.seeds + kept(one.corpus)
    assert len(inputs) > len(one.seeds), "the corpus is gone"
    signs = {one.one(data) for data in inputs}
    assert len(signs) > len(inputs) // 4, "it should reach every corner"
    one.close()


def test_what_was_kept_of_requests_is_read_as_the_judge_reads_it():
    for data in Heads.seeds + kept(Heads.corpus):
        Heads().one(data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")


def test_the_reference_is_no_empty_one():
    answers = [Endpoint(MAX_MESSAGE, MAX_FRAGMENTS).hear(data) for data in TALKS]
    codes = {answer[1] for row in answers for answer in row if answer[0] == 8}
    assert codes >= {1000, 1002, 1009, 4000}
    assert {answer[0] for row in answers for answer in row} == {1, 2, 8, 10}


def test_a_wrong_answer_is_seen(monkeypatch):
    talk = Talk()
    monkeypatch.setattr(Endpoint, "take", lambda self, fin, opcode, payload: self.answers.append((opcode, payload)))
    with pytest.raises(AssertionError, match="not"):
        talk.one(client_frame(b"?", 9))
    talk.close()
