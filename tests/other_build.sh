#!/bin/sh
# other_build.sh debug|asan [pytest arguments]: builds the core that way in a copy of the tree and runs its tests there.
# other_build.sh debug|asan fuzz [arguments of python -m tests.fuzz]: the fuzzer instead; what it finds stays in this tree.
set -eu
mode=$1
shift
root=$(pwd)
tree=$root/build/$mode
mkdir -p "$tree"
git ls-files -z --cached --others --exclude-standard -- relay client bench tests pyproject.toml setup.py README.md LICENSE |
  xargs -0 cp --parents --update -t "$tree"
cd "$tree"
RELAY_BUILD=$mode "$root/.venv/bin/python" setup.py -q build_ext --inplace
if [ "$mode" = asan ]; then
  LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
  ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 # the interpreter itself never frees all
  PYTHONMALLOC=malloc
  export LD_PRELOAD
else
  ASAN_OPTIONS=
  PYTHONMALLOC=debug # marks around each block, looked at when it is freed: of the interpreter's memory too
fi
PYTHONPATH=$tree
export ASAN_OPTIONS PYTHONMALLOC PYTHONPATH
"$root/.venv/bin/python" -c "from relay import _fanout, _swarm; assert _fanout.BUILD == _swarm.BUILD == '$mode'"
if [ "${1:-}" = fuzz ]; then
  shift
  exec "$root/.venv/bin/python" -m tests.fuzz --crashes "$root/build/fuzz" --corpus "$root/tests/fuzz/corpus" "$@"
fi
exec "$root/.venv/bin/python" -m pytest -p no:cacheprovider -o faulthandler_timeout=120 "$@"
