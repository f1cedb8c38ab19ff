"""What one run of `bench` is asked for, from a command line or from another run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

from edge_distill_bench.measure import check_counts
from edge_distill_bench.results import Settings
from edge_distill_bench.tasks import Split
from edge_distill_runtime.engines.machine import usable_cpus
from edge_distill_runtime.errors import InputError

__all__ = ["PARTS", "Options", "numbers", "words"]

PARTS = ("latency", "memory", "accuracy", "fidelity")
_ANSWER = 128  # tokens behind the longest reasoning


TASKS_HELP = "Problems: task:FAMILY?option=value, FILE.jsonl or hf:NAME, with commas (task:gsm_symbolic)"
ITEMS_HELP = "Problems of all tasks together (200)"
BUDGETS_HELP = "Most tokens of reasoning, with commas (0,64,256)"
SAMPLES_HELP = "1 is greedy, 8 the majority of 8 samples, which take 8 times as long; 1,8 for both (1)"
SPLIT_HELP = "Of the problems: test, or all of a file that was made for testing"
CONTEXTS_HELP = "Tokens at which memory is measured"
GATE_HELP = "Limits such as retention>=0.99,kl<=0.05,ttft_p95<=0.5,rss<=300MB; exit code 8 when one fails"


@dataclass(frozen=True)
class Options:
    """What is asked for; None takes the other run's setting, else the default in brackets."""

    tasks: tuple[str, ...] | None = None
    """Specs of `load_problems` (task:gsm_symbolic)."""
    items: int | None = None
    """Of all tasks together (200)."""
    budgets: tuple[int, ...] | None = None
    """Tokens of reasoning (0, 64, 256)."""
    samples: tuple[int, ...] | None = None
    """1 is greedy, k the majority of k (1)."""
    seed: int | None = None
    """(0)"""
    split: Split = "test"
    threads: int | None = None
    """(the CPUs that the process may use)"""
    rounds: int = 5
    contexts: tuple[int, ...] = (512, 2048)
    parts: tuple[str, ...] = PARTS

    def settings(self, other: Settings | None) -> Settings:
        """Checked, with the problems of the other run where there is one."""
        if unknown := [part for part in self.parts if part not in PARTS]:
            raise InputError("bad-parts", f"there is no part {unknown[0]!r}", f"there are {', '.join(PARTS)}")
        if self.split not in get_args(Split):
            raise InputError("bad-split", f"split is {self.split!r}", f"it must be one of {get_args(Split)}")
        check_counts(rounds=self.rounds)
        for context in self.contexts:
            check_counts(context=context)
        budgets = _agreed("budgets", self.budgets, other and other.budgets, (0, 64, 256))
        threads = usable_cpus() if self.threads is None else self.threads
        check_counts(threads=threads)
        return Settings(
            tasks=_agreed("tasks", self.tasks, other and other.tasks, ("task:gsm_symbolic",)),
            items=_agreed("items", self.items, other and other.items, 200),
            budgets=budgets,
            samples=_agreed("samples", self.samples, other and other.samples, (1,)),
            seed=_agreed("seed", self.seed, other and other.seed, 0),
            threads=threads,
            max_tokens=other.max_tokens if other else max(budgets, default=0) + _ANSWER,
            rounds=self.rounds,
            contexts=self.contexts,
            parts=self.parts,
            split=other.split if other else self.split,
        )


def _agreed(name: str, asked: Any, other: Any, default: Any) -> Any:
    if asked is not None and other is not None and asked != other:
        raise InputError(
            "other-settings",
            f"{name} {asked} was asked for, the teacher's run has {other}",
            f"leave --{name} out, or run the teacher with the same",
        )
    return next(value for value in (asked, other, default) if value is not None)


def words(name: str, text: str | None) -> tuple[str, ...] | None:
    """A comma-separated list from the command line; None stays None."""
    if text is None:
        return None
    found = tuple(part.strip() for part in text.split(","))
    if not all(found):
        raise InputError(f"bad-{name}", f"--{name} is {text[:80]!r}", "give a list like a,b")
    return found


def numbers(name: str, text: str | None) -> tuple[int, ...] | None:
    """Whole numbers from a comma-separated list, ascending, each once; None stays None."""
    parts = words(name, text)
    if parts is None:
        return None
    if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise InputError(f"bad-{name}", f"--{name} is {text!r:.80}", "give whole numbers like 0,64,256")
    return tuple(sorted({int(part) for part in parts}))
