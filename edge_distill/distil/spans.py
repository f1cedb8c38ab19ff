"""From a trace to training tokens, and what each of them is: prompt, reasoning, answer, observation, and which step.

Text is rendered in the student's own form, as the export's calibration and the device's prompts are; the kinds are
known by characters, and each token takes the kind of its first character that is no white space (" Ben" belongs to
what "Ben" belongs to, whether or not the tokenizer counts the space to the token).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edge_distill.distil.kinds import ANSWER, IGNORED, OBSERVATION, PROMPT, REASONING
from edge_distill.traces.trace import Role, Verdict
from edge_distill_export.calibration import Style, Trace, prompt_text
from edge_distill_runtime.errors import InputError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

__all__ = [
    "Example",
    "Solution",
    "Step",
    "StepSpan",
    "StepWeights",
    "check_complete",
    "collate",
    "make_example",
]


@dataclass(frozen=True)
class Step:
    """One step of the reasoning, a literal part of its text."""

    text: str
    role: Role
    verdict: Verdict
    critical: bool = False
    """Whether later steps or the answer depend on it."""


@dataclass(frozen=True)
class Solution:
    """A trace to learn from."""

    trace: Trace
    turns: tuple[dict[str, str], ...] = ()
    """Tool use between the problem and the last turn: the assistant's turns are reasoning, others observations."""
    steps: tuple[Step, ...] = ()
    """In the order of the text: of the assistant's turns, then of the reasoning."""


@dataclass(frozen=True)
class StepSpan:
    """tokens[start:stop] are the step."""

    start: int
    stop: int
    step: Step


@dataclass(frozen=True)
class Example:
    """A rendered trace; `kinds[i]` (`kinds.py`) says what `tokens[i]` is."""

    tokens: tuple[int, ...]
    kinds: tuple[int, ...]
    steps: tuple[StepSpan, ...]

    @property
    def first(self) -> int:
        """The first token with a loss."""
        return next(i for i, kind in enumerate(self.kinds) if kind in (REASONING, ANSWER))


@dataclass(frozen=True)
class StepWeights:
    """What a step's tokens weigh in the loss: the product of what its verdict, role and place say.

    A negative weight of `refuted` makes its tokens unlikely instead (`losses.py`). Tokens between steps weigh 1.
    """

    verified: float = 1.0
    unknown: float = 1.0
    refuted: float = 0.0
    roles: Mapping[Role, float] = field(default_factory=dict)
    """1 for those left out."""
    critical: float = 1.0

    def of(self, step: Step) -> float:
        verdict = {"verified": self.verified, "unknown": self.unknown, "refuted": self.refuted}[step.verdict]
        return verdict * self.roles.get(step.role, 1.0) * (self.critical if step.critical else 1.0)


def make_example(
    solution: Solution, style: Style, tokenizer: PreTrainedTokenizerFast, context: int
) -> Example:
    """Render and tokenize a trace.

    Raises `InputError` when it does not fit the context, when a part of it is not in the text or not in the
    tokens, when a step is not a part of the reasoning, and when the solution itself holds a control token.
    """
    _check_controls(solution, style, tokenizer)
    pieces = _pieces(solution, style)
    text = "".join(piece for _, piece in pieces)
    check_complete(text, solution)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens = encoded["input_ids"]
    if len(tokens) > context:
        raise InputError(
            "trace-too-long",
            f"a trace has {len(tokens)} tokens, the context {context}: {_name(solution)}",
            "raise the context or shorten the trace",
        )
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in tokens:
        raise InputError(
            "unknown-token",
            f"the tokenizer cannot write all of a trace: {_name(solution)}",
            "take another tokenizer, or leave the trace out",
        )
    ranges = _character_ranges(encoded["offset_mapping"])
    _check_prompt_ends(ranges, len(pieces[0][1]), solution)
    firsts = [_first_visible(text, start, stop) for start, stop in ranges]
    boundaries, kinds = _boundaries(pieces)
    steps = []
    for start, stop, step in _find_steps(pieces, solution):
        covered = [i for i, first in enumerate(firsts) if start <= first < stop]
        if covered:  # a step within one token has none of its own
            steps.append(StepSpan(covered[0], covered[-1] + 1, step))
    by_token = tuple(kinds[bisect_right(boundaries, first) - 1] for first in firsts)
    return Example(tuple(tokens), by_token, tuple(steps))


