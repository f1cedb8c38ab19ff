"""`edge-distill export`: a trained checkpoint becomes verified bundles.

All targets of one call share loading, calibration and quantization. Every artifact is reopened by the runtime and
compared with the checkpoint before it is renamed into place; one that is too far away leaves nothing behind.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated, Any

from edge_distill_export.activations import replaced_weights
from edge_distill_export.artifact import Source, float_source, make_manifest, prepare, write_model
from edge_distill_export.bundle import check_destination, seal, staged
from edge_distill_export.calibration import Text, heldout_texts
from edge_distill_export.checkpoint import load_checkpoint
from edge_distill_export.choose import hold_back
from edge_distill_export.collect import Calibration, calibration_texts
from edge_distill_export.kv_cache import check_kv_bits, gguf_precision, has_int8_graph, quantize_onnx_cache
from edge_distill_export.mixed import high_text
from edge_distill_export.parity import Parity, References
from edge_distill_export.plan import Plan, plan
from edge_distill_export.progress import stage
from edge_distill_export.publishing import Exported, publish_good
from edge_distill_export.quantize import Method, Quantization, calibrates, method_of, quantize
from edge_distill_export.repair import Stages
from edge_distill_export.repair_targets import check_repair, repaired_targets
from edge_distill_export.repair_text import repair_texts
from edge_distill_export.targets import Target, parse_budgets, parse_targets
from edge_distill_runtime import load
from edge_distill_runtime.bundles.manifest import Manifest
from edge_distill_runtime.errors import InputError, ParityError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["ExportResult", "export"]


@dataclass(frozen=True)
class ExportResult:
    """What an export made."""

    bundles: tuple[Exported, ...]
    calibration: dict[str, Any] | None
    seconds: float
    peak_memory: int
    """Largest resident size of this process, in bytes."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def render(self, console: Console) -> None:
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for title in ("target", "method", "MB", "bits per weight", "mean KL", "p99 KL", "top-1", "bundle"):
            justify: Any = "left" if title in ("target", "method", "bundle") else "right"
            table.add_column(title, justify=justify, overflow="fold")
        for bundle in self.bundles:
            overall = bundle.parity.overall
            table.add_row(
                bundle.target,
                bundle.method,
                f"{bundle.bytes / 1e6:.1f}",
                f"{bundle.bits_per_weight:.2f}",
                f"{overall.kl_mean:.4f}",
                f"{overall.kl_p99:.3f}",
                f"{overall.top1:.3f}",
                Path(bundle.path).name,
            )
        console.print(table)
        for bundle in self.bundles:
            if bundle.choice:
                console.print(f"{bundle.target}: 8 bits for {high_text(bundle.choice)}")
        if self.calibration and self.calibration["left_out"]:
            console.print(
                f"{self.calibration['left_out']} traces were not calibrated on: they share their wording with the "
                "held-out text"
            )
        folder = Path(self.bundles[0].path).parent
        console.print(f"In {folder}: {self.seconds:.0f} s, peak memory {self.peak_memory / 2**20:,.0f} MiB")


