"""Traces of additions."""

from __future__ import annotations

import json
from pathlib import Path

from edge_distill.traces.steps import annotate
from edge_distill.traces.trace import Trace, make_trace, to_line


def sums(count: int, start: int = 0) -> list[Trace]:
    """Traces of additions, of different lengths."""
    traces = []
    for seed in range(start, start + count):
        numbers = [(seed * 7 + i * 13) % 90 + 10 for i in range(2 + seed % 3)]
        total, steps = numbers[0], []
        for number in numbers[1:]:
            steps.append(f"{total} + {number} = {total + number}")
            total += number
        reasoning = "\n".join(steps)
        problem = f"What is {' + '.join(map(str, numbers))}?"
        fields = {"steps": annotate(reasoning), "correct": True, "teacher": "solver", "seed": seed}
        traces.append(make_trace(problem, reasoning, str(total), task="sums", **fields))
    return traces


def write(path: Path, traces: list[Trace]) -> None:
    path.write_text("".join(to_line(trace) + "\n" for trace in traces), "utf-8")


def pair_lines(count: int) -> list[str]:
    """Lines of TRL's form that prefer the right sum."""
    lines = []
    for number in range(count):
        prompt = [{"role": "user", "content": f"What is {number} + 1?"}]
        turns = {
            key: [{"role": "assistant", "content": str(number + n)}]
            for n, key in ((1, "chosen"), (2, "rejected"))
        }
        lines.append(json.dumps({"prompt": prompt, **turns}))
    return lines
