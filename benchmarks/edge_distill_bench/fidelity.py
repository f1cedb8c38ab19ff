"""How far a model's next-token distributions are from a reference's, teacher-forced on the same reasoning text.

P is the reference's distribution, Q the model's. KL(P || Q) is taken over the reference's k likeliest tokens and one
bucket for all others: merging outcomes can only lose divergence (the data processing inequality), so it is a lower
bound of the exact one. What it loses is the divergence inside the bucket, which has little probability: `tail` says how
much. With k = 64 less than 1 % was lost for models that matter (tests/bench/test_fidelity.py measures it).

Checkpoints take part as fp32 bundles: everything runs through the runtime's step interface.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_distill_bench.fidelity_cache import Reference, TopK, split_at
from edge_distill_bench.fidelity_texts import ForcedText
from edge_distill_bench.lines import append_lines, bad_line, cut_torn_line, read_lines
from edge_distill_bench.results import FidelityPart, FidelityResult
from edge_distill_bench.statistics import clustered_mean
from edge_distill_runtime import Model
from edge_distill_runtime.bundles.typed_json import typed
from edge_distill_runtime.engines.forcing import Forcing

__all__ = ["bucketed_kl", "measure_fidelity"]


@dataclass(frozen=True)
class _Row:
    """One text: its KL in nats and 1 for the same likeliest token, for every token after the prompt."""

    key: str
    kl: tuple[float, ...]
    agrees: tuple[int, ...]


def bucketed_kl(reference: TopK, logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """KL [n] of reference rows to logits [n, vocab], over the k ids and the rest; never above the exact one."""
    log_q, log_rest = split_at(logits, reference.ids)
    log_p = reference.log_p.astype(np.float64)
    kl = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    rest = reference.log_rest.astype(np.float64)
    with np.errstate(invalid="ignore"):  # -inf - -inf where there is no rest
        kl += np.where(np.isfinite(rest), np.exp(rest) * (rest - log_rest), 0.0)
    return np.maximum(kl, 0.0)


def measure_fidelity(
    model: Model,
    reference: Reference,
    *,
    rows: Path | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> FidelityResult:
    """Compare a model with a reference on the reference's texts.

    `rows` is a JSON lines file of finished texts, which a later run does not compute again. `progress` is told how many
    texts are done. Raises `InputError` when the tokenizers differ, `BackendError` when the model computes NaN.
    """
    reference.check_tokenizer(model)
    texts = reference.texts
    keys = {text: _key(model, reference, text) for text in texts}
    done = _finished(rows)
    progress(sum(key in done for key in keys.values()))
    tails = []
    with closing(Forcing(model.backend)) as forcing:
        for count, text in enumerate(texts, 1):
            expected = reference.rows(text)
            tails.append(np.exp(expected.log_rest))
            if keys[text] not in done:
                row = _compare(keys[text], expected, forcing, text)
                if rows is not None:
                    append_lines(rows, [{"key": row.key, "kl": row.kl, "agrees": row.agrees}])
                done[row.key] = row
                progress(count)
    found = [done[keys[text]] for text in texts]
    parts = {name: _part(texts, found, chosen) for name, chosen in _PARTS.items()}
    return FidelityResult(
        against=reference.name,
        k=reference.k,
        parts={name: part for name, part in parts.items() if part is not None},
        texts=len(texts),
        tail=float(np.concatenate(tails).mean()),
    )


def _key(model: Model, reference: Reference, text: ForcedText) -> str:
    return hashlib.sha256(f"{model.model_hash} {reference.key(text)}".encode()).hexdigest()


def _finished(path: Path | None) -> dict[str, _Row]:
    if path is None or not path.exists():
        return {}
    cut_torn_line(path)
    found = {}
    for number, value in read_lines(path):
        try:
            row = typed(_Row, value, "row")
        except ValueError as exc:
            raise bad_line(path, number) from exc
        found[row.key] = row
    return found


def _compare(key: str, expected: TopK, forcing: Forcing, text: ForcedText) -> _Row:
    kls, agrees, at = [], [], 0
    for logits in forcing.logits(text.tokens, text.prompt):
        now = slice(at, at + len(logits))
        part = TopK(expected.ids[now], expected.log_p[now], expected.log_rest[now])
        at += len(logits)
        agrees.append(part.ids[:, 0] == logits.argmax(-1))
        kls.append(bucketed_kl(part, logits))
    kl = np.concatenate(kls)
    return _Row(key, tuple(round(float(value), 9) for value in kl), tuple(map(int, np.concatenate(agrees))))


_PARTS: dict[str, Callable[[ForcedText], Any]] = {
    "all": lambda text: np.ones(text.rows, bool),
    "reasoning": lambda text: np.array(list(text.parts)) == "r",
    "answer": lambda text: np.array(list(text.parts)) == "a",
    "numbers": lambda text: np.array(list(text.signs)) == "n",
    "operators": lambda text: np.array(list(text.signs)) == "o",
}


def _part(
    texts: Sequence[ForcedText], rows: Sequence[_Row], chosen: Callable[[ForcedText], Any]
) -> FidelityPart | None:
    """Statistics over the tokens of one kind; None when there are none."""
    kls, agreements = [], []
    for text, row in zip(texts, rows, strict=True):
        mask = chosen(text)
        if mask.any():
            kls.append(np.array(row.kl)[mask])
            agreements.append(np.array(row.agrees, bool)[mask])
    if not kls:
        return None
    kl, agrees = np.concatenate(kls), np.concatenate(agreements)
    first = [len(each) if each.all() else int(np.argmin(each)) for each in agreements]
    interval = clustered_mean([each.sum() for each in kls], [len(each) for each in kls])
    return FidelityPart(
        tokens=len(kl),
        mean_kl=float(kl.mean()),
        p99_kl=float(np.quantile(kl, 0.99)),
        top1=float(agrees.mean()),
        first_divergence=None if agrees.all() else float(np.median(first)),
        mean_kl_interval=(interval.low, interval.high) if len(kls) > 1 else None,
    )
