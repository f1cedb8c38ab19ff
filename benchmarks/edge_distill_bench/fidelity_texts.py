"""Reasoning text as token ids, with what each token is: reasoning or answer, number or operator."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edge_distill_bench.answering import Row
from edge_distill_bench.problem import Problem
from edge_distill_runtime import InputError, Model
from edge_distill_runtime.text.chat import ReasoningParser, render
from edge_distill_runtime.text.solution import solution_parts

__all__ = ["ForcedText", "render_text", "spelling", "texts_of"]

_OPERATORS = frozenset("+-−*/=×÷·^<>≤≥≠≈")
_JOINING = ("-", "/")  # two words: well-known, and/or


@dataclass(frozen=True)
class ForcedText:
    """Token ids; the first `prompt` only condition."""

    tokens: tuple[int, ...]
    prompt: int
    parts: str
    """A letter for every token after the prompt: "r" reasoning, "a" answer."""
    signs: str
    """Likewise: "n" a number, "o" an operator, "." anything else."""

    @property
    def rows(self) -> int:
        """Tokens to predict."""
        return len(self.tokens) - self.prompt


def texts_of(
    model: Model, problems: Sequence[Problem], rows: Iterable[Row] = (), *, most: int = 64
) -> list[ForcedText]:
    """Up to `most` texts of a model: the problem's own solution where it has one, else what a row says.

    `rows` are a model's own answers, the reference's best: those that were cut off are left out, as is what does not
    fit the context. Raises `InputError` when nothing is left.
    """
    # of several, the one with the largest budget that was drawn alone
    ranked = sorted(rows, key=lambda row: (row.budget or 0, row.samples == 1, -row.sample))
    said = {row.id: row for row in ranked if row.verdict != "cut off"}
    texts = []
    for problem in problems:
        if problem.solution:
            pair = problem.solution, rf"\boxed{{{problem.answer}}}"
        elif problem.id in said:
            pair = _split(model, problem, said[problem.id])
        else:
            continue
        text = render_text(model, [{"role": "user", "content": problem.problem}], *pair)
        if text.rows > 0 and len(text.tokens) <= model.backend.context_length:
            texts.append(text)
        if len(texts) == most:
            break
    if not texts:
        raise InputError(
            "no-texts",
            f"none of {len(problems)} problems has a solution or an answer that was not cut off",
            "measure the accuracy too, choose a task with solutions (gsm_symbolic), or raise --max-tokens",
        )
    return texts


def _split(model: Model, problem: Problem, row: Row) -> tuple[str, str]:
    """Reasoning and answer of what a model generated, from where its prompt had left it."""
    markers = model.manifest.reasoning
    inside = row.budget is not None and row.budget > 0
    if markers is not None and row.budget is None:
        prompt = _prompt(model, [{"role": "user", "content": problem.problem}])
        inside = prompt.rstrip().endswith(markers.open)
    parser = ReasoningParser(markers, inside=inside)
    pieces = parser.feed(row.text) + parser.finish()
    said = {
        kind: "".join(piece.text for piece in pieces if piece.kind == kind)
        for kind in ("reasoning", "answer")
    }
    return said["reasoning"].strip("\n"), said["answer"].lstrip("\n")


def render_text(
    model: Model, messages: Sequence[Mapping[str, str]], reasoning: str, answer: str
) -> ForcedText:
    """A conversation, its reasoning and its answer in a model's chat form."""
    prompt = _prompt(model, messages)
    parts = solution_parts(prompt, reasoning, answer, chat=model.chat, markers=model.manifest.reasoning)
    text = prompt + "".join(parts)
    encoding = model.tokenizer.encode(text, add_special_tokens=False)
    tokens, offsets = list(encoding.ids), list(encoding.offsets)
    bos = model.manifest.bos_id
    if model.chat is None and bos is not None and tokens[:1] != [bos]:
        tokens, offsets = [bos, *tokens], [(0, 0), *offsets]
    starts = [start for start, _ in offsets]
    first, second = map(int, np.searchsorted(starts, [len(prompt), len(prompt) + len(parts[0])]))
    first = max(1, first)
    return ForcedText(
        tokens=tuple(tokens),
        prompt=first,
        parts="r" * max(0, second - first) + "a" * (len(tokens) - max(first, second)),
        signs="".join(_sign(text, *span) for span in offsets[first:]),
    )


def _prompt(model: Model, messages: Sequence[Mapping[str, str]]) -> str:
    if model.chat is None:
        return "\n".join(message["content"] for message in messages) + "\n"
    return render(model.chat, messages)


def _sign(text: str, start: int, stop: int) -> str:
    token = text[start:stop].strip()
    if not token:
        return "."
    first, last = text.index(token, start), text.index(token, start) + len(token)
    if any(map(str.isdigit, token)) and all(c.isdigit() or c in ".,%" for c in token):
        return "n"
    if _OPERATORS.issuperset(token):
        joins = text[first - 1 : first].isalpha() and text[last : last + 1].isalpha()
        return "." if joins and token in _JOINING else "o"
    # 6 x $14
    before, after = text[max(0, first - 2) : first].rstrip()[-1:], text[last : last + 2].lstrip()[:1]
    return "o" if token == "x" and before.isdigit() and (after.isdigit() or after in ("$", "(")) else "."


def spelling(model: Model, tokens: Iterable[int]) -> str:
    """SHA-256 of how a model's tokenizer spells token ids: equal for models that mean the same by them."""
    spelled = [model.tokenizer.id_to_token(token) for token in tokens]
    return hashlib.sha256(json.dumps(spelled).encode()).hexdigest()
