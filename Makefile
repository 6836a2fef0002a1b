# build | demo | test | check | docs | screenshots | conformance | fuzz | debug | faults | soak | bench | wheel | clean.  Two commands matter: make demo, and make test.

PYTHON ?= python3
BIN := .venv/bin
CORE := $(wildcard relay/*.pyx relay/*.pxi relay/*.pxd bench/*.pyx bench/*.pxi)
CORE_TESTS := $(wildcard tests/unit/test_fanout_*.py) tests/unit/test_status.py tests/unit/test_swarm.py tests/integration/test_status.py tests/integration/test_swarm_relay.py \
  tests/integration/test_conformance.py tests/integration/test_link.py::test_redis_knows_what_the_model_says_after_any_joins_and_leaves tests/fuzz/mutants.py tests/fuzz/test_targets.py

# Here a core that does not build is an error; on a worker's machine it is none (setup.py).
export RELAY_REQUIRE_CORE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: build demo test check docs screenshots conformance fuzz debug other-debug other-asan faults soak bench wheel clean system
.DELETE_ON_ERROR:

build: build/core.stamp

demo: build
	@$(BIN)/relay demo $(ARGS)

# In three processes, for most of it waits; `ARGS=tests/unit/test_x.py JOBS=0` is one process.
JOBS ?= 3
test: build
	$(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: build
	$(BIN)/ruff check .
	$(BIN)/mypy

# The tables of the settings, from the code that reads them.
docs: build
	$(BIN)/cog -r -I docs docs/configuration.md

# The pictures of the page in docs/, of a simulated run in Chromium.
screenshots: build
	$(BIN)/python docs/screenshots.py

# The Autobahn suite against the echo endpoint of tests/echo.py: `AUTOBAHN=/path/to/wstest` where it is not on PATH.
conformance: build
	$(BIN)/python -m tests.autobahn $(AUTOBAHN)

# Beside a baseline, for you to judge: figures are of one machine. `ARGS=--benchmark-json=bench/baseline.json` makes a new one.
bench: build
	$(BIN)/pytest bench --benchmark-only --benchmark-enable --benchmark-sort=name --benchmark-columns=median,iqr,rounds \
	  --benchmark-compare=bench/baseline.json -W default::pytest_benchmark.logger.PytestBenchmarkWarning $(ARGS)

wheel: build
	$(BIN)/pip wheel -q --no-deps --no-build-isolation --wheel-dir dist .

# So many seconds of mutated inputs to the sanitized build; what leads to something new is kept in tests/fuzz/corpus.
FUZZ ?= 600
fuzz: build
	sh tests/other_build.sh asan fuzz --seconds $(FUZZ) $(ARGS)

# The core with its invariants asserted, then under AddressSanitizer; each in a copy of the tree, so that the release
# build stays.
debug: other-debug other-asan

other-debug other-asan: other-%: build
	sh tests/other_build.sh $* $(CORE_TESTS) $(ARGS)

# Each row of faults, the long ones too, with a page on what was done and what held; at most 20 minutes.
faults: build
	RELAY_TEST_REPORT=build/faults.md $(BIN)/pytest -m 'row and not soak' -n 2 --dist loadfile $(ARGS)

# The faults at random, on 500 clients: SOAK=seconds, SEED=what an earlier run printed.
soak: build
	RELAY_TEST_REPORT=build/soak.md RELAY_TEST_SOAK=$(or $(SOAK),3600) RELAY_TEST_SEED=$(SEED) \
	  $(BIN)/pytest tests/faults -m soak -s $(ARGS)

clean:
	rm -rf build dist *.egg-info relay/*.so

build/core.stamp: $(CORE) setup.py .venv/installed.stamp
	$(BIN)/python setup.py -q build_ext --inplace
	@mkdir -p build && touch $@

.venv/installed.stamp: pyproject.toml setup.py | system
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q 'setuptools>=77' 'Cython>=3.1,<4' wheel
	$(BIN)/pip install -q --no-build-isolation -e '.[test]'
	@mkdir -p build && touch $@ build/core.stamp

# What pip cannot bring. One line mends it; where CI is set, it is run.
system:
	@missing=; \
	command -v gcc >/dev/null || missing="$$missing gcc"; \
	if command -v $(PYTHON) >/dev/null; then \
	  $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || missing="$$missing python3-venv"; \
	  $(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' || missing="$$missing python3-dev"; \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "$(PYTHON) is $$($(PYTHON) -V): the relay needs Python 3.11 or newer. Name one: make PYTHON=/path/to/python3.11 build"; exit 1; }; \
	else missing="$$missing python3 python3-venv python3-dev"; fi; \
	test -z "$$missing" && exit 0; \
	line="apt-get install -y$$missing"; \
	if [ -n "$$CI" ] && [ "$$(id -u)" = 0 ]; then apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$line; \
	else echo "Missing:$$missing. Mend it with:"; echo "  sudo $$line"; exit 1; fi
