"""What training on the student's own samples takes: problems, their prompts, and what a sample is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_distill.traces.trace import Trace
from edge_distill_bench.problem import Problem
from edge_distill_bench.tasks import Split, load_problems
from edge_distill_export.calibration import Trace as RenderedTrace
from edge_distill_export.calibration import prompt_text
from edge_distill_runtime.errors import InputError

if TYPE_CHECKING:
    from edge_distill.distil.recipe import ExpertIterationSection, GrpoSection, RewardsSection
    from edge_distill.traces.selection import TraceScorer
    from edge_distill_export.artifact import Source

__all__ = [
    "Prompts",
    "load_prompts",
    "open_reward_model",
    "problems_of",
    "reward_of",
    "reward_parts",
    "verified_share",
]


def problems_of(section: ExpertIterationSection | GrpoSection, split: Split) -> dict[str, list[Problem]]:
    """The problems of every source: of its training split, or those that are held out."""
    count = section.held_out if split == "validation" else section.count
    return {source: load_problems(source, split=split, count=count) for source in section.problems}


def open_reward_model(section: ExpertIterationSection | GrpoSection) -> TraceScorer | None:
    """The process reward model that a recipe names; raises `InputError` when the folder holds something else."""
    if section.reward_model is None:
        return None
    from edge_distill.distil.reward_model import load_reward_model

    return load_reward_model(section.reward_model)


@dataclass(frozen=True)
class Prompts:
    """Problems as the student is asked them."""

    problems: tuple[Problem, ...]
    tokens: tuple[tuple[int, ...], ...]
    inside: tuple[bool, ...]
    """Whether a prompt ends inside the reasoning."""
    left_out: dict[str, int]
    """How many problems could not be asked, by reason."""

    @property
    def ids(self) -> list[str]:
        return [problem.id for problem in self.problems]

    @property
    def lengths(self) -> list[int]:
        return [len(tokens) for tokens in self.tokens]

    def __len__(self) -> int:
        return len(self.problems)

    def __getitem__(self, row: int) -> int:
        return row


def load_prompts(section: GrpoSection, split: Split, source: Source) -> Prompts:
    """The problems of a split in the student's own form; those that leave no room for a sample are counted.

    Raises `InputError` when none is left.
    """
    problems = [problem for some in problems_of(section, split).values() for problem in some]
    texts = [_prompt(problem, source) for problem in problems]
    tokenizer, context = source.checkpoint.tokenizer, source.context_length
    tokens = [tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    kept = [i for i, prompt in enumerate(tokens) if len(prompt) + section.max_tokens <= context]
    if not kept:
        raise InputError(
            "prompts-too-long",
            f"no problem of {', '.join(section.problems)} leaves room for {section.max_tokens} tokens in {context}",
            "raise the context, or lower grpo.max_tokens",
        )
    left, markers = len(problems) - len(kept), source.style.markers
    return Prompts(
        tuple(problems[i] for i in kept),
        tuple(tokens[i] for i in kept),
        tuple(markers is not None and texts[i].rstrip().endswith(markers.open) for i in kept),
        {"prompt-too-long": left} if left else {},
    )


def _prompt(problem: Problem, source: Source) -> str:
    return prompt_text(RenderedTrace(({"role": "user", "content": problem.problem},), "", ""), source.style)


def reward_parts(traces: Sequence[Trace], scorer: TraceScorer | None) -> dict[str, list[float]]:
    """The parts of every sample's reward, each from 0 to 1; all are 0 for a sample that did not end by itself.

    Otherwise true statements without an end would be rewarded.
    """
    ended = ["finish_reason" not in trace.notes for trace in traces]
    parts = {
        "answer": [float(trace.correct is True) for trace in traces],
        "steps": [verified_share(trace) for trace in traces],
    }
    if scorer:
        parts["reward_model"] = scorer.score_traces(traces)
    return {name: [part * end for part, end in zip(some, ended, strict=True)] for name, some in parts.items()}


def verified_share(trace: Trace) -> float:
    """Of the steps that the checker could judge, the share that holds; 0 where it could judge none."""
    judged = [step.verdict for step in trace.steps if step.verdict != "unknown"]
    return judged.count("verified") / len(judged) if judged else 0.0


def reward_of(parts: dict[str, list[float]], weights: RewardsSection) -> list[float]:
    """The weighted sum of every sample's parts."""
    rows = zip(*parts.values(), strict=True)
    scales = [getattr(weights, name) for name in parts]
    return [sum(scale * part for scale, part in zip(scales, row, strict=True)) for row in rows]
