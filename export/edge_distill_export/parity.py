"""The post-condition: how far an artifact is from its checkpoint on held-out reasoning text.

Both are teacher-forced on the same tokens; their next-token distributions P (checkpoint) and Q (artifact) are
compared by KL(P || Q) in nats, by whether their likeliest tokens agree, and by where they first disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceOf
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from edge_distill_export.calibration import Text
from edge_distill_runtime.engines.forcing import Forcing
from edge_distill_runtime.errors import BackendError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from edge_distill_runtime.engines.backend import Backend


@dataclass(frozen=True)
class Divergence:
    """Statistics over the tokens of one kind."""

    tokens: int
    kl_mean: float
    kl_p99: float
    top1: float
    """Share of positions where both find the same token likeliest."""


@dataclass(frozen=True)
class Parity:
    """An artifact against its checkpoint; `reasoning` or `answer` is None where the texts have no such tokens."""

    overall: Divergence
    reasoning: Divergence | None
    answer: Divergence | None
    first_divergence: float
    """Median over the texts of the tokens before the first disagreement about the likeliest token."""
    texts: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def against(self, limit: float, worst_layer: str | None = None) -> dict[str, Any]:
        """The numbers of a `ParityError`."""
        found = self.overall
        return {
            "mean_kl": found.kl_mean,
            "p99": found.kl_p99,
            "top1": found.top1,
            "limit": limit,
            "worst_layer": worst_layer,
        }


@dataclass(frozen=True)
class _Positions:
    """Per predicted token of one text: KL, agreement, and whether the token belongs to the answer."""

    kl: np.ndarray
    agrees: np.ndarray
    is_answer: np.ndarray


class References:
    """The checkpoint's log-probabilities on held-out texts, computed once and kept in a temporary file.

    Engines are then compared one after the other: their threads spin, and would slow each other and torch down.
    The file holds float32 [completion tokens, vocab] for one text after the other.
    """

    def __init__(
        self, model: PreTrainedModel, texts: SequenceOf[Text], file: BinaryIO, advance: Callable[[], None]
    ) -> None:
        self._texts, self._file = texts, file
        for text in texts:
            log_p = _log_probabilities(model, text)
            self._vocab_size = log_p.shape[1]
            file.write(log_p.numpy().data)
            advance()

    def compare(self, backend: Backend, advance: Callable[[], None]) -> Parity:
        """Teacher-force a backend on all texts; the prompts only condition."""
        with closing(Forcing(backend)) as forcing:
            return self._compare(lambda text: forcing.logits(text.tokens, text.prompt), advance)

    def compare_model(self, model: PreTrainedModel) -> Parity:
        """The same for a model in torch: the checkpoint with other weights."""
        return self._compare(lambda text: [_log_probabilities(model, text).numpy()], lambda: None)

    def _compare(self, logits: Callable[[Text], Iterable[np.ndarray]], advance: Callable[[], None]) -> Parity:
        parts = []
        self._file.seek(0)
        for text in self._texts:
            reference = np.empty((len(text.tokens) - text.prompt, self._vocab_size), np.float32)
            self._file.readinto(reference.data)  # type: ignore[attr-defined]
            parts.append(_compare(reference, logits(text), text))
            advance()
        return summarize(parts)


def _log_probabilities(model: PreTrainedModel, text: Text) -> torch.Tensor:
    """float32 [completion tokens, vocab]: row i predicts `tokens[prompt + i]`."""
    import torch

    rows = len(text.tokens) - text.prompt
    with torch.inference_mode():
        # The last position predicts nothing that is known.
        output = model(torch.tensor([text.tokens]), use_cache=False, logits_to_keep=rows + 1)
    return output.logits[0, :-1].float().log_softmax(-1)


def _compare(reference: np.ndarray, logits: Iterable[np.ndarray], text: Text) -> _Positions:
    import torch

    kls, agrees = [], []
    row = 0
    for chunk in logits:
        expected = reference[row : row + len(chunk)]
        row += len(chunk)
        agrees.append(expected.argmax(-1) == chunk.argmax(-1))  # torch's argmax is many times slower
        log_p, log_q = torch.from_numpy(expected), torch.from_numpy(chunk).log_softmax(-1)
        kls.append((log_p.exp() * log_q.neg_().add_(log_p)).sum(-1).clamp_(min=0).numpy())
    kl = np.concatenate(kls)
    if row != len(reference) or not np.isfinite(kl).all():
        raise BackendError("bad-logits", "the artifact computes NaN or infinity", "its weights are damaged")
    is_answer = np.arange(len(kl)) >= text.answer - text.prompt
    return _Positions(kl, np.concatenate(agrees), is_answer)


def summarize(parts: SequenceOf[_Positions]) -> Parity:
    """The statistics over all texts."""
    kl = np.concatenate([part.kl for part in parts])
    agrees = np.concatenate([part.agrees for part in parts])
    is_answer = np.concatenate([part.is_answer for part in parts])
    first = [int(np.argmin(part.agrees)) if not part.agrees.all() else len(part.agrees) for part in parts]
    return Parity(
        overall=_divergence(kl, agrees),
        reasoning=_divergence(kl[~is_answer], agrees[~is_answer]) if not is_answer.all() else None,
        answer=_divergence(kl[is_answer], agrees[is_answer]) if is_answer.any() else None,
        first_divergence=float(np.median(first)),
        texts=len(parts),
    )


def _divergence(kl: np.ndarray, agrees: np.ndarray) -> Divergence:
    return Divergence(len(kl), float(kl.mean()), float(np.quantile(kl, 0.99)), float(agrees.mean()))
