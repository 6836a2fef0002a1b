"""The tree itself: lint, types, the order of imports, a test for each module, and what an import costs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

# Each may import those before it, and nothing behind it (docs/architecture.md, "The rooms").
ORDER = [
    "relay.errors",
    "relay.logs",
    "relay.page",
    "relay.values",
    "relay.addresses",
    "relay.tokens",
    "relay.settings",
    "relay.listeners",
    "relay.notify",
    "relay._fanout",
    "relay.metrics",
    "relay.scoreboard",
    "relay._swarm",
    "relay.checklist",
    "relay.handshake",
    "relay.upstream",
    "relay.probe",
    "relay.link",
    "relay.status",
    "relay.preflight",
    "relay.posts",
    "relay.internal",
    "relay.server",
    "relay.worker",
    "relay.workers",
    "relay.cli",
]


def room(module):
    """The entry of ORDER that a module belongs to."""
    return next((name for name in ORDER if module == name or module.startswith(name + ".")), None)


def modules(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        yield name, path


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(("name", "path"), list(modules("relay")), ids=lambda value: str(value))
def test_imports_run_one_way(name, path):
    for other in imported(path):
        mine, its = room(name), room(other)
        if mine and its and mine != its:
            assert ORDER.index(its) < ORDER.index(mine), f"{name} imports {other}"
        if other == "client" or other.startswith("client."):
            assert mine == "relay.cli" or other.startswith("client.keys"), f"{name} imports {other}"


@pytest.mark.parametrize(("name", "path"), list(modules("client")), ids=lambda value: str(value))
def test_the_client_stands_alone(name, path):
    optional = {"client.progress": {"tqdm"}, "client.rq": {"rq"}}.get(name, set())
    allowed = {"client", "redis", *optional, *sys.stdlib_module_names}
    assert {other.partition(".")[0] for other in imported(path)} <= allowed


@pytest.mark.parametrize("package", ["relay", "client"])
def test_each_module_has_its_test(package):
    """By name, or by an import of what is in it."""
    tests = list((ROOT / "tests").rglob("*.py"))
    names = " ".join(path.stem for path in tests)
    used = {other for path in tests for other in imported(path)}
    commands = " ".join(path.read_text() for path in tests if path.stem.startswith("test_cli"))
    for name, _ in modules(package):
        short = name.rpartition(".")[2]
        by_name = f"test_{short}" in names or (name.startswith("relay.cli.") and short in commands)
        assert by_name or name in used or name == "relay" or name.endswith("__main__"), f"no test names {name}"


def test_no_file_has_grown_out_of_sight():
    sources = [
        p
        for package in ("relay", "client", "bench")
        for p in (ROOT / package).rglob("*.p*")
        if p.suffix[1:3] in ("py", "px")
    ]
    for path in sources:
        if path.suffix in (".py", ".pyx", ".pxi", ".pxd"):
            assert len(path.read_text().splitlines()) <= 650, f"{path} has more than one reason to change"


@pytest.mark.parametrize("tool", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]], ids=" ".join)
def test_lint_and_types(tool):
    done = subprocess.run([sys.executable, "-m", *tool], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_the_client_needs_no_redis_and_no_relay():
    code = "import sys, client; print([m for m in sys.modules if m.partition('.')[0] in ('redis', 'relay', 'hiredis')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_cdef_function_says_what_it_raises():
    for path in sorted(path for room in ("relay", "bench") for path in (ROOT / room).glob("*.p[yx][xi]")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            code = line.strip()
            if (
                code.startswith("cdef ")
                and code.endswith(":")
                and "(" in code
                and "class" not in code
                and "extern" not in code
            ):
                object_result = re.match(r"cdef (object|bytes|list|tuple|Topic) ", code)
                assert object_result or re.search(r" (noexcept|except\b.*?)( nogil)?:$", code), (
                    f"{path.name}:{number}: {code}"
                )


def test_the_micro_benchmarks_are_found_by_themselves():
    """A marker that only the tests' conftest knew ended `make bench` before it began."""
    command = [sys.executable, "-m", "pytest", "bench", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_publish[1000]" in done.stdout
