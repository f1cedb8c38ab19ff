"""Sensitivities in a file beside the calibration: measured text by text, resumed after an interruption, reused."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_distill_export.calibration import Text
from edge_distill_export.checkpoint_files import read_json
from edge_distill_export.grid import QuantizedTensor
from edge_distill_export.progress import stage
from edge_distill_export.sensitivity import Sensitivity, draw_products
from edge_distill_runtime.engines.allocator import give_back_freed_memory
from edge_distill_runtime.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TEXTS = 32
DRAWS = 6
"""A text; 192 in all: the loss of any set of tensors is known to some 10 %."""
_SCHEMA = 1
_MOST = 1 << 16  # draws or names in a file


def measure(
    model: PreTrainedModel,
    texts: Sequence[Text],
    tensors: Mapping[str, QuantizedTensor],
    identity: Mapping[str, Any],
    path: Path,
) -> Sensitivity:
    """Measure what rounding to `tensors` costs, or read it from `path` where `identity` is the same.

    The file is written after each text, so that a measurement that was interrupted goes on where it stopped.
    """
    chosen = (
        [texts[index * len(texts) // TEXTS] for index in range(TEXTS)] if len(texts) > TEXTS else [*texts]
    )
    key = _key({**identity, "texts": [text.tokens for text in chosen], "draws": DRAWS, "names": [*tensors]})
    found = _read(path, key, tuple(tensors))
    done = 0 if found is None else len(found.tokens) // DRAWS
    rows = [] if found is None else [found.products]
    counts = [] if found is None else [*found.tokens]
    with stage("Measuring sensitivities", len(chosen)) as advance:
        advance(done)
        for index in range(done, len(chosen)):
            text = chosen[index]
            rows.append(draw_products(model, text, tensors, draws=DRAWS, seed=index))
            counts += [len(text.tokens) - text.prompt] * DRAWS
            found = Sensitivity(tuple(tensors), np.concatenate(rows), np.array(counts, np.int64))
            _write(path, key, found)
            give_back_freed_memory()  # texts differ in length, and leave holes of every size
            advance()
    assert found is not None
    return found


def read_sensitivity(path: Path) -> Sensitivity:
    """The sensitivities in a file that an export wrote; raises `InputError` for anything else."""
    value = read_json(path)
    try:
        return _parsed(value)
    except (ValueError, KeyError, TypeError) as exc:
        raise InputError(
            "bad-sensitivity", f"{path} holds no sensitivities: {exc}", "remove it and export again"
        ) from exc


def _parsed(value: Mapping[str, Any]) -> Sensitivity:
    if value["schema_version"] != _SCHEMA:
        raise ValueError(f"schema_version is {value['schema_version']!r}, this version reads {_SCHEMA}")
    names = tuple(value["names"])
    products, tokens = np.array(value["products"], float), np.array(value["tokens"], np.int64)
    if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise ValueError("names are no distinct texts")
    if not 0 < len(tokens) <= _MOST or not 0 < len(names) <= _MOST or (tokens < 1).any():
        raise ValueError("it has no draws, or too many, or some of no tokens")
    if products.shape != (len(tokens), len(names)) or not np.isfinite(products).all():
        raise ValueError(f"products are no finite numbers of the shape {(len(tokens), len(names))}")
    return Sensitivity(names, products, tokens)


def _key(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _read(path: Path, key: str, names: tuple[str, ...]) -> Sensitivity | None:
    """What was measured before of the same things; another file is measured anew and replaced."""
    if not path.exists():
        return None
    value = read_json(path)
    if value.get("key") != key:
        return None
    found = read_sensitivity(path)
    return found if found.names == names and len(found.tokens) % DRAWS == 0 else None


def _write(path: Path, key: str, found: Sensitivity) -> None:
    content = {
        "schema_version": _SCHEMA,
        "key": key,
        "names": found.names,
        "tokens": found.tokens.tolist(),
        "products": found.products.tolist(),
    }
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(content), encoding="utf-8")
    os.replace(partial, path)
