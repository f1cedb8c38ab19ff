"""Loads GGUF files that the validator accepted, in a process that may die; see test_hostile_gguf.py.

Reads one path a line from standard input and answers `start`, then `ok` or the class of a typed error.
"""

from __future__ import annotations

import sys

from edge_distill_runtime.errors import EdgeDistillError
from edge_distill_runtime.llama import LlamaBackend


def decode(path: str) -> str:
    try:
        backend = LlamaBackend(path, context=64, threads=1)
        try:
            sequence = backend.prefill([1, 2, 3])
            fork = backend.fork(sequence, 1)[0]
            for _ in range(3):
                backend.step([sequence, fork], [4, 5])
        finally:
            backend.close()
    except EdgeDistillError as error:
        return type(error).__name__
    return "ok"


if __name__ == "__main__":
    for line in sys.stdin:
        print("start", flush=True)
        print(decode(line.strip()), flush=True)
