"""Self-consistency: several chains of thought over one prompt, and a vote (Wang et al. 2023).

All samples share the computed prompt and every step. They begin in waves, each as small as can decide the vote,
and the vote ends as soon as the leading answer is sure enough (Adaptive-Consistency, Aggarwal et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from edge_distill_runtime.errors import InputError
from edge_distill_runtime.generation.decoding import Decoding
from edge_distill_runtime.generation.options import GenerationOptions
from edge_distill_runtime.generation.result import Generation, finished
from edge_distill_runtime.reasoning.answers import UNPARSED, Answer, normalize_answer, parse_answer
from edge_distill_runtime.reasoning.prompting import Speaker
from edge_distill_runtime.reasoning.voting import (
    Vote,
    confidence_weight,
    leader_posterior,
    samples_to_decide,
    tally,
)

if TYPE_CHECKING:
    from edge_distill_runtime.generation.engine import Engine
    from edge_distill_runtime.reasoning.tools import ToolRun
    from edge_distill_runtime.reasoning.verification import Verification
    from edge_distill_runtime.text.chat import Prompt

__all__ = ["Reasoning", "reason"]

_TEMPERATURE = 0.7  # greedy samples would all be the same


class Sampler(Speaker, Protocol):
    """What voting needs of a `Model`."""

    @property
    def engine(self) -> Engine: ...
    def prepare(
        self, prompt: Prompt, n: int, options: GenerationOptions, *, first: int = 0
    ) -> tuple[list[int], list[Decoding]]: ...


@dataclass(frozen=True)
class Reasoning:
    """The answer that most samples agree on."""

    answer: str
    """As the first sample that gave it wrote it; empty when none gave one. With verification, the revised one."""
    confidence: float
    """The leading answer's share of all votes, those without an answer included."""
    votes: dict[str, float]
    """Every answer's share of the votes, most first; at the end `unparsed`, for samples without an answer."""
    reasoning: str
    """Of the likeliest sample that gave the answer."""
    samples: tuple[Generation, ...]
    """All that were begun, cancelled ones included; with tools, the last turn of each run."""
    tokens: int
    """Generated over all samples and turns."""
    tokens_saved: int
    """Estimate of what an early stop saved: the mean length of the finished samples for those never finished."""
    stopped_early: bool
    verification: Verification | None = None
    tool_runs: tuple[ToolRun, ...] = ()


def reason(
    model: Sampler,
    problem: Prompt,
    *,
    samples: int,
    stop_when: float | None,
    verify: bool,
    tools: Sequence[Callable[..., Any]],
    options: GenerationOptions,
) -> Reasoning:
    """Sample, vote and stop early; `Model.reason` is this.

    A vote weighs as much as the sample's tokens were likely (the geometric mean of their probabilities). It ends
    when the posterior that the leader beats the second passes `stop_when`; None lets all samples finish. With
    `tools`, every sample is a run of the tool loop. `verify` puts the winner through chain-of-verification.
    """
    if samples < 1:
        raise InputError("bad-samples", f"{samples} samples were asked for", "ask for at least 1")
    if stop_when is not None and not 0.5 < stop_when < 1:
        raise InputError("bad-stop-when", f"stop_when is {stop_when}", "it must lie in (0.5, 1)")
    options = _sampled(model, samples, options)
    poll = _Poll(samples, stop_when)
    if tools:
        _run_with_tools(model, problem, poll, tools, options)
    else:
        _run_samples(model, problem, poll, options)
    result = poll.result()
    return _verified(model, problem, result, options) if verify and result.answer else result


