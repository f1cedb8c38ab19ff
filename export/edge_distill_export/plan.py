"""`edge-distill plan`: what every target will take, before any work and without reading a weight."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from edge_distill_export.artifact import Source, prepare
from edge_distill_export.checkpoint import Checkpoint, read_config
from edge_distill_export.families import family_of
from edge_distill_export.kquants import Fallback
from edge_distill_export.kv_cache import cache_layout, check_kv_bits, gguf_precision
from edge_distill_export.mixed import high_text
from edge_distill_export.plan_choice import PlannedChoice, planned_choices
from edge_distill_export.sizes import model_size
from edge_distill_export.targets import TARGETS, Target, parse_budgets, parse_size, parse_targets
from edge_distill_runtime.engines.kv_cache import choose_precision, token_bytes
from edge_distill_runtime.engines.machine import memory_limit
from edge_distill_runtime.engines.memory import cache_bytes, needed_memory
from edge_distill_runtime.errors import EdgeDistillError, InputError

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class FallbackGroup:
    """Tensors that cannot take the type that a K-quant wants for them, for one reason."""

    wanted: str
    used: str
    columns: int
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class PlannedTarget:
    """One target; the sizes are None when it is impossible, `problem` says why then."""

    target: str
    file_bytes: int | None
    """Model file(s) of the bundle."""
    bits_per_weight: float | None
    kv_cache_bytes: int
    """For the whole context: by default values of 2 bytes in GGUF, of 4 in ONNX."""
    peak_memory: int | None
    """Largest resident size of a process that loads the bundle and decodes until the context is full."""
    fits: bool
    tensors: int
    fallbacks: tuple[FallbackGroup, ...] = ()
    problem: str | None = None
    eight_bits: dict[str, str] | None = None
    """Of mixed precision, which layers of which role have 8 bits; None without sensitivities."""
    predicted_kl: float | None = None


@dataclass(frozen=True)
class Plan:
    """What every target will take."""

    checkpoint: str
    architecture: str
    parameters: int
    context_length: int
    memory: int | None
    """`--ram`, or else what this process may use; None when that is unknown."""
    targets: tuple[PlannedTarget, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def render(self, console: Console) -> None:
        from rich.table import Table

        console.print(
            f"{self.checkpoint}: {self.architecture}, {self.parameters / 1e6:.1f} M parameters, "
            f"context {self.context_length}"
        )
        table = Table(box=None, pad_edge=False)
        fits = "fits" if self.memory is None else f"fits {self.memory / 1e6:,.0f} MB"
        for title in ("target", "file MB", "bits/weight", "KV cache MB", "peak MB", fits):
            table.add_column(title, justify="left" if title == "target" else "right")
        for target in self.targets:
            table.add_row(
                target.target,
                _megabytes(target.file_bytes),
                "-" if target.bits_per_weight is None else f"{target.bits_per_weight:.2f}",
                _megabytes(target.kv_cache_bytes),
                _megabytes(target.peak_memory),
                "impossible" if target.problem else "yes" if target.fits else "no",
            )
        console.print(table)
        for target in self.targets:
            for line in _remarks(target):
                console.print(line)


def plan(
    checkpoint: Annotated[str, "A Hugging Face directory, a PEFT adapter, a .gguf file, or a hub id"],
    *,
    to: Annotated[list[str] | None, "A target such as gguf:q4_0; may be repeated; by default all"] = None,
    context: Annotated[int | None, "Most tokens of prompt and answer; by default 2048 or the model's"] = None,
    ram: Annotated[str | None, "Memory of the device, e.g. 256MB; by default this process's"] = None,
    size: Annotated[list[str] | None, "Budget of gguf:auto and onnx:auto; may be repeated"] = None,
    sensitivity: Annotated[
        Path | None, "NAME-sensitivity.json that an export wrote: shows what would be chosen"
    ] = None,
    kl: list[float] | None = None,
    kv_bits: Annotated[
        int | None, "Bits of keys and values in the cache: 8, or 4 for GGUF; by default floats"
    ] = None,
) -> Plan:
    """Predict file size, KV cache, peak memory and fallbacks of every target, without loading weights.

    Peak memory is of a fresh process with this runtime that fills the context; see
    `edge_distill_runtime.engines.memory` for the formula.
    """
    targets = parse_targets(to, parse_budgets(size or (), kl or ())) if to else tuple(TARGETS.values())
    memory = memory_limit() if ram is None else parse_size(ram)
    source = _read(checkpoint, context)
    check_kv_bits(kv_bits, source, targets)
    choices = planned_choices(source, targets, sensitivity)
    model = source.checkpoint.model
    parameters = sum(weight.numel() for weight in model.parameters())
    tokenizer = source.checkpoint.tokenizer.backend_tokenizer
    tokenizer_bytes = len(tokenizer.to_str(pretty=True).encode())  # as tokenizer.json will be written
    return Plan(
        checkpoint=source.checkpoint.name,
        architecture=model.config.model_type,
        parameters=parameters,
        context_length=source.context_length,
        memory=memory,
        targets=tuple(
            _plan(source, target, parameters, tokenizer_bytes, memory, choices.get(target), kv_bits)
            for target in targets
        ),
    )


def _read(reference: str, context: int | None) -> Source:
    """The checkpoint with a model of shapes instead of weights; raises `InputError` as an export would."""
    try:
        config, path = read_config(reference)
        family_of(config)
        tokenizer = _tokenizer(path)
        model = _shapes(config, path)
    except EdgeDistillError:
        raise
    except Exception as exc:
        # Foreign errors are translated here, once: transformers and tokenizers raise many kinds.
        reason = str(exc).strip().split("\n")[0][:300] or type(exc).__name__
        raise InputError(
            "unreadable-checkpoint", f"{reference} cannot be read: {reason}", "check the files"
        ) from exc
    own = Path(reference).expanduser()
    place = own if own.exists() else path
    name = place.stem if place.is_file() else place.resolve().name
    return prepare(Checkpoint(model, tokenizer, name, {}), context)


def _tokenizer(path: Path) -> PreTrainedTokenizerFast:
    if path.is_file():
        from edge_distill_export.gguf_vocab import tokenizer_from_gguf

        return tokenizer_from_gguf(path)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, trust_remote_code=False)


def _shapes(config: PretrainedConfig, path: Path) -> PreTrainedModel:
    """The model on torch's meta device, where tensors have shapes only; but its rotary frequencies are real."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    if (path / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(path)
    return model


