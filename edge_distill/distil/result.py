"""What a training run has done, for `edge-distill distill` and the file beside the student."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from edge_distill_bench.statistics import Estimate

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Distilled", "Round", "StepAccuracy"]


@dataclass(frozen=True)
class StepAccuracy:
    """How many steps a reward model judges rightly, of those that it was not trained on."""

    steps: int
    accuracy: Estimate
    """With Wilson's 95 % interval."""


@dataclass(frozen=True)
class Round:
    """One round of expert iteration; round 0 is the student before all of them."""

    number: int
    samples: int
    """What the student wrote."""
    accepted: int
    """Different samples that it learned from."""
    solved: int
    """Training problems with an accepted sample."""
    steps: int
    held_out: int
    """Problems that were asked afterwards."""
    accuracy: Estimate
    """On these, greedily, with Wilson's 95 % interval."""


@dataclass(frozen=True)
class Distilled:
    """A trained student in its place."""

    path: str
    steps: int
    examples: int
    """Traces, pairs or problems."""
    left_out: dict[str, int]
    """What could not be used, by reason."""
    tokens: int
    """Tokens of the examples, prompts included, once through."""
    resumed_from: int
    """The step of the checkpoint that the run went on from; 0 for a run from the beginning."""
    loss: float | None
    """The last training loss that was logged."""
    validation: dict[str, float] | None
    """After the last step, on what was held out: eval_loss, eval_reasoning, eval_answer; of `grpo` eval_reward."""
    seconds: float
    """Of training in this process."""
    step_accuracy: dict[str, StepAccuracy] | None = None
    """Of a reward model on the validation traces: all steps, right ones, and wrong ones."""
    rounds: tuple[Round, ...] = ()
    """Of expert iteration. The examples and losses are those of the last round, steps and seconds of all."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def render(self, console: Console) -> None:
        left = (
            f" ({', '.join(f'{n} {why}' for why, n in self.left_out.items())} left out)"
            if self.left_out
            else ""
        )
        console.print(f"{self.steps} steps on {self.examples} examples{left}, {self.tokens} tokens")
        if self.resumed_from:
            console.print(f"resumed from step {self.resumed_from}")
        if self.loss is not None:
            console.print(f"loss {self.loss:.4f}, {self.seconds:.0f} s")
        if self.validation:
            parts = {name.removeprefix("eval_"): value for name, value in self.validation.items()}
            console.print("validation: " + ", ".join(f"{name} {value:.4f}" for name, value in parts.items()))
        for name, found in (self.step_accuracy or {}).items():
            console.print(
                f"held-out steps, {name}: {_share(found.accuracy)} of {found.steps:,} judged rightly"
            )
        for turn in self.rounds:
            learned = (
                f"{turn.accepted:,} of {turn.samples:,} samples accepted, {turn.solved:,} problems solved"
                if turn.number
                else "before"
            )
            console.print(
                f"round {turn.number}: {_share(turn.accuracy)} of {turn.held_out:,} held-out; {learned}"
            )
        console.print(self.path)


def _share(found: Estimate) -> str:
    return f"{found.value:.1%} ({found.low:.1%} to {found.high:.1%})"
