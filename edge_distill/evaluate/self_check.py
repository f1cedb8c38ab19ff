"""Self-check: what a student makes of its own answers by chain-of-verification (arXiv:2309.11495).

The student asks questions about its draft, answers each without sight of the draft, and answers again. Told are the
accuracy before and after, how often the answer changes, and how often that is for worse (right to wrong, of the
right ones) and for better (wrong to right, of the wrong ones). A revision that is cut off is not right.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

from edge_distill.evaluate.measures import Measure
from edge_distill.evaluate.student import Student
from edge_distill_bench.answering import Row
from edge_distill_bench.grading import Verdict, grade
from edge_distill_bench.lines import append_lines, bad_line, cut_torn_line, read_lines
from edge_distill_bench.problem import Problem
from edge_distill_export.progress import stage
from edge_distill_runtime import Generation
from edge_distill_runtime.bundles.typed_json import typed
from edge_distill_runtime.reasoning.verification import Verification, verify_answer

__all__ = ["self_check"]


@dataclass(frozen=True)
class _Checked:
    """One draft and what became of it; a line of the file."""

    key: str
    """Hash of the model, the problem, the right answer, the draft and the limit of tokens."""
    id: str
    outcome: str
    """As `Verification.outcome`."""
    questions: int
    draft: str
    revised: str
    """The text of the answer; the draft's when it was kept."""
    before: Verdict
    after: Verdict
    changed: bool
    tokens: int


def self_check(student: Student, problems: Sequence[Problem], rows: Mapping[str, Row]) -> list[Measure]:
    """Check every draft that gives an answer."""
    drafts = [problem for problem in problems if rows[problem.id].verdict in ("right", "wrong")]
    checked = _check_all(student, drafts, rows)
    before = {name: found.before == "right" for name, found in checked.items()}
    after = {name: found.after == "right" for name, found in checked.items()}
    how = Counter(found.outcome for found in checked.values())
    note = ", ".join(f"{count} {outcome}" for outcome, count in how.most_common())
    draft = Measure("self-check", "accuracy of the drafts", before)
    return [
        draft,
        Measure("self-check", "accuracy after the check", after, draft, note),
        Measure("self-check", "answer changes", {name: found.changed for name, found in checked.items()}),
        Measure(
            "self-check", "right to wrong", {name: not after[name] for name, right in before.items() if right}
        ),
        Measure(
            "self-check", "wrong to right", {name: after[name] for name, right in before.items() if not right}
        ),
    ]


def _check_all(student: Student, problems: Sequence[Problem], rows: Mapping[str, Row]) -> dict[str, _Checked]:
    """Those of the file, and the missing ones, several at once; each is written down when it is done."""
    path = student.folder / "self-check.jsonl"
    keys = {problem.id: _key(student, problem, rows[problem.id]) for problem in problems}
    done = {found.id: found for found in _read(path) if keys.get(found.id) == found.key}
    missing = [problem for problem in problems if problem.id not in done]
    cancel = threading.Event()

    def check(problem: Problem) -> _Checked:
        draft = _generation(student, rows[problem.id])
        verification = verify_answer(
            student.model,
            problem.problem,
            draft,
            max_tokens=student.max_tokens,
            temperature=0.0,
            seed=0,
            cancel=cancel,
        )
        return _checked(keys[problem.id], problem, rows[problem.id], verification)

    with (
        stage(f"{student.name}: self-check", len(problems)) as advance,
        ThreadPoolExecutor(student.at_once, "checking") as threads,
    ):
        advance(len(done))
        futures = [threads.submit(check, problem) for problem in missing]
        try:
            for future in as_completed(futures):
                found = future.result()
                append_lines(path, [asdict(found)])
                done[found.id] = found
                advance()
        finally:  # what runs ends within one token
            for future in futures:
                future.cancel()
            cancel.set()
    return {problem.id: done[problem.id] for problem in problems}


def _checked(key: str, problem: Problem, row: Row, verification: Verification) -> _Checked:
    revision = verification.revision
    after: Verdict = row.verdict
    if revision is not None and revision.finish_reason in ("length", "context"):
        after = "cut off"
    elif revision is not None:
        after = grade(verification.revised, problem.answer).verdict
    return _Checked(
        key=key,
        id=problem.id,
        outcome=verification.outcome,
        questions=len(verification.checks),
        draft=verification.draft,
        revised=verification.revised,
        before=row.verdict,
        after=after,
        changed=verification.changed,
        tokens=verification.tokens,
    )


def _generation(student: Student, row: Row) -> Generation:
    """The draft as the runtime would hand it over."""
    reasoning, answer = student.split(row)
    return Generation(
        text=row.text,
        reasoning=reasoning,
        answer=answer,
        tokens=(),
        reasoning_tokens=row.reasoning_tokens,
        finish_reason="stop",
        prompt_tokens=row.prompt_tokens,
        cached_tokens=0,
        prompt_seconds=row.prompt_seconds,
        seconds=row.seconds,
    )


def _key(student: Student, problem: Problem, row: Row) -> str:
    # the row's key names the model with all that steers it, the prompt and the right answer
    parts = [row.key, row.text, problem.problem, student.max_tokens]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _read(path: Path) -> list[_Checked]:
    if not path.exists():
        return []
    cut_torn_line(path)
    result = []
    for number, values in read_lines(path):
        try:
            result.append(typed(_Checked, values, "check"))
        except ValueError as exc:
            raise bad_line(path, number) from exc
    return result
