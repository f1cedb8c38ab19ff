"""A teacher's distributions on disk, written once and reused: the k likeliest tokens and a bucket for the rest.

A cache is a folder of safetensors shards and a manifest with their hashes. Shards and manifest are renamed into place,
the manifest last: a writer that was killed leaves a readable cache without its unfinished shard, and the next one goes
on from there. Texts are found by the hash of their tokens, whatever file or order they come from; a cache belongs to
one teacher, k and temperature.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_distill_runtime.bundles.files import check_relative_path, read_bounded, sha256_of
from edge_distill_runtime.errors import BundleError, InputError

if TYPE_CHECKING:
    import torch

    from edge_distill.distil.losses import TopK

__all__ = ["CachedLogits", "CachedLogitsWriter", "CachedTeacher", "teacher_hash", "text_key"]

MANIFEST = "cached_logits.json"
_SCHEMA_VERSION = 1
_MAX_MANIFEST = 256 << 20
_MAX_TEXT = 1 << 20  # tokens
_SHARD_BYTES = 64 << 20
_ROUNDING = 1e-4  # by which a float32 log-probability may exceed 0


def text_key(tokens: Sequence[int]) -> str:
    """The SHA-256 of token ids as little-endian int32, in hexadecimal."""
    import numpy as np

    return hashlib.sha256(np.asarray(tokens, dtype="<i4").tobytes()).hexdigest()


def teacher_hash(lineage: Mapping[str, Any]) -> str:
    """The identity of a checkpoint by the hashes of its weights (`Checkpoint.lineage`), whatever it is called."""
    parts = sorted(str(digest) for digest in lineage["weights"].values())
    if "base" in lineage:
        parts.append(teacher_hash(lineage["base"]))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class CachedTeacher:
    """Whose distributions a cache holds, and how."""

    teacher: str
    """`teacher_hash` of its checkpoint."""
    k: int
    vocabulary: int
    """The width of the logits, with padding rows."""
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.vocabulary:
            raise InputError(
                "bad-k", f"k is {self.k}, the vocabulary has {self.vocabulary}", "take 1 to the vocabulary"
            )
        if not 0 < self.temperature < float("inf"):
            raise InputError("bad-temperature", f"the temperature is {self.temperature}", "give more than 0")


@dataclass(frozen=True)
class _Text:
    """One text's rows in a shard: the distributions of tokens `first` to `length - 1`."""

    key: str
    first: int
    length: int

    @property
    def rows(self) -> int:
        return self.length - self.first


@dataclass(frozen=True)
class _Shard:
    path: str
    size: int
    sha256: str
    texts: tuple[_Text, ...]

    @property
    def rows(self) -> int:
        return sum(text.rows for text in self.texts)


