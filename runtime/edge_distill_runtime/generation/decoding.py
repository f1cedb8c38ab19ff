"""Between logits and text for one sequence: what to append, what was said, and when to end."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from edge_distill_runtime.engines.backend import Floats
from edge_distill_runtime.generation.budget import ThinkingControl
from edge_distill_runtime.generation.lookup import PromptLookup
from edge_distill_runtime.generation.options import Settings
from edge_distill_runtime.generation.reader import TextReader
from edge_distill_runtime.generation.sampling import Sampler, log_probabilities, top_ids
from edge_distill_runtime.reasoning.answers import extract_answer
from edge_distill_runtime.text.chat import Piece, ReasoningMarkers
from edge_distill_runtime.text.detokenizer import Detokenizer

if TYPE_CHECKING:
    from edge_distill_runtime.generation.constraint import Constraint

__all__ = ["Decoding", "Event", "FinishReason", "Language", "TokenLogprob"]

FinishReason = Literal["stop", "length", "context", "cancelled", "deadline"]

_CONTINUE = "\nWait,"  # s1's word for going on
_ANSWER_CUE = "\n\nFinal answer: \\boxed{"
_ANSWER_TAIL = 24  # tokens kept for what follows the cue
_ANSWER_SHARE = 4  # of all tokens, one in so many is kept for the answer
_MOST_ANSWER = 128


@dataclass(frozen=True)
class TokenLogprob:
    """A sampled token and the natural logarithm of its probability at temperature 1."""

    token: int
    text: bytes
    logprob: float
    top: tuple[tuple[int, bytes, float], ...] = ()
    """The likeliest alternatives: token id, bytes, log-probability."""


@dataclass(frozen=True)
class Event:
    """A stretch of generated text."""

    kind: Literal["reasoning", "answer"]
    text: str
    tokens: int
    """Tokens generated so far."""
    seconds: float
    """Since the prompt was computed."""
    finish_reason: FinishReason | None = None
    """Only on a sample's last event: `stop` (a stop token or string), `length` (max_tokens), `context` (it is
    full), `cancelled` or `deadline`."""
    index: int = 0
    """Which of several samples."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of the tokens since the event before, when they were asked for."""


@dataclass(frozen=True)
class Language:
    """What a bundle says about its tokens."""

    detokenizer: Detokenizer
    encode: Callable[[str], list[int]]
    """Token ids of a piece of text in the middle of a sequence."""
    stop_ids: frozenset[int]
    markers: ReasoningMarkers | None


