#!/bin/sh
# other_build.sh debug|asan [pytest arguments]: builds the core that way in a copy of the tree and runs its tests there.
set -eu
mode=$1
shift
root=$(pwd)
tree=$root/build/$mode
mkdir -p "$tree"
git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' f; do test -e "$f" && printf '%s\0' "$f"; done |
  xargs -0 cp --parents -u -t "$tree"
cd "$tree"
RELAY_BUILD=$mode "$root/.venv/bin/python" setup.py -q build_ext --inplace
if [ "$mode" = asan ]; then
  LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
  ASAN_OPTIONS=detect_leaks=0:abort_on_error=1
  PYTHONMALLOC=malloc
  export LD_PRELOAD ASAN_OPTIONS PYTHONMALLOC
fi
exec env RELAY_TEST_BUILD="$mode" "$root/.venv/bin/python" -m pytest -p no:cacheprovider "${@:-tests/unit}"