class CachedLogitsWriter:
    """Adds texts to a cache; a context manager, whose end writes the last shard.

    Raises `InputError` "other-cache" when the folder holds the cache of another teacher, k or temperature.
    """

    def __init__(self, directory: Path, teacher: CachedTeacher, *, shard_bytes: int = _SHARD_BYTES) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory, self._teacher, self._shard_bytes = directory, teacher, shard_bytes
        self._shards: list[_Shard] = []
        if (directory / MANIFEST).exists():
            found, self._shards = _read_manifest(directory)
            if found != teacher:
                raise InputError(
                    "other-cache",
                    f"{directory} holds another cache: {found}, not {teacher}",
                    "choose another folder, or delete this one",
                )
        self._keys = {text.key for shard in self._shards for text in shard.texts}
        self._pending: list[tuple[_Text, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]] = []
        self._pending_bytes = 0

    def __enter__(self) -> CachedLogitsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.flush()

    def __contains__(self, tokens: Sequence[int]) -> bool:
        """Whether the text is there, or about to be written: then the teacher need not run."""
        return text_key(tokens) in self._keys

    def add(self, tokens: Sequence[int], logits: torch.Tensor, *, first: int = 1) -> None:
        """Keep the distributions of tokens[first:] from the teacher's logits [length, vocabulary] on the text.

        `first` is where the loss begins, at least 1. A text that is there already is left out.
        """
        expected = (len(tokens), self._teacher.vocabulary)
        if tuple(logits.shape) != expected or not 1 <= first < len(tokens) <= _MAX_TEXT:
            raise InputError(
                "bad-logits",
                f"logits {tuple(logits.shape)} from token {first} for a text of {len(tokens)} tokens",
                f"give logits {expected}, first between 1 and the last token, at most {_MAX_TEXT} tokens",
            )
        key = text_key(tokens)
        if key in self._keys:
            return
        parts = _top_k(logits[first - 1 : -1], self._teacher)
        self._pending.append((_Text(key, first, len(tokens)), parts))
        self._keys.add(key)
        self._pending_bytes += sum(part.nbytes for part in parts)
        if self._pending_bytes >= self._shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what is pending as one shard, then the manifest."""
        if not self._pending:
            return
        import torch
        from safetensors.torch import save

        columns = zip(*(parts for _, parts in self._pending), strict=True)
        names = ("indices", "log_probabilities", "log_rest")
        data = save({name: torch.cat(column) for name, column in zip(names, columns, strict=True)})
        name = f"logits-{len(self._shards):05d}.safetensors"
        _replace(self._directory / name, data)
        texts = tuple(text for text, _ in self._pending)
        shard = _Shard(name, len(data), hashlib.sha256(data).hexdigest(), texts)
        _write_manifest(self._directory, self._teacher, [*self._shards, shard])
        self._shards.append(shard)
        self._pending, self._pending_bytes = [], 0


class CachedLogits:
    """Reads a cache: hashes are checked when it is opened, rows are memory-mapped and checked when they are read."""

    def __init__(self, directory: Path) -> None:
        from safetensors import safe_open

        self.teacher, shards = _read_manifest(directory)
        self._files: list[Any] = []
        self._texts: dict[str, tuple[int, int, _Text]] = {}
        for number, shard in enumerate(shards):
            path = directory / shard.path
            if sha256_of(path) != (shard.size, shard.sha256):
                raise BundleError(
                    "damaged-cache",
                    f"{path} is not what {MANIFEST} says",
                    "delete the cache and write it again",
                )
            file = safe_open(path, framework="pt")
            _check_shapes(path, file, shard, self.teacher)
            self._files.append(file)
            row = 0
            for text in shard.texts:
                self._texts[text.key] = (number, row, text)
                row += text.rows

    def __len__(self) -> int:
        return len(self._texts)

    def __contains__(self, tokens: Sequence[int]) -> bool:
        return text_key(tokens) in self._texts

    def batch(self, texts: Iterable[tuple[Sequence[int], int]], length: int) -> TopK:
        """The distributions of (tokens, first token with a loss) pairs, padded on the right to `length` tokens.

        Raises `InputError` "not-cached" for a text that is not there, or only from a later token on.
        """
        import torch

        from edge_distill.distil.losses import TopK

        pairs = list(texts)
        k = self.teacher.k
        indices = torch.zeros(len(pairs), length, k, dtype=torch.long)
        log_probabilities = torch.zeros(len(pairs), length, k)
        log_rest = torch.zeros(len(pairs), length)
        for row, (tokens, first) in enumerate(pairs):
            text, parts = self._read(tokens, first)
            part = slice(text.first, text.length)
            indices[row, part], log_probabilities[row, part], log_rest[row, part] = parts
        return TopK(indices, log_probabilities, log_rest, self.teacher.temperature)

    def _read(
        self, tokens: Sequence[int], first: int
    ) -> tuple[_Text, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        found = self._texts.get(text_key(tokens))
        if found is None or found[2].first > first:
            what = "is not in the cache" if found is None else f"is cached from token {found[2].first} on"
            raise InputError(
                "not-cached",
                f"a text of {len(tokens)} tokens, with a loss from token {first}, {what}",
                "cache the teacher's logits of these traces again",
            )
        number, start, text = found
        rows = slice(start, start + text.rows)
        names = ("indices", "log_probabilities", "log_rest")
        indices, log_probabilities, log_rest = (self._files[number].get_slice(name)[rows] for name in names)
        whole = self.teacher.k == self.teacher.vocabulary
        wrong = (
            (indices < 0).any()
            or (indices >= self.teacher.vocabulary).any()
            or not (log_probabilities <= _ROUNDING).all()  # also NaN
            or (not whole and not (log_rest <= _ROUNDING).all())
        )
        if wrong:
            raise BundleError("damaged-cache", "a cached row is no distribution", "write the cache again")
        return text, (indices.long(), log_probabilities, log_rest)


def _top_k(logits: torch.Tensor, teacher: CachedTeacher) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """int32 ids [n, k], float32 log-probabilities [n, k] at the temperature, and the rest's [n]."""
    import torch

    from edge_distill.distil.divergences import log_others

    if not torch.isfinite(logits).all():
        raise InputError("not-finite", "the teacher's logits hold NaN or Inf", "check its checkpoint")
    scaled = logits.detach().float() / teacher.temperature
    normalizer = scaled.logsumexp(-1, keepdim=True)
    values, indices = scaled.topk(teacher.k, dim=-1)
    if teacher.k == teacher.vocabulary:
        log_rest = torch.zeros(len(scaled))
    else:
        log_rest = (log_others(scaled, indices) - normalizer[:, 0]).cpu()
    return indices.int().cpu(), (values - normalizer).cpu(), log_rest