class Decoding:
    """One sequence being generated. The engine computes logits for `tokens`, `next` makes them longer.

    `next` may also take tokens back: `kept` says how many of the first ones are what they were.
    """

    def __init__(
        self,
        language: Language,
        settings: Settings,
        prompt: Sequence[int],
        *,
        inside: bool = False,
        room: int,
        constraint: Constraint | None = None,
        index: int = 0,
    ) -> None:
        self.tokens: list[int] = []
        self.kept = 0
        self.finish_reason: FinishReason | None = None
        self.logprobs: list[TokenLogprob] = []
        self.index = index
        self.started = 0.0
        """When the prompt was computed, `time.perf_counter`; set by the engine."""
        self.seconds = 0.0
        """From then to the end."""
        self._language = language
        self._settings = settings
        self.limit = min(settings.max_tokens, room)
        """Most tokens that it may have."""
        self._sampler = Sampler(settings.sampling, prompt)
        self._constraint = constraint
        self._expires = None if settings.deadline is None else time.monotonic() + settings.deadline
        self._abandoned = False
        self.reader = TextReader(
            language.detokenizer,
            language.markers,
            inside=inside,
            stop=settings.stop,
            formatted=constraint is not None,
        )
        self._control = self._make_control()
        # Text is read when somebody asks for it, which may be at the end: between two steps every line of Python
        # waits for a cold cache. It is read token by token where it decides what follows.
        self._watches = bool(settings.stop or self._control or constraint)
        self._read = 0
        self._told = 0  # log-probabilities given out; -1 after the last event
        self._prompt_length = len(prompt)
        self._events: deque[Event] = deque()
        drafts = settings.prompt_lookup and self._sampler.is_greedy and constraint is None
        self.lookup = PromptLookup(prompt) if drafts else None

    def _make_control(self) -> ThinkingControl | None:
        settings = self._settings
        if self._language.markers is None:
            return None
        budget = settings.thinking_budget
        if budget is None and self._constraint is not None:
            budget = self.limit  # an answer was asked for by its form: there must be one
        if budget is not None:
            # the answer needs tokens too, whatever the budget
            answer = min(_MOST_ANSWER, self.limit // _ANSWER_SHARE)
            budget = max(0, min(budget, self.limit - answer - len(self._closing())))
        return ThinkingControl(budget, settings.min_thinking)

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def has_told_all(self) -> bool:
        """Whether its last event was taken."""
        return self._told < 0

    def next(self, logits: Floats) -> None:
        """Append the token or tokens that follow, given the logits [vocab] behind `tokens`, or end."""
        if self.interrupted():
            return
        constraint = self._constraint if self.reader.kind == "answer" else None
        scores = logits if constraint is None else constraint.mask(logits)
        token = self._sampler.sample(scores)
        if token in self._language.stop_ids:
            if not self._goes_on():
                self.finish("stop")
            return
        if self._settings.logprobs is not None:
            self.logprobs.append(self._logprob(token, logits, self._settings.logprobs))
        if constraint is None:
            self._append([token])
            return
        constraint.accept(token)
        forced = constraint.forced_tokens()
        for following in forced:
            constraint.accept(following)
        self._append([token, *forced])
        if constraint.is_finished and not self.is_finished:
            self.finish("stop")

    def interrupted(self) -> bool:
        """End when the caller cancelled or time is up; true when it is over."""
        cancel = self._settings.cancel
        if self._abandoned or (cancel is not None and cancel.is_set()):
            self.finish("cancelled")
        elif self._expires is not None and time.monotonic() >= self._expires:
            self.finish("deadline")
        return self.is_finished

    def abandon(self) -> None:
        """Nobody waits for it any more: end with the next step. From any thread."""
        self._abandoned = True

    def finish(self, reason: FinishReason) -> None:
        """End, once."""
        if self.finish_reason is None:
            self.seconds = time.perf_counter() - self.started if self.started else 0.0
            self.finish_reason = reason

    def take_events(self) -> list[Event]:
        """The events since the last call; the last one of all carries the finish reason."""
        finished = self.finish_reason  # read first: tokens may come while we read, none after it
        if not self._watches:
            self._read_tokens()
        events = []
        while self._events:
            events.append(self._events.popleft())
        if finished is not None and self._told >= 0:
            events += [self._event(piece) for piece in self.reader.finish()]
            events.append(self._event(Piece(self.reader.kind, ""), finished))
            self._told = -1
        return events

    # -- what a token sets off ------------------------------------------------------------------------------

    def _append(self, tokens: Sequence[int]) -> None:
        room = self.limit - len(self.tokens)
        self.tokens.extend(tokens[:room])
        if self.lookup is not None:
            self.lookup.extend(tokens[:room])
        if self._watches:
            before = self.reader.kind
            self._read_tokens()
            if self.reader.stopped:
                self.finish("stop")
                return
            if len(self.tokens) < self.limit:
                self._steer(before)
        if len(self.tokens) >= self.limit:
            self.finish("length" if self.limit == self._settings.max_tokens else "context")

    def _steer(self, before: Literal["reasoning", "answer"]) -> None:
        """Close the reasoning, reopen it or call for the answer, where that is due."""
        control, reader = self._control, self.reader
        if control is None:
            return
        if reader.kind == "reasoning":
            if control.must_close(self.tokens, reader.reasoning_tokens, reader.tail()):
                self._append(self._closing())
        elif before == "reasoning" and self._is_hasty():
            self._reopen()
        elif before == "reasoning" and self._constraint is not None:
            if not reader.tail().endswith("\n"):
                self._append(self._language.encode("\n\n"))  # as models write it; not part of the answer
        elif control.budget is not None and self._constraint is None:
            self._call_for_answer()

    def _goes_on(self) -> bool:
        """Whether a stop token was met too early; then something else is appended in its place."""
        control = self._control
        if control is None or self.reader.kind != "reasoning":
            return False
        if self._is_hasty():
            self._append(self._language.encode(_CONTINUE))
            return True
        if control.budget is not None or self._constraint is not None:
            self._append(self._closing())
            return True
        return False

    def _closing(self) -> list[int]:
        markers = self._language.markers
        assert markers is not None
        return self._language.encode(f"\n{markers.close}\n\n")

    def _reopen(self) -> None:
        """Take the closing marker back and make the model go on."""
        markers = self._language.markers
        assert markers is not None
        count, rest = self.reader.count_before(self.reader.text.rfind(markers.close))
        self._take_back(count)
        self._append(self._language.encode(rest + _CONTINUE))

    def _take_back(self, count: int) -> None:
        del self.tokens[count:]
        self.kept = min(self.kept, count)
        self._read = count
        self.reader.restart(self.tokens)
        if self.lookup is not None:
            self.lookup.truncate(self._prompt_length + count)

    def _call_for_answer(self) -> None:
        """Shortly before the last token: ask for the answer when there is none yet."""
        if self.limit - len(self.tokens) == _ANSWER_TAIL + len(self._cue):
            found = extract_answer(self.reader.given("answer"))
            if found is None or found.source == "last-number":
                self._append(self._cue)

    @cached_property
    def _cue(self) -> list[int]:
        return self._language.encode(_ANSWER_CUE)

    # -- reading --------------------------------------------------------------------------------------------

    def _read_tokens(self) -> None:
        while self._read < len(self.tokens):
            token, before = self.tokens[self._read], self.reader.kind
            self._read += 1
            for piece in self.reader.feed(token):
                if piece.kind == "answer" and before == "reasoning" and self._is_hasty():
                    self.reader.retract(piece)  # the reasoning is about to go on
                else:
                    self._events.append(self._event(piece))

    def _is_hasty(self) -> bool:
        return self._control is not None and self._control.too_short(self.reader.reasoning_tokens)

    def _event(self, piece: Piece, finish_reason: FinishReason | None = None) -> Event:
        seconds = self.seconds if self.is_finished else time.perf_counter() - self.started
        new = tuple(self.logprobs[self._told :]) if self.logprobs and self._told >= 0 else ()
        self._told += len(new)
        return Event(piece.kind, piece.text, self._read, seconds, finish_reason, self.index, new)

    def _logprob(self, token: int, logits: Floats, alternatives: int) -> TokenLogprob:
        ids = [token, *top_ids(logits, alternatives)]
        values = log_probabilities(logits, ids)
        bytes_of = self._language.detokenizer.bytes_of
        top = tuple((i, bytes_of(i), value) for i, value in zip(ids[1:], values[1:], strict=True))
        return TokenLogprob(token, bytes_of(token), values[0], top)