def _plan(
    source: Source,
    target: Target,
    parameters: int,
    tokenizer_bytes: int,
    memory: int | None,
    choice: PlannedChoice | None,
    kv_bits: int | None,
) -> PlannedTarget:
    layout = cache_layout(source, target, kv_bits)
    precision = choose_precision(target.format, layout, gguf_precision(target, kv_bits))
    token = token_bytes(layout, precision)
    cache = token * source.context_length
    tensors = len(list(source.checkpoint.model.parameters()))
    try:
        size = model_size(source, target, choice.high if choice else ())
        if choice and choice.problem:
            raise InputError("budget-too-small", choice.problem, "give a larger --size")
    except InputError as exc:
        return PlannedTarget(str(target), None, None, cache, None, False, tensors, problem=str(exc))
    peak = size.copied_bytes + needed_memory(
        target.format,
        model_bytes=size.file_bytes,
        cache_bytes=cache_bytes(target.format, token, source.context_length),
        tokenizer_bytes=tokenizer_bytes,
        vocab_size=source.checkpoint.model.get_input_embeddings().weight.shape[0],
    )
    return PlannedTarget(
        target=str(target),
        file_bytes=size.file_bytes,
        bits_per_weight=8 * size.data_bytes / parameters,
        kv_cache_bytes=cache,
        peak_memory=peak,
        fits=memory is None or peak <= memory,
        tensors=tensors,
        fallbacks=_grouped(size.fallbacks),
        eight_bits=choice.eight_bits if choice else None,
        predicted_kl=choice.predicted_kl if choice else None,
    )


def _grouped(fallbacks: tuple[Fallback, ...]) -> tuple[FallbackGroup, ...]:
    groups: dict[tuple[str, str, int], list[str]] = defaultdict(list)
    for fallback in fallbacks:
        groups[fallback.wanted, fallback.used, fallback.columns].append(fallback.name)
    return tuple(FallbackGroup(*key, tuple(names)) for key, names in groups.items())


def _remarks(target: PlannedTarget) -> list[str]:
    """Lines below the table: why a target is impossible, or what falls back in it."""
    if target.problem:
        return [f"{target.target} is impossible: {target.problem}"]
    if target.eight_bits is not None:
        return [
            f"{target.target}: 8 bits for {high_text({'eight_bits': target.eight_bits})}; "
            f"predicted mean KL {target.predicted_kl:.4f}"
        ]
    if not target.fallbacks:
        return []
    count = sum(len(group.tensors) for group in target.fallbacks)
    used = "/".join(sorted({group.used for group in target.fallbacks}))
    columns = " or ".join(str(columns) for columns in sorted({group.columns for group in target.fallbacks}))
    return [
        f"{target.target}: {count} of {target.tensors} tensors fall back to {used} "
        f"because their rows of {columns} are not divisible by 256"
    ]


def _megabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:,.1f}"


__all__ = ["FallbackGroup", "Plan", "PlannedTarget", "parse_size", "plan"]
