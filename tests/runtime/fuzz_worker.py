"""Opens damaged models in a process that may die; see fuzz.py.

Started with the folder of the sound models, a scratch folder and a seed; reads the number of a mutant a line from
standard input, writes the mutant, and answers `start`, then `ok`, the class of a typed error, or what else was raised.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

from edge_distill_runtime import load
from edge_distill_runtime.errors import EdgeDistillError
from tests.runtime.fuzz_cases import Cases

_MEMORY = 3 << 30  # a mutant must not take the machine's


def outcome(path: Path) -> str:
    """What becomes of a model at `path` in this process."""
    try:
        with load(path, threads=1) as model:
            # two samples: the second one forks
            model.sample("Anna has 7 apples 🙂", 2, max_tokens=2, temperature=1.0, seed=1)
    except EdgeDistillError as error:
        return type(error).__name__
    except BaseException as error:  # nothing untyped may come, a panic of the Rust library neither
        return f"raised {type(error).__name__}: {str(error)[:200]}"
    return "ok"


def main() -> None:
    sound, scratch, seed, names = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    os.environ["HOME"] = os.environ["XDG_CACHE_HOME"] = str(scratch)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    cases = Cases(sound, seed, names)
    for path in cases.paths(scratch):  # imports, and lazily loaded libraries
        outcome(path)
    print("ready", file=answers)
    for line in sys.stdin:
        path = cases.write(int(line), scratch)
        print("start", file=answers)
        print(" ".join(outcome(path).split()), file=answers)


if __name__ == "__main__":
    main()