def check_complete(text: str, solution: Solution) -> None:
    """Check that all of a trace stands in a training text, in order, whatever rendered it.

    White space at the ends of contents may go, as many chat templates strip it. Raises `InputError`
    "dropped-from-text", which names what was dropped: chat templates leave out reasoning without a word.
    """
    trace = solution.trace
    parts = [(f"message {i} ({m['role']})", m["content"]) for i, m in enumerate(trace.messages)]
    parts += [(f"turn {i} ({turn['role']})", turn["content"]) for i, turn in enumerate(solution.turns)]
    parts += [("the reasoning", trace.reasoning), ("the answer", trace.answer)]
    at = 0
    for name, part in parts:
        found = text.find(part.strip(), at)
        if found < 0:
            raise InputError(
                "dropped-from-text",
                f"{name} is not in the training text, or out of order: {part.strip()[:60]!r}",
                "use another chat template, or put reasoning markers into the tokenizer",
            )
        at = found + len(part.strip())


def collate(
    examples: Sequence[Example], pad_id: int, weights: StepWeights | None = None, *, multiple: int = 1
) -> dict[str, torch.Tensor]:
    """A batch padded on the right: input_ids, attention_mask, position_ids, labels, kinds and weights.

    All [batch, longest], the longest rounded up to a `multiple`; weights are float32, the others int64. `labels` are
    those of plain cross-entropy, not shifted, -100 where there is no loss. Padding is of kind prompt.
    """
    import torch

    longest = max(len(example.tokens) for example in examples)
    shape = (len(examples), -(-longest // multiple) * multiple)
    tokens, kinds = torch.full(shape, pad_id), torch.full(shape, PROMPT)
    mask = torch.zeros(shape, dtype=torch.long)
    factors = torch.ones(shape)
    for row, example in enumerate(examples):
        length = len(example.tokens)
        tokens[row, :length] = torch.tensor(example.tokens)
        kinds[row, :length] = torch.tensor(example.kinds)
        mask[row, :length] = 1
        for span in example.steps:
            factors[row, span.start : span.stop] = (weights or StepWeights()).of(span.step)
    learned = (kinds == REASONING) | (kinds == ANSWER)
    return {
        "input_ids": tokens,
        "attention_mask": mask,
        "position_ids": torch.arange(shape[1]).expand(shape).contiguous(),
        "labels": tokens.masked_fill(~learned, IGNORED),
        "kinds": kinds,
        "weights": factors,
    }


def _pieces(solution: Solution, style: Style) -> list[tuple[int, str]]:
    """The training text in pieces of one kind; the first is the prompt, the last the answer."""
    trace = solution.trace
    pieces = [(PROMPT, prompt_text(trace, style))]
    strip = style.chat is not None and style.chat.strips_content
    for turn in solution.turns:
        content = turn["content"].strip() if strip else turn["content"]
        pieces += _turn(turn["role"], content, style)
    before = pieces[-1][1]
    reasoning = ""
    if trace.reasoning:
        reasoning = f"{trace.reasoning}\n"
        if style.markers:
            inside = before.rstrip().endswith(style.markers.open)
            opening = f"{style.markers.open}\n" if not inside else "" if before.endswith("\n") else "\n"
            reasoning = f"{opening}{trace.reasoning}\n{style.markers.close}\n\n"
    end = style.chat.assistant[1] if style.chat else style.end
    return [*pieces, (REASONING, reasoning), (ANSWER, trace.answer + end.rstrip())]


def _turn(role: str, content: str, style: Style) -> list[tuple[int, str]]:
    """One turn of tool use; after an observation the assistant speaks again."""
    if role not in ("assistant", "user"):
        raise InputError("unknown-role", f"a turn of role {role!r}", "use assistant and user")
    if style.chat is None:
        return [(REASONING if role == "assistant" else OBSERVATION, content + "\n")]
    if role == "assistant":
        end = style.chat.assistant[1]
        return [(REASONING, content + end.rstrip()), (OBSERVATION, end[len(end.rstrip()) :])]
    before, after = style.chat.user
    return [(OBSERVATION, before + content + after + style.chat.generation_prompt)]


def _boundaries(pieces: Sequence[tuple[int, str]]) -> tuple[list[int], list[int]]:
    """Where each piece that is not empty begins, in characters, and its kind."""
    boundaries, kinds, at = [], [], 0
    for kind, piece in pieces:
        if piece:
            boundaries.append(at)
            kinds.append(kind)
        at += len(piece)
    return boundaries, kinds


def _find_steps(pieces: Sequence[tuple[int, str]], solution: Solution) -> list[tuple[int, int, Step]]:
    """The characters of each step, looked for in the pieces of reasoning, one after the other."""
    stretches, at = [], 0
    for kind, piece in pieces:
        if kind == REASONING:
            stretches.append((at, piece))
        at += len(piece)
    found: list[tuple[int, int, Step]] = []
    for step in solution.steps:
        wanted, after = step.text.strip(), found[-1][1] if found else 0
        start = next((at for at in (_find(wanted, *part, after) for part in stretches) if at >= 0), -1)
        if not wanted or start < 0:
            raise InputError(
                "step-not-found",
                f"a step is not in the reasoning, or out of order: {step.text[:60]!r}",
                "steps are literal parts of the reasoning, in its order",
            )
        found.append((start, start + len(wanted), step))
    return found


def _find(wanted: str, start: int, piece: str, after: int) -> int:
    """Where `wanted` begins in a piece at `start`, not before `after`, in characters of the whole text; -1."""
    at = piece.find(wanted, max(0, after - start))
    return at if at < 0 else start + at


def _character_ranges(offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The characters of each token, with the white space that some tokenizers trim from the offsets."""
    ranges, end = [], 0
    for start, stop in offsets:
        ranges.append((min(start, end), max(stop, min(start, end))))
        end = max(end, stop)
    return ranges


def _first_visible(text: str, start: int, stop: int) -> int:
    """Where a token's first character that is no white space is; `start` when there is none."""
    return next((i for i in range(start, stop) if not text[i].isspace()), start)


def _check_prompt_ends(ranges: Sequence[tuple[int, int]], end: int, solution: Solution) -> None:
    """A device tokenizes the prompt alone, so no token may reach from it into the solution."""
    if any(start < end < stop for start, stop in ranges):
        raise InputError(
            "straddling-token",
            f"a token reaches from the prompt into the solution: {_name(solution)}",
            "begin the solution with another character than white space",
        )


def _check_controls(solution: Solution, style: Style, tokenizer: PreTrainedTokenizerFast) -> None:
    """Special tokens and reasoning markers inside a solution would teach the student to stop or switch there."""
    controls = {*tokenizer.all_special_tokens}
    if style.markers:
        controls |= {style.markers.open, style.markers.close}
    written = [solution.trace.reasoning, solution.trace.answer, *(turn["content"] for turn in solution.turns)]
    for control in sorted(controls):
        if any(control in text for text in written):
            raise InputError(
                "control-token",
                f"a solution holds {control!r} as text: {_name(solution)}",
                "leave the trace out, or take the token out of it",
            )


def _name(solution: Solution) -> str:
    return repr(solution.trace.messages[-1]["content"][:40])
