"""Traces as training examples, and the order in which they are learned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edge_distill.distil.spans import Example, Solution, Step, make_example
from edge_distill.traces.granularity import Granularity, compress, compress_trace
from edge_distill.traces.steps import annotate
from edge_distill.traces.trace import Trace, read_traces
from edge_distill_export.calibration import Style
from edge_distill_export.calibration import Trace as RenderedTrace
from edge_distill_runtime.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["Dataset", "batches_of_epoch", "load_dataset", "solution_of"]

_POOL = 32  # batches whose traces are sorted by length together


@dataclass(frozen=True)
class Dataset:
    """Examples in the order of their files, and what was left out."""

    examples: tuple[Example, ...]
    ids: tuple[str, ...]
    """The trace of each example."""
    left_out: dict[str, int]
    """How many traces could not be used, by reason."""

    @property
    def lengths(self) -> list[int]:
        return [len(example.tokens) for example in self.examples]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, row: int) -> int:
        """The row itself: whoever collates looks up what belongs to it."""
        return row


def load_dataset(
    paths: Sequence[Path],
    style: Style,
    tokenizer: PreTrainedTokenizerFast,
    *,
    context: int,
    granularity: Granularity = "full",
    keep_wrong: bool = False,
    edit: Callable[[Trace], Trace] = lambda trace: trace,
    mark_critical: bool = True,
) -> Dataset:
    """Read, compress, render and check all traces; those that do not fit or cannot be written are counted.

    `edit` changes a trace before it is compressed. Without `mark_critical` nobody looks for critical steps, which takes
    half the time.

    Raises `InputError` for a line that is no trace, and when no trace is left.
    """
    examples, ids, left_out = [], [], Counter[str]()
    for path in paths:
        for trace in read_traces(path):
            reason = _unfit(trace, keep_wrong)
            if reason:
                left_out[reason] += 1
                continue
            try:
                examples.append(
                    make_example(
                        solution_of(edit(trace), granularity, mark_critical=mark_critical),
                        style,
                        tokenizer,
                        context,
                    )
                )
                ids.append(trace.id)
            except InputError as exc:
                if exc.code == "dropped-from-text":  # the chat form is at fault, not the trace
                    raise
                left_out[exc.code] += 1
    if not examples:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "no lines"
        raise InputError(
            "no-traces",
            f"no trace of {', '.join(map(str, paths))} can be used: {reasons}",
            "raise the context, or look at the traces with `edge-distill traces stats`",
        )
    return Dataset(tuple(examples), tuple(ids), dict(left_out))


def _unfit(trace: Trace, keep_wrong: bool) -> str:
    """Why a trace is not learned from; empty when it is."""
    if "finish_reason" in trace.notes:  # the teacher was cut off, or failed
        return "unfinished"
    return "wrong" if trace.correct is False and not keep_wrong else ""


def solution_of(trace: Trace, granularity: Granularity, *, mark_critical: bool = True) -> Solution:
    """What the student is to write: the trace at a granularity, its critical steps marked.

    The student sees the problem alone: exemplars and instructions served the teacher. Only a trace with tool use
    keeps what stands before it, where the tools are described.
    """
    annotated = trace if trace.steps else replace(trace, steps=annotate(trace.reasoning))
    trace = compress_trace(annotated, granularity)
    kept = trace.steps
    critical = {id(step) for step in compress(kept, trace.answer, "critical")} if mark_critical else set()
    asked = _asking_turn(trace)
    turns = tuple(_as_turn(turn) for turn in trace.messages[asked + 1 : -1])
    prompt = trace.messages[: asked + 1] if turns else ({"role": "user", "content": trace.problem},)
    return Solution(
        RenderedTrace(prompt, trace.reasoning, trace.messages[-1]["content"]),
        turns,
        tuple(Step(step.text, step.role, step.verdict, id(step) in critical) for step in kept),
    )


def batches_of_epoch(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> Iterator[list[int]]:
    """Rows in batches of similar length, in an order that depends on seed and epoch alone.

    What does not fill a last batch is left out of this epoch; another epoch leaves out others.
    """
    import numpy as np

    generator = np.random.default_rng((seed, epoch))
    rows = generator.permutation(len(lengths))[: len(lengths) // batch_size * batch_size]
    batches: list[list[int]] = []
    for start in range(0, len(rows), batch_size * _POOL):
        pool = sorted(rows[start : start + batch_size * _POOL].tolist(), key=lambda row: lengths[row])
        batches += [pool[at : at + batch_size] for at in range(0, len(pool), batch_size)]
    for index in generator.permutation(len(batches)):
        yield batches[index]


def _asking_turn(trace: Trace) -> int:
    """The last user's turn that holds the problem; what follows is tool use. Without one, the last user's."""
    users = [i for i, turn in enumerate(trace.messages) if turn["role"] == "user"]
    return max((i for i in users if trace.problem in trace.messages[i]["content"]), default=users[-1])


def _as_turn(turn: dict[str, str]) -> dict[str, str]:
    """A tool's turn as chat forms know it; the assistant's reasoning stands before what it called."""
    role = "assistant" if turn["role"] == "assistant" else "user"
    return {"role": role, "content": turn.get("reasoning_content", "") + turn["content"]}
