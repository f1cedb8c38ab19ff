"""What an export made is held against its limits; the good bundles are described and renamed into place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_distill_export.artifact import Source, check_tokenizer, write_modelfile
from edge_distill_export.bundle import publish, seal
from edge_distill_export.chat_template import check_chat
from edge_distill_export.grid import QuantizedTensor
from edge_distill_export.model_card import write_card
from edge_distill_export.parity import Parity
from edge_distill_export.targets import Target
from edge_distill_runtime.bundles.manifest import Manifest
from edge_distill_runtime.errors import ParityError

__all__ = ["Exported", "publish_good"]


@dataclass(frozen=True)
class Exported:
    """One bundle in its place."""

    target: str
    path: str
    method: str
    bytes: int
    """Size of the model file(s)."""
    bits_per_weight: float
    parity: Parity
    limit_kl: float
    choice: dict[str, Any] | None = None
    """Of mixed precision: which tensors have 8 bits, and what decided it."""


def publish_good(
    source: Source,
    stages: Mapping[Target, Path],
    places: Mapping[Target, Path],
    manifests: Mapping[Target, Manifest],
    parities: Mapping[Target, Parity],
    tensors: Mapping[Target, Mapping[str, QuantizedTensor]],
    limit_kl: float | None,
) -> tuple[list[Exported], list[ParityError]]:
    """Put the bundles within their limits into place; the others stay in `stages`, each with its error."""
    bundles, failures = [], []
    for target, directory in stages.items():
        parity, limit = parities[target], target.kl_limit if limit_kl is None else limit_kl
        if target.budget and target.budget.kl:
            limit = min(limit, target.budget.kl)
        try:
            _judge(source, target, parity, limit, tensors[target])
            verification = _verification(source, directory, parity, limit)
        except ParityError as exc:
            failures.append(exc)
            continue
        manifest = replace(manifests[target], verification=verification)
        bundles.append(_finish(source, target, manifest, directory, places[target], parity, limit))
    return bundles, failures


def _judge(
    source: Source, target: Target, parity: Parity, limit: float, tensors: Mapping[str, QuantizedTensor]
) -> None:
    """Raise `ParityError` beyond the limit, naming the layer that lost most."""
    found = parity.overall.kl_mean
    if found <= limit:
        return
    name, worst = None, ""
    if tensors:
        name, error = _worst_layer(source, tensors)
        worst = f"; the worst layer is {name} (relative error {error:.3f})"
    raise ParityError(
        "too-far",
        f"{target} has a mean KL divergence of {found:.4f} to the checkpoint, the limit is {limit:g}{worst}",
        "use --method gptq, more bits, or --limit-kl",
        {"target": str(target), **parity.against(limit, name)},
    )


def _worst_layer(source: Source, tensors: Mapping[str, QuantizedTensor]) -> tuple[str, float]:
    """The tensor with the largest squared error relative to its squared weights."""
    weights = dict(source.checkpoint.model.named_parameters())

    def error(name: str) -> float:
        weight = weights[name].detach().numpy()
        total = float(np.square(weight).sum())
        return float(np.square(tensors[name].dequantize() - weight).sum()) / total if total else 0.0

    errors = {name: error(name) for name in tensors}
    name = max(errors, key=lambda key: errors[key])
    return name, errors[name]


def _verification(source: Source, directory: Path, parity: Parity, limit: float) -> dict[str, Any]:
    """The rest of the post-condition, and all of it for the manifest."""
    chat = source.style.chat
    return {
        "parity": parity.to_dict(),
        "limit_kl": limit,
        "tokenizer_strings": check_tokenizer(source, directory),
        "chat_prompts": check_chat(source.checkpoint.tokenizer, chat) if chat else 0,
    }


def _finish(
    source: Source,
    target: Target,
    manifest: Manifest,
    directory: Path,
    place: Path,
    parity: Parity,
    limit: float,
) -> Exported:
    """Add what describes the bundle, seal it again and rename it into place."""
    size = sum(entry.size for entry in manifest.files if entry.path.startswith(manifest.model_file))
    if target.format == "gguf":
        write_modelfile(source, directory)
    write_card(manifest, size, directory)
    seal(directory, manifest)
    publish(directory, place)
    precision = manifest.precision
    return Exported(
        target=str(target),
        path=str(place),
        method=precision.method,
        bytes=size,
        bits_per_weight=precision.bits_per_weight,
        parity=parity,
        limit_kl=limit,
        choice=manifest.lineage.get("precision_choice"),
    )
