"""`edge-distill verify`: a bundle is intact and runs; with its checkpoint at hand, it is also still close to it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated, Any

from edge_distill_export.artifact import Source, check_tokenizer, prepare
from edge_distill_export.calibration import heldout_texts
from edge_distill_export.chat_template import check_chat
from edge_distill_export.checkpoint import load_checkpoint
from edge_distill_export.inspect import open_manifest, printable
from edge_distill_export.parity import Parity, References
from edge_distill_export.progress import stage
from edge_distill_export.targets import TARGETS
from edge_distill_runtime import Model, load
from edge_distill_runtime.bundles.manifest import Manifest
from edge_distill_runtime.errors import BundleError, InputError, ParityError

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class ParityCheck:
    """What was compared with the checkpoint, all within its limits."""

    checkpoint: str
    parity: Parity
    recorded_kl: float | None
    """Mean KL divergence at export, as the manifest says."""
    limit_kl: float
    tokenizer_strings: int
    chat_prompts: int


@dataclass(frozen=True)
class Verification:
    """A bundle that has passed every check that was made."""

    bundle: str
    name: str
    target: str
    files: int
    bytes: int
    parity: ParityCheck | None
    """None when no checkpoint was given."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def render(self, console: Console) -> None:
        console.print(
            f"{printable(self.name)} ({self.target}): {self.files} files, {self.bytes / 1e6:,.1f} MB, "
            "hashes match, opens and computes"
        )
        check = self.parity
        if check is None:
            console.print("parity not checked: give --checkpoint")
            return
        overall = check.parity.overall
        recorded = "" if check.recorded_kl is None else f", {check.recorded_kl:.4f} at export"
        console.print(
            f"mean KL to {printable(check.checkpoint)}: {overall.kl_mean:.4f} (limit {check.limit_kl:g}{recorded}), "
            f"p99 {overall.kl_p99:.3f}, top-1 {overall.top1:.3f} on {overall.tokens:,} tokens"
        )
        console.print(
            f"{check.tokenizer_strings} strings and {check.chat_prompts} chat prompts come out the same"
        )


def verify(
    bundle: Annotated[Path, "A bundle directory"],
    *,
    checkpoint: Annotated[str | None, "What it was exported from: the parity is measured again"] = None,
) -> Verification:
    """Check every file's hash, open the bundle as a device would, and compare it with its checkpoint.

    Raises `BundleError` for damage, `InputError` for another checkpoint, `ParityError` beyond the bundle's limit.
    """
    manifest = open_manifest(bundle)
    # `load` checks sizes, hashes and surplus files, then the model's header, before an engine sees it.
    with stage("Checking hashes and opening the bundle"):
        model = load(bundle)
    with model:
        model.backend.release(model.backend.prefill([0]))  # damaged weights compute NaN, which engines refuse
        check = None if checkpoint is None else _check_parity(bundle, manifest, model, checkpoint)
    return Verification(
        bundle=str(bundle),
        name=manifest.name,
        target=f"{manifest.format}:{printable(manifest.precision.target)}",
        files=len(manifest.files),
        bytes=sum(entry.size for entry in manifest.files),
        parity=check,
    )


def _check_parity(bundle: Path, manifest: Manifest, model: Model, reference: str) -> ParityCheck:
    """Repeat the export's post-condition."""
    limit = _limit(manifest)
    with stage("Loading the checkpoint"):
        checkpoint = load_checkpoint(reference)
    _check_lineage(manifest, checkpoint.lineage, reference)
    source = prepare(checkpoint, manifest.context_length)
    strings, prompts = _check_text(source, bundle, manifest)
    texts = heldout_texts(source.style, checkpoint.tokenizer, source.context_length)
    with TemporaryFile() as file:
        with stage("Computing the checkpoint's logits", len(texts)) as advance:
            references = References(checkpoint.model, texts, file, advance)
        with stage("Comparing the bundle", len(texts)) as advance:
            parity = references.compare(model.backend, advance)
    found = parity.overall.kl_mean
    if not found <= limit:
        raise ParityError(
            "too-far",
            f"{bundle} has a mean KL divergence of {found:.4f} to {checkpoint.name}, its limit is {limit:g}",
            "export it again",
            parity.against(limit),
        )
    recorded = _recorded(manifest, "parity", "overall", "kl_mean")
    return ParityCheck(checkpoint.name, parity, recorded, limit, strings, prompts)


def _limit(manifest: Manifest) -> float:
    """The limit that the export kept, or else the target's."""
    limit = _recorded(manifest, "limit_kl")
    if limit is not None and limit > 0:
        return limit
    target = f"{manifest.format}:{manifest.precision.target}"
    if target not in TARGETS:
        raise BundleError(
            "no-limit",
            f"the manifest names no limit of KL divergence, and its target {target!r} is unknown",
            "export it again",
        )
    return TARGETS[target].kl_limit


def _recorded(manifest: Manifest, *keys: str) -> float | None:
    """A finite number below nested keys of `verification`, which is free-form, or None."""
    value: Any = manifest.verification
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def _check_lineage(manifest: Manifest, found: dict[str, Any], reference: str) -> None:
    """Raise `InputError` unless the weights are those that the bundle was made from, by their SHA-256."""
    expected = manifest.lineage.get("checkpoint")
    if not isinstance(expected, dict) or not _digests(expected):
        raise InputError(
            "no-lineage", f"the manifest of {manifest.name} names no checkpoint", "export it again"
        )
    if _digests(expected) != _digests(found):
        raise InputError(
            "other-checkpoint",
            f"{manifest.name} was made from {expected.get('name')} (weights {_short(expected)}), "
            f"{reference} is {found['name']} (weights {_short(found)})",
            "give the checkpoint that it was made from",
        )


def _digests(lineage: dict[str, Any]) -> list[str]:
    """The hashes of all weight files, whatever they are called; an adapter's, then its base's."""
    weights, base = lineage.get("weights"), lineage.get("base")
    own = sorted(map(str, weights.values())) if isinstance(weights, dict) else []
    return own + (_digests(base) if isinstance(base, dict) else [])


def _short(lineage: dict[str, Any]) -> str:
    return ", ".join(f"sha256 {digest[:12]}" for digest in _digests(lineage)[:2])


def _check_text(source: Source, bundle: Path, manifest: Manifest) -> tuple[int, int]:
    """Compare tokenizer and chat form; how many strings and prompts."""
    strings = check_tokenizer(source, bundle)
    if manifest.chat != source.style.chat or manifest.reasoning != source.style.markers:
        raise ParityError(
            "chat",
            f"the chat form of {manifest.name} differs from its checkpoint's template",
            "export it again",
        )
    chat = manifest.chat
    return strings, check_chat(source.checkpoint.tokenizer, chat) if chat else 0


__all__ = ["ParityCheck", "Verification", "verify"]
