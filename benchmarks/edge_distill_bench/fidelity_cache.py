"""A reference's distributions on disk: for every token the k likeliest ids, their log-probabilities, and the rest's.

8 k + 4 bytes a token: 10 MB for 10,000 tokens and k = 128, where whole logits of 49,152 ids would take 2 GB. Two files
in one folder: `reference.bin` (little-endian int32 ids [n, k], float32 log-probabilities [n, k], float32 rest [n] for
one text after the other) and `reference.jsonl`, whose lines say whose it is and, once a text's rows are written, where
they lie. A writer that was killed is continued.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_distill_bench.fidelity_texts import ForcedText, spelling
from edge_distill_bench.lines import append_lines, cut_torn_line, read_lines
from edge_distill_runtime import InputError, Model
from edge_distill_runtime.bundles.files import open_regular
from edge_distill_runtime.bundles.typed_json import typed
from edge_distill_runtime.engines.forcing import Forcing
from edge_distill_runtime.errors import BundleError, ResourceError

__all__ = ["DEFAULT_K", "Reference", "TopK", "log_sum_exp", "read_reference", "top_k", "write_reference"]

Floats = NDArray[np.float32]

DEFAULT_K = 128
_SCHEMA_VERSION = 1
_INDEX, _DATA = "reference.jsonl", "reference.bin"
_MAX_BYTES = 1 << 30
_ROUNDING = 1e-4  # by which a float32 log-probability may exceed 0


class TopK(NamedTuple):
    """Distributions, their k likeliest ids first: ids int32 [n, k], log_p float32 [n, k], log_rest float32 [n]."""

    ids: NDArray[np.int32]
    log_p: Floats
    log_rest: Floats


def top_k(logits: Floats, k: int) -> TopK:
    """From logits [n, vocab]; the rest's log-probability is summed, not subtracted, and -inf when k is all."""
    ids = np.sort(np.argpartition(logits, logits.shape[1] - k, axis=-1)[:, -k:], axis=-1)
    # stable: of equal ones the lowest id comes first, as argmax has it
    order = np.argsort(-np.take_along_axis(logits, ids, -1), axis=-1, kind="stable")
    ids = np.take_along_axis(ids, order, -1)
    log_p, log_rest = split_at(logits, ids)
    return TopK(ids.astype(np.int32), log_p, log_rest)


def split_at(logits: Floats, ids: NDArray[np.integer[Any]]) -> tuple[Floats, Floats]:
    """Log-probabilities [n, k] of given ids, and of all others together [n]."""
    values = np.take_along_axis(logits, ids, -1).astype(np.float64)
    others = logits.copy()  # the engine's own buffer
    np.put_along_axis(others, ids, -np.inf, -1)
    rest = log_sum_exp(others)
    total = np.logaddexp(log_sum_exp(values), rest)
    return (values - total[:, None]).astype(np.float32), (rest - total).astype(np.float32)