class _Poll:
    """The votes so far, and what a result is made of."""

    def __init__(self, samples: int, stop_when: float | None) -> None:
        self.samples = samples
        self.stop_when = stop_when
        self.votes: list[Vote] = []
        self.generations: list[Generation | None] = []  # one for every vote
        self.others: list[Generation] = []  # cancelled ones
        self.runs: list[ToolRun] = []
        self.extra_tokens = 0  # of earlier turns of tool runs

    @property
    def finished(self) -> list[Generation]:
        return [generation for generation in self.generations if generation is not None]

    def add(self, generation: Generation | None, answer: Answer) -> None:
        """A vote; without a generation it had no tokens to run."""
        logprobs = [entry.logprob for entry in generation.logprobs] if generation else []
        weight = confidence_weight(sum(logprobs) / max(1, len(logprobs)))
        self.votes.append(Vote(answer, weight))
        self.generations.append(generation)

    @property
    def is_decided(self) -> bool:
        """Whether the leading answer's posterior passes `stop_when`."""
        return self.stop_when is not None and self._posterior(self.votes) >= self.stop_when

    def next_wave(self) -> int:
        """The fewest further samples that could decide the vote, if all of them agree with the leader."""
        left = self.samples - len(self.votes)
        if self.stop_when is None:
            return left
        leader = tally(self.votes).leader
        if leader is None:
            return min(left, samples_to_decide(self.stop_when))
        agreeing = Vote(leader, sum(vote.weight for vote in self.votes) / len(self.votes))
        for more in range(1, left):
            if self._posterior(self.votes + [agreeing] * more) >= self.stop_when:
                return more
        return left

    def _posterior(self, votes: Sequence[Vote]) -> float:
        """That the leader beats the second: weights are scaled to a mean of 1, so that they count as samples."""
        counted = tally(votes)
        if counted.leader is None:
            return 0.0
        scale = len(votes) / counted.total
        return leader_posterior(counted.leading * scale, counted.second * scale)

    def result(self) -> Reasoning:
        counted = tally(self.votes)
        leader = counted.leader
        generations = (*self.finished, *self.others)
        winners = [
            (vote.weight, index)
            for index, vote in enumerate(self.votes)
            if leader is not None and vote.answer.key == leader.key
        ]
        best = self.generations[max(winners)[1]] if winners else None
        return Reasoning(
            answer="" if leader is None else leader.display,
            confidence=counted.confidence,
            votes=counted.shares | ({"unparsed": counted.unparsed_share} if counted.unparsed else {}),
            reasoning="" if best is None else best.reasoning or best.answer,
            samples=generations,
            tokens=sum(len(generation.tokens) for generation in generations) + self.extra_tokens,
            tokens_saved=self._saved(),
            stopped_early=len(self.votes) < self.samples,
            tool_runs=tuple(self.runs),
        )

    def _saved(self) -> int:
        if not self.finished:
            return 0
        mean = sum(len(generation.tokens) for generation in self.finished) / len(self.finished)
        cut = sum(max(0.0, mean - len(generation.tokens)) for generation in self.others)
        never = self.samples - len(self.finished) - len(self.others)
        return round(never * mean + cut)


def _sampled(model: Sampler, samples: int, options: GenerationOptions) -> GenerationOptions:
    """The options with a temperature above 0 where several samples need one, and with log-probabilities."""
    result = options.copy()
    temperature = options.get("temperature")
    if temperature is None and model.manifest.sampling.temperature == 0 and samples > 1:
        result["temperature"] = _TEMPERATURE
    if result.get("logprobs") is None:
        result["logprobs"] = 0
    return result


def _run_samples(model: Sampler, problem: Prompt, poll: _Poll, options: GenerationOptions) -> None:
    """All samples as one job: waves of forks of one computed prompt."""
    # in a format of its own the whole answer is the answer
    read = parse_answer if options.get("answer_format") is None else normalize_answer
    tokens, decodings = model.prepare(problem, poll.next_wave(), options)
    job = model.engine.submit(tokens, decodings, stays_open=True)
    pending = list(decodings)
    try:
        while pending:
            model.engine.run_until(job, partial(_any_finished, pending))
            for decoding in [decoding for decoding in pending if decoding.is_finished]:
                pending.remove(decoding)
                generation = finished(decoding, job)
                if generation.finish_reason in ("cancelled", "deadline"):
                    poll.others.append(generation)
                else:
                    poll.add(generation, read(generation.answer))
            if poll.is_decided:
                break
            begun = len(poll.votes) + len(poll.others)
            if not pending and not poll.others and begun < poll.samples:
                _, pending = model.prepare(problem, poll.next_wave(), options, first=begun)
                model.engine.add(job, pending)
    finally:
        model.engine.close_job(job)
        for decoding in pending:
            decoding.finish("cancelled")
    poll.others += [finished(decoding, job) for decoding in pending]


def _any_finished(decodings: Sequence[Decoding]) -> bool:
    return any(decoding.is_finished for decoding in decodings)


def _run_with_tools(
    model: Sampler,
    problem: Prompt,
    poll: _Poll,
    tools: Sequence[Callable[..., Any]],
    options: GenerationOptions,
) -> None:
    """One run of the tool loop after the other, each with a seed of its own."""
    from edge_distill_runtime.reasoning.tools import run_tools

    if not isinstance(problem, str):
        raise InputError("bad-problem", "tools need the problem as one string", "give the question alone")
    for index in range(poll.samples):
        seed = options.get("seed")
        mine = options.copy()
        if seed is not None:
            mine["seed"] = seed + 1000 * index  # the turns of a run count on from its seed
        run = run_tools(model, problem, tools, **mine)
        poll.runs.append(run)
        poll.add(run.last, parse_answer(run.answer))
        poll.extra_tokens += run.tokens - (0 if run.last is None else len(run.last.tokens))
        if poll.is_decided:
            return


def _verified(model: Sampler, problem: Prompt, result: Reasoning, options: GenerationOptions) -> Reasoning:
    from edge_distill_runtime.reasoning.verification import verify_answer

    if not isinstance(problem, str):
        raise InputError("bad-problem", "verification needs the problem as one string", "give the question")
    draft = f"{result.reasoning.strip()}\n\nThe answer is {result.answer}."
    verification = verify_answer(model, problem, draft, **options)
    revised = parse_answer(verification.revised)
    changed = verification.changed and revised.kind != UNPARSED.kind
    return replace(
        result,
        answer=revised.display if changed else result.answer,
        tokens=result.tokens + verification.tokens,
        verification=verification,
    )
