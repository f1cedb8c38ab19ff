"""Writes traces with a teacher that notes what it is asked: python killed_writer.py OUT LOG SECONDS."""

from __future__ import annotations

import sys
from pathlib import Path

from edge_distill.traces.teachers.teacher import Sampling
from edge_distill.traces.ways import Way
from edge_distill.traces.writing import Part, write_traces
from tests.traces.small_teachers import ErringTeacher, sums

PROBLEMS, SAMPLES, TRIES = 60, 3, 3


def main() -> None:
    teacher = ErringTeacher(Path(sys.argv[2]), seconds=float(sys.argv[3]), failing=0)
    part = Part("sums", sums(PROBLEMS), Way("chain", SAMPLES, Sampling()))
    print("ready", flush=True)
    write_traces([part], teacher, Path(sys.argv[1]), tries=TRIES, pairs=True)


if __name__ == "__main__":
    main()
