import importlib.util
import sys

import pytest

from relay.cli import core
from relay.errors import CoreMissing

INSTALL = "pip install --no-cache-dir --force-reinstall 'weppcloud-relay[server]'"


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """Says which of gcc and Python.h this machine seems to have."""

    def have(gcc, headers):
        include = tmp_path / ("with" if headers else "without")
        include.mkdir()
        if headers:
            (include / "Python.h").touch()
        monkeypatch.setattr(core.shutil, "which", lambda name: f"/usr/bin/{name}" if gcc else None)
        monkeypatch.setattr(core.sysconfig, "get_paths", lambda: {"include": str(include)})

    return have


@pytest.fixture
def hide(monkeypatch):
    """Makes a module look as if it were not installed."""
    find = importlib.util.find_spec

    def hide(*names):
        monkeypatch.setattr(core.importlib.util, "find_spec", lambda name: None if name in names else find(name))
        for name in names:
            monkeypatch.setitem(sys.modules, name, None)

    return hide


@pytest.mark.parametrize(
    ("gcc", "headers", "remedy"),
    [
        (True, True, INSTALL),
        (False, True, f"apt-get install gcc && {INSTALL}"),
        (True, False, f"apt-get install python3-dev && {INSTALL}"),
        (False, False, f"apt-get install gcc python3-dev && {INSTALL}"),
    ],
)
def test_an_unbuilt_core_names_the_compiler_packages_that_are_missing(compiler, hide, gcc, headers, remedy):
    compiler(gcc, headers)
    hide("relay._fanout")
    with pytest.raises(CoreMissing) as caught:
        core.require()
    assert str(caught.value) == f"serving needs the compiled core, relay._fanout, not built here: {remedy}"
    assert core.build() is None


def test_a_missing_extra_names_its_packages(compiler, hide):
    compiler(gcc=True, headers=True)
    hide("uvloop", "prometheus_client")
    with pytest.raises(CoreMissing, match=r"this needs uvloop, prometheus_client, not installed here: pip install "):
        core.require()
    with pytest.raises(CoreMissing):
        core.require_extra()


def test_a_core_that_does_not_load_says_why(compiler, monkeypatch):
    compiler(gcc=True, headers=True)

    def fail(name):
        raise ImportError("undefined symbol: PyNew")

    monkeypatch.setattr(core.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(core.importlib, "import_module", fail)
    with pytest.raises(CoreMissing, match=r"does not load \(undefined symbol: PyNew\): pip install "):
        core.require()


def test_it_serves_on_linux_only(monkeypatch):
    monkeypatch.setattr(core.sys, "platform", "darwin")
    with pytest.raises(CoreMissing, match="Linux only, and this is darwin"):
        core.require()


def test_where_all_is_there_nothing_is_said():
    core.require()
    assert core.build() in ("release", "debug", "asan")
