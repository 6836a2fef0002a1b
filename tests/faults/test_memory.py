"""S9: the compiled core under AddressSanitizer and UBSan, and with marks around each block of memory."""

import os
import re
import subprocess

import pytest

from tests.conftest import ROOT

# What turns its state over most; `make debug` runs all tests of the core so.
TESTS = [
    "tests/unit/test_fanout_random.py",
    "tests/unit/test_fanout_frames.py",
    "tests/unit/test_fanout_proxy.py",
    "tests/unit/test_fanout_newcomers.py",
    "tests/fuzz/test_targets.py",
    "tests/integration/test_link.py::test_redis_knows_what_the_model_says_after_any_joins_and_leaves",
    "tests/integration/test_link.py::test_the_last_client_leaves_as_a_new_one_joins",
]


@pytest.mark.row("S9")
@pytest.mark.long
@pytest.mark.needs("gcc")
@pytest.mark.parametrize(("build", "what"), [("asan", "AddressSanitizer and UBSan"), ("debug", "PYTHONMALLOC=debug")])
def test_the_core_touches_no_memory_but_its_own(told, build, what):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "RELAY_TEST_"))}
    done = subprocess.run(
        ["sh", "tests/other_build.sh", build, "-q", *TESTS],
        cwd=ROOT, env=clean, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    [passed] = re.findall(r"^(\d+) passed in", done.stdout, re.MULTILINE)
    told.injected(f"unit, stateful and mutation tests on a core with its invariants asserted, under {what}")
    told.observed(f"{passed} tests passed, and nothing was touched that is not its own")
    told.bound("clean")
