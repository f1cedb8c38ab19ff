"""`edge-distill traces`: problems go to a teacher, checked traces come back."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from edge_distill.traces.answer_log import AnswerLog, LoggedTeacher
from edge_distill.traces.collecting import Outcome, Stores, collect, question_of
from edge_distill.traces.few_shot import choose_exemplars
from edge_distill.traces.granularity import Granularity
from edge_distill.traces.preferences import preference_pairs
from edge_distill.traces.report import TracesWritten, groups_of
from edge_distill.traces.selection import open_scorer
from edge_distill.traces.step_labels import step_labels
from edge_distill.traces.store import Rejects, TraceStore
from edge_distill.traces.teachers.teacher import Sampling, Teacher
from edge_distill.traces.trace import read_traces
from edge_distill.traces.tree import Search
from edge_distill.traces.ways import Way, WayName
from edge_distill_bench.problem import Problem
from edge_distill_bench.tasks import BadLine, Split, load_problems
from edge_distill_export.progress import stage
from edge_distill_runtime.errors import BackendError, InputError

__all__ = ["Part", "traces", "write_traces"]


def traces(
    sources: Annotated[
        list[str], "Problems: task:FAMILY?option=value, FILE.jsonl with problem and answer, hf:NAME"
    ],
    *,
    teacher: Annotated[str, "solver:, hf:DIR, bundle:DIR, gguf:FILE or openai:URL?model=NAME"],
    out: Annotated[Path, "The file of traces (JSON Lines); a run that was interrupted goes on there"],
    count: Annotated[int | None, "Problems of each source; a file's are all taken by default"] = None,
    split: Annotated[Split, "The part of each source; the three never share a problem"] = "train",
    seed: Annotated[int, "Of the problems, and of the first sample of each"] = 0,
    samples: Annotated[int, "Samples of a problem in a round, for self-consistency"] = 1,
    temperature: Annotated[float, "0 is greedy"] = 0.7,
    max_tokens: Annotated[int, "Most tokens of one answer, reasoning included"] = 512,
    at_once: Annotated[int, "Requests that run together; for a server with a large GPU 64 and more"] = 8,
    tries: Annotated[int, "Rounds with new seeds before a problem is dropped; a greedy teacher has one"] = 3,
    few_shot: Annotated[int, "Worked examples before each problem"] = 0,
    exemplars: Annotated[
        str | None, "Take them from this source or file instead of the source's training split"
    ] = None,
    elicit: Annotated[WayName, "Chain of thought, tree of thoughts, or tool use"] = "chain",
    verify: Annotated[bool, "Let the teacher check its answers by questions of its own"] = False,
    search: Annotated[
        Search, "The tree's paths: the best few of each level, or the best one anywhere"
    ] = "breadth",
    scorer: Annotated[
        str,
        "Who scores the tree's steps: checker, teacher, or prm:DIR, a reward model, which chooses samples too",
    ] = "checker",
    refutation: Annotated[bool, "Keep a wrong step that the tree pruned, with its refutation"] = False,
    granularity: Annotated[Granularity, "The steps of a trace that are kept"] = "full",
    pairs: Annotated[bool, "Write preference pairs and step labels from the samples too"] = False,
) -> TracesWritten:
    """Write a teacher's traces: problems are asked, answers graded, steps checked, the best right sample is kept.

    Beside NAME.jsonl lie NAME.samples.jsonl with every sample and NAME.answers.jsonl with every answer that has been
    paid for; by --pairs NAME.pairs.jsonl and NAME.labels.jsonl in TRL's schemas; bad lines go to rejects.jsonl.
    """
    from edge_distill.traces.teachers.opening import open_teacher

    sampling = Sampling(temperature=temperature, max_tokens=max_tokens)
    judge = open_scorer(scorer)
    names = list(dict.fromkeys(sources))
    bad_lines: list[tuple[str, BadLine]] = []
    parts = []
    for source in names:
        with stage(f"Problems of {source}"):
            problems = load_problems(
                source, split=split, count=count, seed=seed, on_bad_line=partial(_note, bad_lines, source)
            )
            pool = choose_exemplars(exemplars or source, few_shot, curated=exemplars is not None)
        way = Way(elicit, samples, sampling, seed, pool, verify, search, judge, refutation)
        parts.append(Part(source, problems, way))
    _reject(bad_lines, out.parent)
    asked = open_teacher(teacher, at_once=at_once)
    try:
        written = write_traces(parts, asked, out, tries=tries, granularity=granularity, pairs=pairs)
    finally:
        asked.close()
    return replace(written, bad_lines=len(bad_lines))


@dataclass(frozen=True)
class Part:
    """Problems of one source, and how they are asked."""

    name: str
    problems: Sequence[Problem]
    way: Way


def write_traces(
    parts: Sequence[Part],
    teacher: Teacher,
    out: Path,
    *,
    tries: int = 3,
    granularity: Granularity = "full",
    pairs: bool = False,
) -> TracesWritten:
    """Ask all parts and write the files of `traces`; what an earlier run has is not asked again.

    Raises `ResourceError` while another run writes there, `BackendError` when the teacher answered nothing at all.
    """
    if tries < 1:
        raise InputError("bad-tries", f"{tries} rounds", "it must be at least 1")
    for part in parts:
        part.way.check(teacher)
    started = time.monotonic()
    samples_file = _beside(out, "samples")
    with (
        TraceStore(out, key=question_of) as chosen,
        TraceStore(samples_file) as samples,
        AnswerLog(_beside(out, "answers")) as log,
    ):
        logged = LoggedTeacher(teacher, log)
        stores = Stores(samples, chosen)
        outcomes = [
            outcome
            for part in parts
            for outcome in collect(
                part.problems,
                logged,
                part.way.elicitation,
                stores,
                tries=part.way.rounds(teacher, tries),
                granularity=granularity,
                scorer=part.way.trace_scorer,
                name=f"Asking about {part.name}",
            )
        ]
    _ensure_answers(outcomes, teacher)
    written = _result(out, samples_file, outcomes, logged, time.monotonic() - started)
    return _with_pairs(written, out, samples_file) if pairs else written


def _result(
    out: Path, samples: Path, outcomes: Sequence[Outcome], teacher: LoggedTeacher, seconds: float
) -> TracesWritten:
    kept = [outcome.solved_in for outcome in outcomes if outcome.solved_in is not None]
    return TracesWritten(
        out=str(out),
        samples_file=str(samples),
        teacher=teacher.name,
        problems=len(outcomes),
        kept=len(kept),
        dropped=len(outcomes) - len(kept),
        unanswered=sum(outcome.answered == 0 for outcome in outcomes),
        kept_in_round=tuple(kept.count(turn + 1) for turn in range(max(kept, default=0))),
        samples=sum(outcome.answered for outcome in outcomes),
        cut_off=sum(outcome.cut_off for outcome in outcomes),
        failed=sum(outcome.failed for outcome in outcomes),
        last_error=next((outcome.error for outcome in reversed(outcomes) if outcome.error), ""),
        requests=teacher.asked,
        requests_found=teacher.found,
        tokens=teacher.tokens,
        seconds=seconds,
        groups=groups_of(outcomes),
    )


def _with_pairs(written: TracesWritten, out: Path, samples: Path) -> TracesWritten:
    """The pairs and labels of all samples that the file holds, those of earlier runs too."""
    pairs_file, labels_file = _beside(out, "pairs"), _beside(out, "labels")
    pairs = _write_lines(pairs_file, preference_pairs(read_traces(samples)))
    labels = _write_lines(labels_file, step_labels(read_traces(samples)))
    return replace(
        written, pairs_file=str(pairs_file), labels_file=str(labels_file), pairs=pairs, labels=labels
    )


def _write_lines(path: Path, items: Iterable[dict[str, Any]]) -> int:
    """JSON Lines, whole or not at all; says how many."""
    partial_file = path.with_name(f".{path.name}.{os.getpid()}")
    count = 0
    try:
        with partial_file.open("w", encoding="utf-8") as file:
            for item in items:
                file.write(json.dumps(item, ensure_ascii=False) + "\n")
                count += 1
        os.replace(partial_file, path)
    finally:
        partial_file.unlink(missing_ok=True)
    return count


def _ensure_answers(outcomes: Sequence[Outcome], teacher: Teacher) -> None:
    failed = [outcome for outcome in outcomes if outcome.failed]
    if failed and not any(outcome.answered for outcome in outcomes):
        raise BackendError(
            "no-answers",
            f"{teacher.name} answered none of {len(outcomes)} problems: {failed[-1].error or 'no reason'}",
            "nothing is lost: the same command goes on when the teacher can answer",
        )


def _note(lines: list[tuple[str, BadLine]], source: str, line: BadLine) -> None:
    lines.append((source, line))


def _reject(lines: Sequence[tuple[str, BadLine]], folder: Path) -> None:
    if lines:
        with Rejects(folder) as rejects:
            for source, bad in lines:
                rejects.add(source, bad.line, bad.reason)


def _beside(out: Path, what: str) -> Path:
    return out.with_name(f"{out.stem}.{what}.jsonl")
