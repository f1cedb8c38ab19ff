"""Fresh text for the repair after quantization, apart from text that decides whether it helped.

Built-in problems by default: those of the deciding text come from templates that neither calibration nor repair nor
the post-condition's held-out text has. The student solves a part of them itself, the others come with a solution.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_distill_export.artifact import Source
from edge_distill_export.calibration import Text, builtin_traces, render_traces
from edge_distill_export.collect import written_by_student
from edge_distill_export.unseen import unseen_traces

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

LOSS_WEIGHTS = {"reasoning": 1.0, "answer": 1.0, "number": 1.5, "operator": 1.5}
"""What a token's divergence counts: by the part that it belongs to, times what its sign adds."""
BATCH_TOKENS = 768
"""Prompts included: more at once are hardly faster a token, and take memory."""
_OPERATORS = frozenset("+-*/=×÷<>%^")
_OWN_SHARE = 3  # every so many of the built-in problems is solved by the student itself
_OWN_DECIDING = 11
_TEXTS_A_STEP = 4


@dataclass(frozen=True)
class RepairText:
    """What is learned from, and what decides."""

    texts: tuple[Text, ...]
    deciding: tuple[Text, ...]

    def to_dict(self) -> dict[str, Any]:
        """For the lineage."""
        tokens = [text.tokens for text in self.texts]
        return {
            "texts": len(tokens),
            "tokens": sum(map(len, tokens)),
            "sha256": hashlib.sha256(json.dumps(tokens).encode()).hexdigest(),
            "deciding_texts": len(self.deciding),
        }


@dataclass(frozen=True)
class Batch:
    """Texts behind each other in one row; positions start at 0 with each, by which transformers keeps them apart."""

    tokens: torch.Tensor
    """int64 [1, length]."""
    positions: torch.Tensor
    """int64 [1, length]."""
    before: torch.Tensor
    """int64 [predicted]: the places whose logits predict reasoning and answers."""
    weights: torch.Tensor
    """float32 [predicted], of `LOSS_WEIGHTS`; their mean over much text is not 1."""


def repair_texts(
    source: Source, calibrate: Path | None, deciding: Sequence[Text], steps: int, out: Path
) -> RepairText:
    """The user's traces without those in `deciding`, or built-in problems, about as many as `steps` take."""
    tokenizer, context = source.checkpoint.tokenizer, source.context_length
    if calibrate is not None:
        decides = {tuple(text.tokens) for text in deciding}
        texts = render_traces(unseen_traces(calibrate)[0], source.style, tokenizer, context)
        return RepairText(tuple(text for text in texts if tuple(text.tokens) not in decides), tuple(deciding))
    problems = builtin_traces("repair")[: _TEXTS_A_STEP * steps]
    kept = builtin_traces("deciding")
    asked = [*problems[::_OWN_SHARE], *kept[::_OWN_DECIDING]]
    own = written_by_student(source, asked, out)
    own, own_kept = own[: -(-len(problems) // _OWN_SHARE)], own[-(-len(problems) // _OWN_SHARE) :]
    solved = render_traces(problems, source.style, tokenizer, context)
    decided = render_traces(kept, source.style, tokenizer, context)
    return RepairText((*solved, *own), (*decided, *own_kept))


def batches(texts: Sequence[Text], token_weights: np.ndarray, seed: int) -> Iterator[Batch]:
    """Endless batches of at most `BATCH_TOKENS` tokens (one text at least), shuffled anew in every round.

    `token_weights` are those of `sign_weights`.
    """
    generator = np.random.default_rng(seed)
    row: list[Text] = []
    while True:
        for index in generator.permutation(len(texts)):
            text = texts[index]
            if row and sum(len(other.tokens) for other in (*row, text)) > BATCH_TOKENS:
                yield _packed(row, token_weights)
                row = []
            row.append(text)


def _packed(row: Sequence[Text], token_weights: np.ndarray) -> Batch:
    import torch

    tokens: list[int] = []
    positions: list[int] = []
    before: list[int] = []
    weights: list[float] = []
    for text in row:
        start, own = len(tokens), np.array(text.tokens)
        tokens += text.tokens
        positions += range(len(own))
        before += range(start + text.prompt - 1, start + len(own) - 1)
        parts = np.where(np.arange(len(own)) < text.answer, LOSS_WEIGHTS["reasoning"], LOSS_WEIGHTS["answer"])
        weights += (parts * token_weights[own])[text.prompt :].tolist()
    return Batch(
        torch.tensor([tokens]), torch.tensor([positions]), torch.tensor(before), torch.tensor(weights)
    )


def sign_weights(tokenizer: PreTrainedTokenizerFast, size: int) -> np.ndarray:
    """float32 [size]: the weight of each token id as a number, an operator, or neither."""
    weights = np.ones(size, np.float32)
    for token in range(min(size, len(tokenizer))):
        sign = tokenizer.decode([token]).strip()
        if any(map(str.isdigit, sign)):
            weights[token] = LOSS_WEIGHTS["number"]
        elif sign and _OPERATORS.issuperset(sign):
            weights[token] = LOSS_WEIGHTS["operator"]
    return weights
