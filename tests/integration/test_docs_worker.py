"""docs/worker.md: each of its pieces of Python runs, in order, as a reader would put them together."""

import ast
import inspect
import re

import pytest

from client.rq import job_status
from client.testing import CaptureMessenger
from tests.integration.worker_rig import ROOT, RUN

pytestmark = pytest.mark.usefixtures("fresh_client")

PAGE = (ROOT / "docs" / "worker.md").read_text()
PIECES = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def reader(tmp_path, wd, monkeypatch):
    """What the page takes as given: a run, its directory, a job, hillslopes, and the model's command."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "wepp").write_text("#!/bin/sh\necho simulated\n")
    (tmp_path / "bin" / "wepp").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    names = {"runid": RUN, "wd": str(wd), "runs": str(wd), "hillslopes": range(3), "job": type("job", (), {"id": "7"})}
    exec("from client import *", names)
    names["run_wepp"] = run_wepp
    return names


@job_status("wepp")
def run_wepp(runid):
    pass


async def test_each_piece_runs(server, reader):
    with CaptureMessenger() as said:
        for piece in PIECES:
            code = compile(piece, "docs/worker.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            result = eval(code, reader)
            if inspect.isawaitable(result):
                await result
    assert len(PIECES) >= 6
    assert said.lines(f"{RUN}:climate") == [f"STARTED build_climate({RUN})", f"COMPLETED build_climate({RUN})"]
    assert said.lines(f"{RUN}:wepp").count("simulated") == 2
    assert [name for name, _ in said.messages if name != f"{RUN}:wepp"] == [f"{RUN}:climate"] * 2
    fields = server.hgetall(RUN)
    assert {"timestamps:run_wepp_watershed", "timestamps:build_climate"} <= fields.keys()
    assert fields["locked:wepp"] == "false"
    with CaptureMessenger() as said:
        reader["run_wepp_rq"](RUN)
        reader["build"](type("Soils", (), {"wd": reader["wd"]})())
    assert said.lines(f"{RUN}:wepp") == [
        f"STARTED run_wepp_rq({RUN})",
        f"COMPLETED run_wepp_rq({RUN})",
        "TRIGGER   wepp WEPP_RUN_TASK_COMPLETED",
    ]
    assert {"started:build_soils", "timestamps:build_soils"} <= server.hgetall(RUN).keys()
