"""Mutants of sound model files against `load` and two generated tokens, in a process that may die.

`make fuzz SECONDS=3600 SEED=7` runs it by itself. A failure is a signal, an error that is not typed, or more than two
seconds; its seed and number are printed, and the files are kept.
"""

from __future__ import annotations

import argparse
import itertools
import os
import queue
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.runtime.fuzz_cases import GROUPS, Cases, write_sound_models

__all__ = ["Report", "fuzz"]

LIMIT = 2.0  # seconds for one mutant
_START = 120.0  # for a process with all its imports, on a busy machine


@dataclass
class Report:
    """What became of the mutants."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0


class Worker:
    """A child process that opens mutants; started again when it died."""

    def __init__(self, sound: Path, scratch: Path, seed: int, groups: Sequence[str]) -> None:
        self._arguments = [str(sound), str(scratch), str(seed), *groups]
        self._start()

    def _start(self) -> None:
        # a dying libllama would call a debugger for its backtrace
        environment = os.environ | {"GGML_NO_BACKTRACE": "1", "OMP_NUM_THREADS": "1", "RUST_BACKTRACE": "0"}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-W",
                "ignore",
                str(Path(__file__).with_name("fuzz_worker.py")),
                *self._arguments,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, args=(self._process.stdout, self._lines), daemon=True).start()
        ready = self._lines.get(timeout=_START)
        assert ready == "ready", f"the worker says {ready!r}"

    @staticmethod
    def _read(stream: Iterable[str], lines: queue.Queue[str]) -> None:
        for line in stream:
            lines.put(line.strip())
        lines.put("died")

    def open(self, number: int) -> str:
        """`ok`, the class of a typed error, `raised ...`, `died with ...` or `hangs`."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{number}\n")
        self._process.stdin.flush()
        try:
            if self._lines.get(timeout=_START) == "start":
                answer = self._lines.get(timeout=LIMIT)
                if answer != "died":
                    return answer
            answer = f"died with {self._process.wait(10)}"
        except queue.Empty:
            answer = "hangs"
        self.close()
        self._start()
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


def fuzz(
    sound: Path, scratch: Path, kept: Path, seed: int, numbers: Iterable[int], groups: Sequence[str] = GROUPS
) -> Report:
    """Open the mutants of these numbers; failures are copied to `kept`."""
    print(f"seed {seed}, {', '.join(groups)}", flush=True)
    cases, report = Cases(sound, seed, groups), Report()
    worker = Worker(sound, scratch, seed, groups)
    try:
        for number in numbers:
            before = time.monotonic()
            answer = worker.open(number)
            if answer == "hangs":  # a busy machine may be slow once, a file that hangs does so always
                answer = worker.open(number)
            report.slowest = max(report.slowest, time.monotonic() - before)
            report.outcomes[answer.partition(":")[0]] += 1
            if answer.startswith(("died", "hangs", "raised")):
                path = _keep(cases, number, kept / f"{seed}-{number}")
                again = f"make fuzz SEED={seed} FIRST={number} GROUPS='{' '.join(groups)}'"
                message = f"seed {seed}, number {number}: {answer}; kept as {path}; again: {again}"
                print(message, flush=True)
                report.failures.append(message)
    finally:
        worker.close()
    print(dict(report.outcomes), f"slowest {report.slowest:.2f} s", flush=True)
    return report


def _keep(cases: Cases, number: int, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return cases.write(number, folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    parser.add_argument("--first", type=int, default=0, help="number of the first mutant")
    parser.add_argument("--kept", type=Path, default=Path("fuzz-failures"))
    parser.add_argument("groups", nargs="*", default=GROUPS, help=f"some of {', '.join(GROUPS)}")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sound, scratch = Path(folder) / "sound", Path(folder) / "scratch"
        write_sound_models(sound)
        end = time.monotonic() + arguments.seconds
        numbers = itertools.takewhile(lambda _: time.monotonic() < end, itertools.count(arguments.first))
        report = fuzz(sound, scratch, arguments.kept, arguments.seed, numbers, arguments.groups)
    print(f"{report.outcomes.total()} mutants, {len(report.failures)} failures")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
