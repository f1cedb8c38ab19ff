"""Direct preference optimization: a better answer is made likelier than a worse one (DPO, Rafailov et al. 2023).

    L = -log sigmoid(beta * ((log p(chosen) - log p(rejected)) - (log r(chosen) - log r(rejected))))

with the student p, and r the student before the training (arXiv:2305.18290). To it comes, if asked for, the
cross-entropy of the chosen text, a mean over its tokens, which keeps it from becoming less likely itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from edge_distill.distil.kinds import LENGTHS
from edge_distill.distil.logits import logits_at
from edge_distill.distil.spans import Example, Solution, collate, make_example
from edge_distill.distil.trainer import Losses, StudentTrainer
from edge_distill.traces.trace import lines_of
from edge_distill_export.calibration import Style, Trace
from edge_distill_export.progress import stage
from edge_distill_runtime.errors import InputError
from edge_distill_runtime.text.chat import ReasoningParser

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["Pairs", "PreferenceTrainer", "load_pairs"]


@dataclass(frozen=True)
class Pairs:
    """Chosen and rejected answers to the same prompts."""

    chosen: tuple[Example, ...]
    rejected: tuple[Example, ...]
    ids: tuple[str, ...]
    left_out: dict[str, int]

    @property
    def lengths(self) -> list[int]:
        pairs = zip(self.chosen, self.rejected, strict=True)
        return [max(len(one.tokens), len(other.tokens)) for one, other in pairs]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> int:
        return row


class PreferenceTrainer(StudentTrainer):
    """Trains on `Pairs`; the logs hold the loss and how often the chosen text gained on the rejected one."""

    parts = ("preference", "accuracy", "cross_entropy")

    def __init__(self, *arguments: Any, beta: float, cross_entropy: float, pad_id: int, **rest: Any) -> None:
        self.beta, self.cross_entropy, self.pad_id = beta, cross_entropy, pad_id
        super().__init__(*arguments, **rest)
        # the student as it begins; a resumed run gets its later weights after this
        self.reference = {id(self.train_dataset): self._reference(self.train_dataset)}
        if self.eval_dataset is not None:
            self.reference[id(self.eval_dataset)] = self._reference(self.eval_dataset)

    def collate(self, rows: list[int], dataset: Any) -> dict[str, torch.Tensor]:
        """Chosen texts, then the rejected ones, in one batch."""
        both = [*(dataset.chosen[row] for row in rows), *(dataset.rejected[row] for row in rows)]
        batch = collate(both, self.pad_id, multiple=LENGTHS)
        return {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids", "labels")}

    def counts(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        pairs = len(batch["rows"])
        return torch.tensor([pairs] * 3, dtype=torch.float32, device=batch["rows"].device)

    def total(self, parts: Sequence[float]) -> float:
        return parts[0] + self.cross_entropy * parts[2]

    def losses(
        self, model: Any, batch: dict[str, torch.Tensor], counts: torch.Tensor, dataset: Any
    ) -> Losses:
        likelihoods, lengths = self._likelihoods(model, batch)
        chosen, rejected = likelihoods.chunk(2)
        reference = self.reference[id(dataset)].to(likelihoods)[batch["rows"]]
        margin = self.beta * (chosen - rejected - reference)
        preference = -F.logsigmoid(margin).sum() / counts[0]
        entropy = -(chosen / lengths.chunk(2)[0]).sum() / counts[2]
        accuracy = (margin > 0).sum() / counts[1]
        parts = torch.stack([preference, accuracy, entropy]).detach()
        return Losses(preference + self.cross_entropy * entropy, parts, lengths.sum())

    def _likelihoods(self, model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability of each text's solution, and its tokens."""
        learned = batch["labels"][:, 1:] >= 0
        places = F.pad(learned, (0, 1))
        with self.compute_loss_context_manager():
            texts = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
            logits = logits_at(model, texts, places)
        entropies = torch.zeros(learned.shape, device=logits.device)
        entropies[learned] = F.cross_entropy(
            logits.float(), batch["labels"][:, 1:][learned], reduction="none"
        )
        return -entropies.sum(-1), learned.sum(-1)

    def _reference(self, dataset: Any) -> torch.Tensor:
        """log r(chosen) - log r(rejected) of every row, float32 [rows]."""
        size, differences = self.args.per_device_eval_batch_size, torch.zeros(len(dataset))
        self.model.eval()
        with torch.no_grad(), stage("Measuring the pairs", len(dataset)) as advance:
            for start in range(0, len(dataset), size):
                rows = list(range(start, min(start + size, len(dataset))))
                batch = self._prepare_inputs(self._collate(rows, dataset))
                chosen, rejected = self._likelihoods(self.model, batch)[0].chunk(2)
                differences[rows] = (chosen - rejected).float().cpu()
                advance(len(rows))
        return differences


def load_pairs(
    paths: Sequence[Path], style: Style, tokenizer: PreTrainedTokenizerFast, *, context: int
) -> Pairs:
    """Pairs in TRL's conversational form: `{"prompt": [messages], "chosen": [...], "rejected": [...]}` a line.

    Raises `InputError` for a line that is no pair; pairs that do not fit are counted.
    """
    chosen, rejected, ids = [], [], []
    left_out: dict[str, int] = {}
    for path in paths:
        for number, line in lines_of(path):
            traces = _traces(line, style, f"{path}, line {number}")
            try:
                both = [make_example(Solution(trace), style, tokenizer, context) for trace in traces]
            except InputError as exc:
                left_out[exc.code] = left_out.get(exc.code, 0) + 1
                continue
            chosen.append(both[0])
            rejected.append(both[1])
            ids.append(hashlib.sha256(line).hexdigest()[:32])
    if not ids:
        raise InputError(
            "no-pairs", f"no pair of {', '.join(map(str, paths))} can be used", "raise the context"
        )
    return Pairs(tuple(chosen), tuple(rejected), tuple(ids), left_out)


def _traces(line: bytes, style: Style, place: str) -> list[Trace]:
    try:
        item = json.loads(line)
        prompt = tuple({"role": turn["role"], "content": turn["content"]} for turn in item["prompt"])
        answers = [item[name] for name in ("chosen", "rejected")]
        if not prompt or any(len(answer) != 1 or answer[0]["role"] != "assistant" for answer in answers):
            raise ValueError("needs a prompt, and one assistant's message in chosen and rejected")
        return [_solution(prompt, answer[0], style) for answer in answers]
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise InputError(
            "bad-pair",
            f"{place}: is no pair: {str(exc)[:200]}",
            'a line looks like {"prompt": [...], "chosen": [...], "rejected": [...]}',
        ) from exc


def _solution(prompt: tuple[dict[str, str], ...], turn: dict[str, Any], style: Style) -> Trace:
    """The reasoning from its own field, or from between the markers in the content."""
    content, reasoning = turn["content"], turn.get("reasoning_content") or ""
    if not isinstance(content, str) or not isinstance(reasoning, str):
        raise ValueError("contents are text")
    if not reasoning and style.markers and style.markers.close in content:
        parser = ReasoningParser(style.markers)
        pieces = [*parser.feed(content), *parser.finish()]
        reasoning = "".join(piece.text for piece in pieces if piece.kind == "reasoning").strip()
        content = "".join(piece.text for piece in pieces if piece.kind == "answer").strip()
    return Trace(prompt, reasoning, content)