def _check_shapes(path: Path, file: Any, shard: _Shard, teacher: CachedTeacher) -> None:
    expected = {
        "indices": ("I32", [shard.rows, teacher.k]),
        "log_probabilities": ("F32", [shard.rows, teacher.k]),
        "log_rest": ("F32", [shard.rows]),
    }
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    found = {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}
    if found != expected:
        raise BundleError(
            "damaged-cache", f"{path} holds {found}, not {expected}", "delete the cache and write it again"
        )


def _read_manifest(directory: Path) -> tuple[CachedTeacher, list[_Shard]]:
    path = directory / MANIFEST
    try:
        content = _typed(json.loads(read_bounded(path, _MAX_MANIFEST)), _MANIFEST_TYPES)
        if content["schema_version"] != _SCHEMA_VERSION:
            raise ValueError(f"schema version {content['schema_version']!r}, not {_SCHEMA_VERSION}")
        teacher = CachedTeacher(**_typed(content["teacher"], _TEACHER_TYPES))
        shards = []
        for item in content["shards"]:
            fields = _typed(item, _SHARD_TYPES)
            texts = tuple(_Text(**_typed(text, _TEXT_TYPES)) for text in fields.pop("texts"))
            if not all(1 <= text.first < text.length <= _MAX_TEXT for text in texts):
                raise ValueError("a text has no rows, or too many")
            check_relative_path(fields["path"])
            shards.append(_Shard(**fields, texts=texts))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise BundleError(
            "bad-manifest", f"{path} cannot be read: {exc}", "delete the cache and write it again"
        ) from exc
    return teacher, shards


_MANIFEST_TYPES: dict[str, Any] = {"schema_version": int, "teacher": dict, "shards": list}
_TEACHER_TYPES: dict[str, Any] = {"teacher": str, "k": int, "vocabulary": int, "temperature": (int, float)}
_SHARD_TYPES: dict[str, Any] = {"path": str, "size": int, "sha256": str, "texts": list}
_TEXT_TYPES: dict[str, Any] = {"key": str, "first": int, "length": int}


def _typed(item: Any, types: Mapping[str, Any]) -> dict[str, Any]:
    """The object's fields, exactly those of `types`; raises `ValueError` otherwise."""
    if not isinstance(item, dict) or item.keys() != types.keys():
        raise ValueError(f"an entry does not have the fields {', '.join(types)}")
    for name, value in item.items():
        if not isinstance(value, types[name]) or isinstance(value, bool):
            raise ValueError(f"{name} is {type(value).__name__}")
    return dict(item)


def _write_manifest(directory: Path, teacher: CachedTeacher, shards: Sequence[_Shard]) -> None:
    content = {
        "schema_version": _SCHEMA_VERSION,
        "teacher": asdict(teacher),
        "shards": [asdict(shard) for shard in shards],
    }
    _replace(directory / MANIFEST, json.dumps(content).encode())


def _replace(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: beside its place, synced, renamed."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
