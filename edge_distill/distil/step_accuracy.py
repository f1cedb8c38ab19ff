"""A reward model's accuracy on held-out steps, with how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edge_distill.distil.result import StepAccuracy
from edge_distill.distil.reward_training import judged
from edge_distill.distil.spans import Example
from edge_distill_bench.statistics import wilson

__all__ = ["step_accuracies"]


def step_accuracies(examples: Sequence[Example], metrics: Mapping[str, float]) -> dict[str, StepAccuracy]:
    """The accuracies of a validation (`metrics`) as counts of its steps; kinds without a step are left out."""
    verdicts = [span.step.verdict for example in examples for span in judged(example.steps)]
    right = verdicts.count("verified")
    counts = {
        "all": (len(verdicts), "eval_accuracy"),
        "right": (right, "eval_accuracy_right"),
        "wrong": (len(verdicts) - right, "eval_accuracy_wrong"),
    }
    return {
        name: StepAccuracy(steps, wilson(round(metrics[key] * steps), steps))
        for name, (steps, key) in counts.items()
        if steps
    }
