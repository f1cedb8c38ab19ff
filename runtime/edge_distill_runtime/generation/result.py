"""What a decoding came to."""

from __future__ import annotations

from dataclasses import dataclass

from edge_distill_runtime.generation.decoding import Decoding, FinishReason, TokenLogprob
from edge_distill_runtime.generation.engine import Job

__all__ = ["Generation", "finished"]


@dataclass(frozen=True)
class Generation:
    """A finished generation."""

    text: str
    """Everything that was generated, reasoning markers included."""
    reasoning: str
    answer: str
    tokens: tuple[int, ...]
    """Token ids, without the stop token."""
    reasoning_tokens: int
    finish_reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    """How many tokens of the prompt came from the prompt cache."""
    prompt_seconds: float
    """Time to compute the prompt."""
    seconds: float
    """Time to generate, the prompt not counted."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of the sampled tokens, when they were asked for; tokens that were put in by force have none."""

    @property
    def tokens_per_second(self) -> float:
        return len(self.tokens) / self.seconds if self.seconds > 0 else 0.0


def finished(decoding: Decoding, job: Job) -> Generation:
    """What a decoding that has ended came to."""
    for _ in decoding.take_events():
        pass
    assert decoding.finish_reason is not None
    reader = decoding.reader
    return Generation(
        text=reader.text,
        reasoning=reader.given("reasoning"),
        answer=reader.given("answer"),
        tokens=tuple(decoding.tokens),
        reasoning_tokens=reader.reasoning_tokens,
        finish_reason=decoding.finish_reason,
        prompt_tokens=len(job.prompt),
        cached_tokens=job.cached_tokens,
        prompt_seconds=job.prompt_seconds,
        seconds=decoding.seconds,
        logprobs=tuple(decoding.logprobs),
    )