def export(
    checkpoint: Annotated[str, "A Hugging Face directory, a PEFT adapter, a .gguf file, or a hub id"],
    *,
    to: Annotated[list[str], "A target such as gguf:q4_0 or onnx:int4; may be repeated"],
    out: Annotated[Path, "The folder for the bundles, one directory each"],
    size: Annotated[
        list[str] | None, "Budget of gguf:auto and onnx:auto, such as 95MB; may be repeated"
    ] = None,
    kl: Annotated[
        list[float] | None, "The same as mean KL divergence in nats per token; may be repeated"
    ] = None,
    method: Annotated[Method, "How 4-bit integers are chosen: rtn rounds, gptq calibrates"] = "gptq",
    repair: Annotated[int, "Steps in which 4-bit tensors learn from the checkpoint after gptq"] = 0,
    repair_stages: Annotated[
        Stages, "What the repair learns beside norms: scales, integers, or both"
    ] = "both",
    calibrate: Annotated[
        Path | None, "Reasoning traces (JSON Lines); by default the student writes its own"
    ] = None,
    context: Annotated[int | None, "Most tokens of prompt and answer; by default 2048 or the model's"] = None,
    kv_bits: Annotated[
        int | None, "Bits of keys and values in the cache: 8, or 4 for GGUF; by default floats"
    ] = None,
    limit_kl: Annotated[float | None, "Largest mean KL divergence allowed, in nats per token"] = None,
    force: Annotated[bool, "Replace bundles that stand there already"] = False,
    dry_run: Annotated[bool, "Only say what would be made"] = False,
) -> ExportResult | Plan:
    """Turn a checkpoint into verified bundles, `OUT/NAME-PRECISION` each.

    With mixed precision (`auto`) 4 or 8 bits are chosen for each tensor by measured sensitivity; the size is that of
    the GGUF file where there is one. Raises `ParityError` when an artifact is too far from the checkpoint; the others
    are in place then.
    """
    started = time.monotonic()
    targets = parse_targets(to, parse_budgets(size or (), kl or ()))
    if limit_kl is not None and not limit_kl > 0:
        raise InputError("bad-limit", f"--limit-kl is {limit_kl}", "give a number above 0")
    if repair:
        check_repair(repair, targets, method)
    if dry_run:
        return plan(checkpoint, context=context, to=to, size=size, kl=kl, kv_bits=kv_bits)
    with stage("Loading the checkpoint"):
        source = prepare(load_checkpoint(checkpoint), context)
    check_kv_bits(kv_bits, source, targets)
    name = source.checkpoint.name
    places = {target: out / f"{name}-{target.folder}" for target in targets}
    for place in places.values():
        check_destination(place, force)
    heldout = heldout_texts(source.style, source.checkpoint.tokenizer, source.context_length)
    calibration: Calibration | None = None
    deciding: list[Text] = []
    if any(calibrates(target, method, kv_bits) for target in targets):
        calibration = calibration_texts(source, calibrate, out)
    if calibration and (repair or any(target.budget for target in targets)):
        calibration, deciding = hold_back(source, calibration)
    made = quantize(source, targets, method, calibration, deciding, out)
    if repair:
        text = repair_texts(source, calibrate, deciding, repair, out)
        repairs = repaired_targets(source, made.tensors, text, repair, repair_stages, out)
        learned = {target: found.tensors for target, found in repairs.items()}
        made = replace(made, tensors={**made.tensors, **learned}, repairs=repairs)
    with ExitStack() as stack:
        stages = {target: stack.enter_context(staged(place)) for target, place in places.items()}
        manifests = _write(source, stages, method, calibration, made, kv_bits)
        parities = _measure(source, stages, heldout)
        bundles, failures = publish_good(source, stages, places, manifests, parities, made.tensors, limit_kl)
    if failures:
        others = f"; made: {', '.join(bundle.target for bundle in bundles)}" if bundles else ""
        first = failures[0]
        raise ParityError(first.code, first.what + others, first.hint, first.data)
    return ExportResult(
        tuple(bundles),
        calibration.to_dict() if calibration else None,
        time.monotonic() - started,
        peak_memory(),
    )


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _write(
    source: Source,
    stages: Mapping[Target, Path],
    method: Method,
    calibration: Calibration | None,
    made: Quantization,
    kv_bits: int | None,
) -> dict[Target, Manifest]:
    """Write every target's files and seal them, as yet without verification."""
    manifests = {}
    with ExitStack() as stack:
        floats = None
        if any(target.k_quant for target in stages):
            out = next(iter(stages.values())).parent
            with stage("Writing the floats that K-quants are made from"):
                floats = stack.enter_context(float_source(source, made.importance, out))
        for target, directory in stages.items():
            with stage(f"Writing {target}"):
                repaired = made.repairs.get(target)
                with replaced_weights(source.checkpoint.model, repaired.norms if repaired else {}):
                    write_model(source, target, directory, made.tensors[target], floats)
                used = method_of(target, method)
                lineage = _lineage(source, calibration if calibrates(target, method, kv_bits) else None)
                if target in made.choices:
                    lineage["precision_choice"] = made.choices[target]
                if repaired:
                    lineage["repair"] = repaired.record
                lengths = calibration.reasoning_lengths if calibration else None
                manifest = make_manifest(source, target, directory, used, lineage, lengths)
                manifest = replace(manifest, kv_cache=gguf_precision(target, kv_bits))
                manifests[target] = seal(directory, manifest)
                if has_int8_graph(target, kv_bits):
                    assert calibration is not None  # `calibrates` asked for it
                    texts = [text.tokens for text in calibration.texts]
                    manifests[target] = quantize_onnx_cache(directory, texts)
    return manifests


def _lineage(source: Source, calibration: Calibration | None) -> dict[str, Any]:
    return {
        "checkpoint": source.checkpoint.lineage,
        "calibration": calibration.to_dict() if calibration else None,
    }


def _measure(source: Source, stages: Mapping[Target, Path], heldout: Sequence[Text]) -> dict[Target, Parity]:
    """Reopen every staged bundle as a device would, and compare it with the checkpoint."""
    parities = {}
    with TemporaryFile(dir=next(iter(stages.values()))) as file:
        with stage("Computing the checkpoint's logits", len(heldout)) as advance:
            references = References(source.checkpoint.model, heldout, file, advance)
        for target, directory in stages.items():
            with stage(f"Comparing {target}", len(heldout)) as advance, load(directory) as model:
                parities[target] = references.compare(model.backend, advance)
    return parities