def log_sum_exp(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Over the last axis; -inf where all are."""
    highest = values.max(-1, keepdims=True)
    safe = np.where(np.isfinite(highest), highest, 0)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(values - safe).sum(-1, dtype=np.float64)) + safe[..., 0]


@dataclass(frozen=True)
class _Header:
    schema_version: int
    name: str
    model: str
    """`Model.model_hash`."""
    vocabulary: int
    k: int


@dataclass(frozen=True)
class _Entry:
    text: ForcedText
    spelled: str
    start: int
    """Of its rows in the data, in bytes."""
    sha256: str
    """Of its rows."""


class Reference:
    """A cache that is there; texts and rows are read when they are asked for, and checked."""

    def __init__(self, folder: Path, header: _Header, entries: Sequence[_Entry]) -> None:
        self.name, self.model_hash = header.name, header.model
        self.k, self.vocabulary = header.k, header.vocabulary
        self._folder = folder
        self._entries = {entry.text: entry for entry in entries}

    @property
    def texts(self) -> list[ForcedText]:
        return list(self._entries)

    def key(self, text: ForcedText) -> str:
        """Changes with anything that a comparison on this text depends on."""
        entry = self._entries[text]
        return hashlib.sha256(
            f"{self.model_hash} {self.k} {entry.spelled} {entry.sha256}".encode()
        ).hexdigest()

    def check_tokenizer(self, model: Model) -> None:
        """Raise `InputError` unless the model means the same by all token ids."""
        for text, entry in self._entries.items():
            if model.backend.vocab_size < self.vocabulary or spelling(model, text.tokens) != entry.spelled:
                raise InputError(
                    "other-tokenizer",
                    f"{model.manifest.name} has another vocabulary than {self.name}",
                    "fidelity compares models of one tokenizer",
                )

    def rows(self, text: ForcedText) -> TopK:
        """The distributions of the tokens after the prompt; `BundleError` when the data is damaged."""
        entry = self._entries[text]
        data = bytearray(_row_bytes(self.k) * text.rows)
        with open_regular(self._folder / _DATA, allow_links=True) as file:
            file.seek(entry.start)
            count = file.readinto(data)  # type: ignore[attr-defined]
        if count != len(data) or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise _damaged(self._folder)
        found = _from_bytes(data, text.rows, self.k)
        if not (
            (found.ids >= 0).all()
            and (found.ids < self.vocabulary).all()
            and (found.log_p <= _ROUNDING).all()  # False for NaN
            and (found.log_rest <= _ROUNDING).all()
        ):
            raise _damaged(self._folder)
        return found


def read_reference(folder: Path) -> Reference:
    """A cache from its folder, on any machine; `InputError` or `BundleError` when it is none."""
    path = folder / _INDEX
    lines = read_lines(path)
    try:
        header = typed(_Header, next(lines, (0, {}))[1], "header")
        if header.schema_version != _SCHEMA_VERSION or not 1 <= header.k <= header.vocabulary:
            raise ValueError(f"schema_version {header.schema_version}, k {header.k}")
        entries = [typed(_Entry, value, f"line {number}") for number, value in lines]
        for entry in entries:
            _check(entry, header)
    except ValueError as exc:
        raise BundleError("bad-reference", f"{path}: {exc}", "delete the folder and measure again") from exc
    return Reference(folder, header, entries)


def _check(entry: _Entry, header: _Header) -> None:
    text = entry.text
    sizes = {text.rows, len(text.parts), len(text.signs)}
    end = entry.start + text.rows * _row_bytes(header.k)
    if not 1 <= text.prompt < len(text.tokens) or len(sizes) > 1 or not 0 <= entry.start < end <= _MAX_BYTES:
        raise ValueError("a text does not fit its rows")
    if min(text.tokens) < 0 or max(text.tokens) >= header.vocabulary:
        raise ValueError("a token lies outside the vocabulary")
    if not set(text.parts) <= set("ra") or not set(text.signs) <= set("no."):
        raise ValueError("a token is of an unknown kind")


def write_reference(
    model: Model,
    texts: Iterable[ForcedText],
    folder: Path,
    *,
    name: str,
    k: int = DEFAULT_K,
    progress: Callable[[int], object] = lambda done: None,
) -> Reference:
    """Teacher-force the reference on all texts that the cache in `folder` does not hold yet.

    `progress` is told how many texts are done. Raises `InputError` when the folder holds another model's cache, when k
    is larger than the vocabulary, and beyond 1 GiB.
    """
    texts = list(dict.fromkeys(texts))
    vocabulary = model.backend.vocab_size
    if not 1 <= k <= vocabulary or sum(text.rows for text in texts) * _row_bytes(k) > _MAX_BYTES:
        raise InputError(
            "bad-k", f"k is {k} for {len(texts)} texts", f"1 to {vocabulary}, below 1 GiB in all"
        )
    header = _Header(_SCHEMA_VERSION, name, model.model_hash, vocabulary, k)
    entries = _begin(folder, header)
    done = {entry.text for entry in entries}
    progress(len(done & set(texts)))
    end = max((entry.start + _row_bytes(k) * entry.text.rows for entry in entries), default=0)
    with closing(Forcing(model.backend)) as forcing:
        for text in texts:
            if text in done:
                continue
            chunks = [top_k(chunk, k) for chunk in forcing.logits(text.tokens, text.prompt)]
            data = b"".join(np.concatenate(column).tobytes() for column in zip(*chunks, strict=True))
            _write_at(folder / _DATA, end, data)
            digest = hashlib.sha256(data).hexdigest()
            entries.append(_Entry(text, spelling(model, text.tokens), end, digest))
            append_lines(folder / _INDEX, [asdict(entries[-1])])
            end += len(data)
            done.add(text)
            progress(len(done & set(texts)))
    wanted = set(texts)
    return Reference(folder, header, [entry for entry in entries if entry.text in wanted])


def _begin(folder: Path, header: _Header) -> list[_Entry]:
    """What the folder holds of this reference; begins it when there is nothing."""
    path = folder / _INDEX
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ResourceError("unwritable", f"{folder}: {exc.strerror}", "choose another folder") from exc
    if path.exists():
        cut_torn_line(path)
    if not path.exists() or path.stat().st_size == 0:
        append_lines(path, [asdict(header)])
    found = read_reference(folder)
    if (found.model_hash, found.k, found.vocabulary) != (header.model, header.k, header.vocabulary):
        raise InputError(
            "other-reference",
            f"{folder} holds the cache of {found.name}",
            "give another folder, or delete it",
        )
    return list(found._entries.values())


def _write_at(path: Path, start: int, data: bytes) -> None:
    """Behind the rows that the index knows; what a killed writer left there is overwritten."""
    try:
        path.touch()
        with path.open("r+b") as file:
            file.seek(start)
            file.write(data)
            file.truncate()
    except OSError as exc:
        raise ResourceError("unwritable", f"{path}: {exc.strerror}", "choose another folder") from exc


def _row_bytes(k: int) -> int:
    return 8 * k + 4


def _from_bytes(data: bytearray, rows: int, k: int) -> TopK:
    ids = np.frombuffer(data, "<i4", rows * k).reshape(rows, k)
    log_p = np.frombuffer(data, "<f4", rows * k, 4 * rows * k).reshape(rows, k)
    return TopK(ids, log_p, np.frombuffer(data, "<f4", rows, 8 * rows * k))


def _damaged(folder: Path) -> BundleError:
    return BundleError(
        "damaged-reference",
        f"{folder / _DATA} is not what its index says",
        "delete the folder and measure again",
    )
