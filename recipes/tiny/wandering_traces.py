"""Traces with steps that nothing depends on, for the ablation of granularity in docs/distillation.md.

Before a needed step stands, every second time, a true sum of two of the problem's numbers. `--granularity critical`
takes those out again whose result is not by chance a number that a later step uses; `full` learns all.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from edge_distill.traces.checker import check_step
from edge_distill.traces.trace import Step, Trace, answer_turn, read_traces, to_line


def wandering(trace: Trace, generator: random.Random) -> Trace:
    """The same problem and answer; its steps with others between them."""
    numbers = [int(number) for number in re.findall(r"\d+", trace.problem)]
    texts = list(_with_others([step.text for step in trace.steps], numbers, generator))
    reasoning = "\n".join(texts)
    turn = answer_turn(trace.messages[-1]["content"], reasoning)
    steps = tuple(Step(text, "structure", check_step(text)) for text in texts)
    return replace(trace, reasoning=reasoning, messages=(*trace.messages[:-1], turn), steps=steps)


def _with_others(steps: list[str], numbers: list[int], generator: random.Random) -> Iterator[str]:
    for step in steps:
        if generator.random() < 0.5:
            first, second = generator.sample(numbers, 2)
            yield f"{first} + {second} = {first + second}"
        yield step


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Put steps that nothing depends on between those of solved problems."
    )
    parser.add_argument("solved", type=Path, help="traces, such as a solver's")
    parser.add_argument("wandering", type=Path, help="the file to write")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    generator = random.Random(given.seed)
    lines = [to_line(wandering(trace, generator)) for trace in read_traces(given.solved)]
    given.wandering.write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
