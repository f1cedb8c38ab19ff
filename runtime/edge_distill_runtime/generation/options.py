"""What a caller may ask of one generation."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypedDict

from edge_distill_runtime.bundles.manifest import Manifest
from edge_distill_runtime.errors import InputError
from edge_distill_runtime.generation.sampling import SamplingOptions

if TYPE_CHECKING:
    from edge_distill_runtime.generation.constraint import AnswerFormat

__all__ = ["GenerationOptions", "Settings", "resolve"]

_MOST_ALTERNATIVES = 20
_MOST_STOPS = 16
_LONGEST_STOP = 256


class GenerationOptions(TypedDict, total=False):
    """Keyword arguments of `generate`, `sample`, `stream` and `reason`; what is left out has the default."""

    max_tokens: int
    """Most tokens to generate, reasoning included (512)."""
    temperature: float | None
    """0 is greedy. This and the next four: None takes what the manifest recommends."""
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    """Divides the positive logits of tokens seen before and multiplies the negative ones (CTRL); 1 is off."""
    seed: int | None
    """The same seed gives the same tokens; None draws one."""
    stop: Sequence[str]
    """The answer ends before any of these strings."""
    logprobs: int | None
    """Report the log-probability of every sampled token and of so many alternatives, 0 to 20."""
    thinking: bool | None
    """True opens the reasoning, False closes it at once, None leaves it to the model."""
    thinking_budget: int | None
    """Most tokens of reasoning; it then ends at a sentence, and the answer follows (None: as the manifest says)."""
    min_thinking: int
    """Fewest tokens of reasoning: a model that closes it earlier is made to go on (s1's budget forcing)."""
    answer_format: AnswerFormat | None
    """What the answer must look like; the reasoning stays free."""
    prompt_lookup: bool
    """Draft tokens from the text so far when decoding greedily. Off by default: it helped nowhere it was measured."""
    deadline: float | None
    """Seconds from now after which the generation ends."""
    cancel: threading.Event | None
    """Ends the generation within one token when it is set, from any thread."""
    raw: bool
    """The prompt is text as it is, without the chat form; it may end inside a reasoning, which then goes on."""


@dataclass(frozen=True)
class Settings:
    """The options of one generation, checked, with the manifest's defaults in place."""

    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    thinking: bool | None = None
    thinking_budget: int | None = None
    min_thinking: int = 0
    answer_format: AnswerFormat | None = None
    prompt_lookup: bool = False
    deadline: float | None = None
    cancel: threading.Event | None = None
    raw: bool = False

    def __post_init__(self) -> None:
        for name, value, valid, limits in (
            ("max_tokens", self.max_tokens, self.max_tokens >= 1, "at least 1"),
            (
                "logprobs",
                self.logprobs,
                self.logprobs is None or 0 <= self.logprobs <= _MOST_ALTERNATIVES,
                f"0 to {_MOST_ALTERNATIVES}",
            ),
            (
                "thinking_budget",
                self.thinking_budget,
                self.thinking_budget is None or self.thinking_budget >= 0,
                "0 or more",
            ),
            ("min_thinking", self.min_thinking, self.min_thinking >= 0, "0 or more"),
            ("deadline", self.deadline, self.deadline is None or self.deadline > 0, "more than 0 seconds"),
            (
                "stop",
                f"{len(self.stop)} strings",
                len(self.stop) <= _MOST_STOPS and all(0 < len(text) <= _LONGEST_STOP for text in self.stop),
                f"at most {_MOST_STOPS} strings of 1 to {_LONGEST_STOP} characters",
            ),
        ):
            if not valid:
                raise InputError(
                    f"bad-{name.replace('_', '-')}", f"{name} is {value}", f"it must be {limits}"
                )
        if self.thinking_budget is not None and self.min_thinking > self.thinking_budget:
            raise InputError(
                "bad-min-thinking",
                f"min_thinking is {self.min_thinking}, thinking_budget is {self.thinking_budget}",
                "the minimum must not pass the budget",
            )

    def for_sample(self, index: int) -> Settings:
        """The same for the sample of that number, which draws with a seed of its own."""
        if index == 0 or self.sampling.seed is None:
            return self
        return replace(self, sampling=replace(self.sampling, seed=self.sampling.seed + index))

    @property
    def steers_thinking(self) -> bool:
        return self.thinking is not None or self.thinking_budget is not None or self.min_thinking > 0


def resolve(options: GenerationOptions, manifest: Manifest) -> Settings:
    """`Settings` from what a caller gave; `InputError` for values out of range or markers that do not exist."""
    given: dict[str, Any] = dict(options)
    if unknown := sorted(given.keys() - GenerationOptions.__annotations__.keys()):
        known = ", ".join(GenerationOptions.__annotations__)
        raise InputError("unknown-option", f"there is no option {unknown[0]!r}", f"known: {known}")
    default = manifest.sampling
    recommended = {
        name: value if (value := given.pop(name, None)) is not None else getattr(default, name)
        for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    }
    given["sampling"] = SamplingOptions(**recommended, seed=options.get("seed"))
    given.pop("seed", None)
    if given.get("thinking_budget") is None and manifest.reasoning and manifest.reasoning_lengths:
        given["thinking_budget"] = max(manifest.reasoning_lengths.p99, given.get("min_thinking", 0))
    stop = given.get("stop", ())
    given["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    settings = Settings(**given)
    if manifest.reasoning is None and settings.steers_thinking:
        raise InputError(
            "no-markers",
            f"{manifest.name} has no reasoning markers, so its reasoning cannot be opened, closed or counted",
            "leave thinking, thinking_budget and min_thinking out, or export with reasoning markers",
        )
    return settings
