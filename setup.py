"""The compiled core, the compiled load generator and their build modes; everything else is in pyproject.toml.

RELAY_BUILD=release   -O3, no assertions (the default)
RELAY_BUILD=debug     -O1 -g, the invariants of docs/architecture.md asserted
RELAY_BUILD=asan      as debug, under AddressSanitizer and UndefinedBehaviorSanitizer
RELAY_REQUIRE_CORE=1  what does not build fails the build; otherwise the package
                      installs without it, which is all that a worker needs
"""

import os
import sys

from setuptools import Extension, setup

MODES = {
    # The flags stand here and not in CFLAGS: setting that one silently drops the interpreter's own -O2.
    "release": (["-O3", "-Wno-unused-variable"], [], [("CYTHON_WITHOUT_ASSERTIONS", "1")]),
    "debug": (["-O1", "-g"], [], []),
    "asan": (
        ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"],
        ["-fsanitize=address,undefined"],
        [],
    ),
}


# Sources by module. The load generator stands with the rest of the bench; a wheel has it as `relay bench` needs it.
SOURCES = {"relay._fanout": "relay/_fanout.pyx", "relay._swarm": "bench/_swarm.pyx"}
# In the other builds, which are for tests: the core's parsers under a mutator.
FUZZED = {"tests.fuzz._parsers": "tests/fuzz/_parsers.pyx"}


def compiled(mode: str, required: bool) -> list[Extension]:
    """The extensions; the C that Cython makes of them stays below build/."""
    try:
        from Cython.Build import cythonize
    except ImportError:
        if required:
            raise
        return []
    compile_args, link_args, macros = MODES[mode]
    sources = SOURCES if mode == "release" else SOURCES | FUZZED
    extensions = [
        Extension(
            name,
            [source],
            extra_compile_args=[
                *compile_args,
                "-Wall",
                "-Wextra",
                "-Wno-unused-parameter",
                "-Wno-missing-field-initializers",
            ],
            extra_link_args=link_args,
            define_macros=[*macros, ("RELAY_BUILD", f'"{mode}"')],
        )
        for name, source in sources.items()
    ]
    made: list[Extension] = cythonize(extensions, build_dir="build", force="RELAY_BUILD" in os.environ)
    for one in made:
        one.optional = not required  # given to Extension above, cythonize would lose it
    return made


def extensions() -> list[Extension]:
    mode = os.environ.get("RELAY_BUILD", "release")
    if mode not in MODES:
        sys.exit(f"RELAY_BUILD={mode}: no such build mode; one of {', '.join(MODES)}")
    required = os.environ.get("RELAY_REQUIRE_CORE") == "1"
    if not sys.platform.startswith("linux"):
        if required:
            sys.exit("RELAY_REQUIRE_CORE=1: the core builds on Linux only")
        return []
    return compiled(mode, required)


setup(ext_modules=extensions(), options={"build_ext": {"parallel": os.cpu_count() or 1}})
