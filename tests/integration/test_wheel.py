"""What is installed: a release wheel with the core in it, and the base install of a worker, which has no compiler."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SOURCES = ["bench", "client", "relay", "pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in"]


def build_wheel(directory, **environment):
    """A wheel of a copy of the tree, built without a network."""
    tree = directory / "tree"
    tree.mkdir()
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(source, tree / name)
    env = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")} | environment
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(directory),
        ".",
    ]
    subprocess.run(command, cwd=tree, env=env, check=True, capture_output=True, timeout=300)
    [wheel] = directory.glob("*.whl")
    return wheel


@pytest.mark.needs("gcc")
def test_a_release_wheel_holds_the_core_and_nothing_that_is_not_needed(tmp_path):
    built = os.environ.get("RELAY_TEST_WHEEL")  # by who builds one anyway
    with zipfile.ZipFile(built or build_wheel(tmp_path, RELAY_REQUIRE_CORE="1")) as wheel:
        names = [name for name in wheel.namelist() if ".dist-info/" not in name]
        for module in ("relay/_fanout.", "relay/_swarm."):
            assert sum(name.startswith(module) and name.endswith(".so") for name in names) == 1
        assert {name.partition("/")[0] for name in names} == {"client", "relay"}
        assert {
            "relay/_fanout.pyi",
            "relay/_swarm.pyi",
            "relay/cli/bench_scenarios.toml",
            "relay/py.typed",
            "client/py.typed",
            "relay/page/index.html",
        } <= set(names)
        assert not [name for name in names if name.endswith((".c", ".pyx", ".pxi"))]


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    """The base install in an environment of its own, built where no compiler works."""
    directory = tmp_path_factory.mktemp("worker")
    wheel = build_wheel(directory, CC="false")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]
    venv.create(directory / "venv", with_pip=False)
    python = directory / "venv/bin/python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return directory, python


def run(worker, *arguments):
    directory, python = worker
    env = {"PATH": os.environ["PATH"], "HOME": str(directory)}
    return subprocess.run(
        [python, *arguments], cwd=directory, env=env, capture_output=True, text=True, check=False, timeout=30
    )


@pytest.mark.needs("gcc")
def test_a_worker_installs_without_a_compiler(worker):
    done = run(worker, "-c", "import client; print(client.TaskEnum.build_climate)")
    assert (done.returncode, done.stdout) == (0, "build_climate\n"), done.stderr


@pytest.mark.needs("gcc")
def test_the_command_line_says_what_to_install(worker):
    done = run(worker, "-m", "relay", "serve")
    assert done.returncode == 6
    assert "pip install --no-cache-dir --force-reinstall 'weppcloud-relay[server]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_build_mode_that_is_none_is_refused():
    env = {**os.environ, "RELAY_BUILD": "fast"}
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "RELAY_BUILD=fast: no such build mode; one of release, debug, asan" in done.stderr
