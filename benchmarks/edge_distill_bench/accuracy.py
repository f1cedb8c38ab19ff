"""Accuracy of a model by budget and samples, and what became of every item against the teacher and the student.

Everything follows from the rows, which are kept: other pairs can be compared later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_distill_bench.answering import Row, answer_items
from edge_distill_bench.outcomes import Answered, Outcome, flip
from edge_distill_bench.problem import Problem
from edge_distill_bench.results import AccuracyCell, AccuracyResult, Comparison, Flips, LengthBin, Role
from edge_distill_bench.statistics import Pairs, difference, equivalence, mcnemar, retention, wilson
from edge_distill_runtime import InputError, Model
from edge_distill_runtime.generation.budget import soft_budget

__all__ = ["MARGIN", "ask_model", "count_questions", "measure_accuracy"]

Tasks = Mapping[str, Sequence[Problem]]
"""The problems of every task, by its spec."""

MARGIN = 0.05
"""Of equivalence, in accuracy: 200 items with few flips can show five percentage points, not two."""

_TEMPERATURE = 0.7  # `Model.reason` draws with it too, where the manifest recommends none
_SHORTEST_BIN = 16  # tokens


def ask_model(
    model: Model,
    tasks: Tasks,
    *,
    name: str,
    role: Role,
    budgets: Sequence[int],
    samples: Sequence[int],
    max_tokens: int,
    seed: int = 0,
    rows: Path | None = None,
    at_once: int = 8,
    progress: Callable[[int], object] = lambda done: None,
) -> Answered:
    """Ask all problems with every budget: greedily where `samples` holds 1, and as often as its largest number says.

    Budget 0 closes the reasoning at once. Reasoning that ended before a smaller budget could have ended it stands for
    both. A model without reasoning markers is asked once, without a budget.
    `rows` is continued, as `answer_items` says; `progress` is told how many of `count_questions` are done.
    Raises `InputError` for budgets or samples that make no sense, and for problems that share an id.
    """
    _check(tasks, budgets, samples, max_tokens)
    problems = [problem for task in tasks.values() for problem in task]
    found: list[Row] = []
    larger: dict[int, list[Row]] = {}  # by the number of samples
    before = 0
    for budget in sorted(_budgets(model, budgets), key=lambda budget: budget or 0, reverse=True):
        for count in _drawn(samples):
            larger[count] = answer_items(
                model,
                problems,
                samples=count,
                # a bare file has no manifest of hashes
                model_hash=None if model.manifest.files else model.model_hash,
                rows=rows,
                known=_unhindered(larger.get(count, ()), budget),
                at_once=at_once,
                progress=lambda done, before=before: progress(before + done),  # type: ignore[misc]
                max_tokens=max_tokens,
                seed=seed,
                thinking_budget=budget,
                thinking=None if budget is None else budget > 0,
                temperature=_temperature(model) if count > 1 else 0.0,
            )
            found += larger[count]
            before += len(problems)
    return Answered(name, role, tuple(found))


def _unhindered(rows: Sequence[Row], budget: int | None) -> dict[str, list[Row]]:
    """By problem, the rows with a larger budget that this one would not have changed."""
    if not budget:  # without reasoning the prompt is another one
        return {}
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.id, []).append(row)
    limit = soft_budget(budget)
    return {name: own for name, own in found.items() if all(row.reasoning_tokens < limit for row in own)}


def count_questions(model: Model, tasks: Tasks, budgets: Sequence[int], samples: Sequence[int]) -> int:
    """How many problems `ask_model` asks, each budget and set of samples counted."""
    return sum(map(len, tasks.values())) * len(list(_budgets(model, budgets))) * len(list(_drawn(samples)))


def _budgets(model: Model, budgets: Sequence[int]) -> Sequence[int | None]:
    return (None,) if model.manifest.reasoning is None else budgets


def _drawn(samples: Sequence[int]) -> Iterator[int]:
    """The sets of samples that are drawn: smaller majorities are taken from the largest set."""
    if 1 in samples:
        yield 1
    if max(samples) > 1:
        yield max(samples)


def _temperature(model: Model) -> float:
    return model.manifest.sampling.temperature or _TEMPERATURE


def _check(tasks: Tasks, budgets: Sequence[int], samples: Sequence[int], max_tokens: int) -> None:
    if not budgets or min(budgets) < 0 or max(budgets) >= max_tokens:
        raise InputError(
            "bad-budgets",
            f"budgets {list(budgets)} for generations of at most {max_tokens} tokens",
            "give budgets from 0 to less than that, or raise --max-tokens",
        )
    if not samples or min(samples) < 1:
        raise InputError("bad-samples", f"samples {list(samples)}", "give numbers of at least 1")
    ids = [problem.id for task in tasks.values() for problem in task]
    if not ids:
        raise InputError("no-items", "there are no problems to ask", "give a task")
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise InputError("double-id", f"the problem {twice!r} stands twice", "give tasks that share none")


# -- from rows to results --------------------------------------------------------------------------------------


def measure_accuracy(
    answered: Answered,
    tasks: Tasks,
    *,
    budgets: Sequence[int],
    samples: Sequence[int],
    against: Sequence[Answered] = (),
    margin: float = MARGIN,
) -> AccuracyResult:
    """Cells for every budget and every majority up to the largest set of samples; comparisons for those asked for.

    maj@k takes the first k samples of the largest set. "all" pools the tasks; each has cells of its own when there
    are several. `against` are other models on the same items; a budget or set of samples that one of them was not
    asked with is left out.
    """
    groups = {"all": [problem.id for task in tasks.values() for problem in task]}
    if len(tasks) > 1:
        groups |= {task: [problem.id for problem in problems] for task, problems in tasks.items()}
    counts = ([1] if 1 in samples else []) + list(range(2, max(samples) + 1))
    cells = []
    for budget in budgets:
        for count in counts:
            for task, ids in groups.items():
                if (outcomes := answered.outcomes(ids, budget, count)) is not None:
                    cells.append(_cell(task, budget, count, outcomes))
    return AccuracyResult(
        cells=tuple(cells),
        comparisons=tuple(
            comparison
            for other in against
            for budget in budgets
            for count in samples
            if (comparison := _compare(answered, other, groups["all"], budget, count, margin))
        ),
        lengths=_lengths(answered, groups["all"], max(budgets), 1 if 1 in samples else max(samples)),
        takes_budgets=answered.takes_budgets,
    )


def _cell(task: str, budget: int, samples: int, outcomes: Sequence[Outcome]) -> AccuracyCell:
    verdicts = [outcome.verdict for outcome in outcomes]
    items, right = len(outcomes), verdicts.count("right")
    return AccuracyCell(
        task=task,
        budget=budget,
        samples=samples,
        items=items,
        right=right,
        wrong=verdicts.count("wrong"),
        unparsed=verdicts.count("unparsed"),
        cut_off=verdicts.count("cut off"),
        accuracy=wilson(right, items),
        seconds=sum(outcome.seconds for outcome in outcomes) / items,
        tokens=sum(outcome.tokens for outcome in outcomes) / items,
    )


def _compare(
    answered: Answered, other: Answered, ids: Sequence[str], budget: int, samples: int, margin: float
) -> Comparison | None:
    ours, theirs = answered.outcomes(ids, budget, samples), other.outcomes(ids, budget, samples)
    if ours is None or theirs is None:
        return None
    pairs = Pairs.of([outcome.is_right for outcome in ours], [outcome.is_right for outcome in theirs])
    flips: list[Any] = [flip(before, after) for before, after in zip(theirs, ours, strict=True)]
    return Comparison(
        against=other.name,
        role=other.role,
        budget=budget,
        samples=samples,
        items=pairs.items,
        retention=retention(pairs) if pairs.second_right else None,
        difference=difference(pairs),
        mcnemar_p=mcnemar(pairs),
        equivalence=equivalence(pairs, margin),
        flips=Flips(
            right_to_wrong=flips.count("right to wrong"),
            wrong_to_right=flips.count("wrong to right"),
            wrong_to_other=flips.count("wrong to other"),
            same=flips.count("same"),
        ),
    )


def _lengths(answered: Answered, ids: Sequence[str], budget: int, samples: int) -> tuple[LengthBin, ...]:
    """Bins that double: below 16 tokens, 16 to below 32, and so on; each sample counts."""
    found = answered.samples(ids, budget, samples) or []
    bins: dict[int, list[bool]] = {}
    for row in (row for rows in found for row in rows):
        low = 0 if row.tokens < _SHORTEST_BIN else 1 << (row.tokens.bit_length() - 1)
        bins.setdefault(low, []).append(row.verdict == "right")
    return tuple(
        LengthBin(low, 2 * low or _SHORTEST_BIN, len(rights), sum(rights))
        for low, rights in sorted(bins.items())
    )
