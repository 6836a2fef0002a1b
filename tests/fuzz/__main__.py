"""Fuzzes each target in turn, in a process of its own, with inputs mutated from its corpus.

    python -m tests.fuzz [--seconds N] [--seed N] [--crashes DIR] [--corpus DIR] [TARGET...]

Prints seeds and counts. The input that broke a rule, or under which the process died, is left in DIR. Exit status 1
where there was one.
"""

import argparse
import mmap
import subprocess
import sys
import time
from pathlib import Path

from tests.fuzz import targets

ROOM = 1 << 13  # bytes for the input under test


def fuzz(name, seed, seconds, path):
    """One target for so long; prints what was run. The input under test stands in `path` at any time."""
    from tests.fuzz._parsers import Mutator

    target = targets.TARGETS[name]()
    path.write_bytes(bytes(ROOM))
    begun, count = time.monotonic(), 0
    with path.open("r+b") as file:
        current = mmap.mmap(file.fileno(), ROOM)
    mutator = Mutator(target.seeds + targets.kept(target.corpus), target.words, seed, current)
    while time.monotonic() - begun < seconds:
        count += target.run(mutator)
    took = time.monotonic() - begun
    print(f"{name}: seed {seed}, {count} inputs in {took:.0f} s, {count / took:.0f}/s, none broke a rule", flush=True)


def crashed(path, kept):
    """Keeps the input that a process ended with."""
    data = path.read_bytes()
    kept.write_bytes(data[2 : 2 + int.from_bytes(data[:2], "big")])
    print(f"the last input is in {kept}", flush=True)


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("target", nargs="*", help=f"of {', '.join(targets.TARGETS)}; all")
    parser.add_argument("--seconds", type=float, default=600, help="for all of them together")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--crashes", type=Path, default=Path("build/fuzz"))
    parser.add_argument("--corpus", type=Path, default=targets.CORPUS)
    parser.add_argument("--alone", action="store_true", help="in this very process")
    args = parser.parse_args()
    args.crashes.mkdir(parents=True, exist_ok=True)
    targets.CORPUS = args.corpus
    names = args.target or list(targets.TARGETS)
    if args.alone:
        fuzz(names[0], args.seed, args.seconds, args.crashes / f"current-{names[0]}")
        return 0
    failed = 0
    for name in names:
        options = ["--seconds", args.seconds / len(names), "--seed", args.seed, "--crashes", args.crashes]
        command = [sys.executable, "-m", "tests.fuzz", "--alone", *options, "--corpus", args.corpus, name]
        done = subprocess.run(list(map(str, command)), check=False)
        if done.returncode:
            failed += 1
            print(f"{name}: seed {args.seed}, ended with {done.returncode}", flush=True)
            crashed(args.crashes / f"current-{name}", args.crashes / f"crash-{name}-{args.seed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
