"""Runs the Autobahn test suite against the echo endpoint and judges its report.

    python -m tests.autobahn [WSTEST]

WSTEST is the suite's program, by default the one on PATH. Reports go below build/autobahn. Exit status: 0 when every
case was run and none failed, 1 when not, 3 without the program.
"""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests import echo

ROOT = Path(__file__).parent.parent
OUT = ROOT / "build" / "autobahn"
CASES = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*"]  # the others are of permessage-deflate
EXPECTED = 301
PASSED = {"OK", "NON-STRICT", "INFORMATIONAL"}
CLOSE_FAILED = {"FAILED", "UNCLEAN"}
SECONDS = 1800

HOW_TO_INSTALL = """\
make conformance needs `wstest` of the Autobahn test suite, and it is neither on PATH nor named. The suite is Python 2:
  pypy -m pip install autobahntestsuite         where there is a PyPy 2.7, or
  docker run --network host crossbario/autobahn-testsuite wstest ...
and then: make conformance AUTOBAHN=/path/to/wstest
"""


def run(wstest):
    """The report: a dict from case to what became of it."""
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    with echo.process() as url:
        servers = [{"agent": "relay", "url": url}]
        spec = {"outdir": str(OUT), "servers": servers, "cases": CASES, "exclude-cases": [], "exclude-agent-cases": {}}
        (OUT / "spec.json").write_text(json.dumps(spec))
        command = [wstest, "-m", "fuzzingclient", "-s", str(OUT / "spec.json")]
        with (OUT / "log").open("w") as log:
            subprocess.run(command, cwd=OUT, stdout=log, stderr=log, timeout=SECONDS, check=True)
    return json.loads((OUT / "index.json").read_text())["relay"]


def judge(cases):
    """Prints the verdict; whether every case was run and none failed."""
    failed = [
        f"{name}: {case['behavior']}, close {case['behaviorClose']}"
        for name, case in cases.items()
        if case["behavior"] not in PASSED or case["behaviorClose"] in CLOSE_FAILED
    ]
    counts = Counter(case["behavior"] for case in cases.values())
    print(*(f"{count} {behavior}" for behavior, count in counts.most_common()), sep=", ", end="; ")
    print(f"{len(failed)} failed, {max(0, EXPECTED - len(cases))} missing of {EXPECTED}")
    print(*failed, sep="\n", end="\n" if failed else "")
    return not failed and len(cases) >= EXPECTED


def main():
    wstest = sys.argv[1] if sys.argv[1:] else shutil.which("wstest")
    if not wstest:
        print(HOW_TO_INSTALL, end="", file=sys.stderr)
        return 3
    return 0 if judge(run(wstest)) else 1


if __name__ == "__main__":
    sys.exit(main())
