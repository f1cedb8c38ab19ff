"""The files of one bundle: the model in its format, the tokenizer, and what describes them to people and programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_distill_export.bundle import staged
from edge_distill_export.calibration import Style
from edge_distill_export.chat_template import chat_segments, reasoning_markers
from edge_distill_export.families import head_dim
from edge_distill_export.grid import QuantizedTensor
from edge_distill_export.targets import Target
from edge_distill_runtime.bundles.manifest import (
    KVLayout,
    Manifest,
    Precision,
    ReasoningLengths,
    SamplingDefaults,
)
from edge_distill_runtime.engines.machine import usable_cpus
from edge_distill_runtime.errors import InputError, ParityError
from edge_distill_runtime.text.chat import ChatSegments
from edge_distill_runtime.text.detokenizer import encode, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from edge_distill_export.checkpoint import Checkpoint

# MatMulNBits multiplies with activations rounded to int8 in blocks of 32, as ggml does; 0 would keep float32.
ACCURACY_LEVEL = 4


@dataclass(frozen=True)
class Source:
    """A checkpoint with what every bundle made from it shares."""

    checkpoint: Checkpoint
    style: Style
    stop_ids: tuple[int, ...]
    bos_id: int | None
    context_length: int


@dataclass(frozen=True)
class FloatSource:
    """What libllama makes K-quants from."""

    path: Path
    """The checkpoint as an f16 GGUF file."""
    importance: Mapping[str, np.ndarray]
    """Mean squared input of every column, float32 [columns], by parameter name."""


def prepare(checkpoint: Checkpoint, context: int | None) -> Source:
    """Take the chat template apart and settle the context; raises `InputError` where that cannot be done."""
    longest = checkpoint.config.max_position_embeddings
    context = min(longest, 2048) if context is None else context
    if not 32 <= context <= longest:
        raise InputError(
            "bad-context",
            f"a context of {context} was asked for",
            f"{checkpoint.name} takes 32 to {longest} tokens",
        )
    style = style_of(checkpoint.tokenizer)
    bos = checkpoint.tokenizer.bos_token_id if style.start else None
    return Source(checkpoint, style, _stop_ids(checkpoint, style.chat), bos, context)


def style_of(tokenizer: PreTrainedTokenizerFast) -> Style:
    """How a student with this tokenizer writes; raises `InputError` for a chat template that cannot be taken apart."""
    bos = tokenizer.bos_token_id
    starts_with_bos = bos is not None and tokenizer("a")["input_ids"][:1] == [bos]
    return Style(
        chat_segments(tokenizer),
        reasoning_markers(tokenizer),
        start=tokenizer.bos_token if starts_with_bos else "",
        end=tokenizer.eos_token or "",
    )


def _stop_ids(checkpoint: Checkpoint, chat: ChatSegments | None) -> tuple[int, ...]:
    """What ends a generation: the checkpoint's and the tokenizer's end tokens, and the one that ends a turn."""
    tokenizer = checkpoint.tokenizer
    generation = getattr(checkpoint.model.generation_config, "eos_token_id", None)
    ids = [*(generation if isinstance(generation, list) else [generation]), tokenizer.eos_token_id]
    if chat:
        ids.append(tokenizer.get_added_vocab().get(chat.assistant[1].strip()))
    return tuple(dict.fromkeys(int(token) for token in ids if token is not None))


def write_model(
    source: Source,
    target: Target,
    directory: Path,
    quantized: Mapping[str, QuantizedTensor],
    floats: FloatSource | None = None,
) -> None:
    """Write the model file(s) and tokenizer.json of one target into `directory`; K-quants need `floats`."""
    checkpoint = source.checkpoint
    if target.format == "onnx":
        from edge_distill_export.onnx_graph import write_onnx

        write_onnx(
            checkpoint,
            directory,
            quantized=quantized,
            context_length=source.context_length,
            accuracy_level=ACCURACY_LEVEL,
        )
    elif floats is not None and target.k_quant:
        from edge_distill_export.kquants import quantize_gguf

        path, importance, threads = directory / "model.gguf", floats.importance, usable_cpus()
        quantize_gguf(floats.path, path, target.precision, importance=importance, threads=threads)  # type: ignore[arg-type]
    else:
        _write_gguf(source, directory / "model.gguf", quantized)
    checkpoint.tokenizer.backend_tokenizer.save(str(directory / "tokenizer.json"))


@contextmanager
def float_source(source: Source, importance: Mapping[str, np.ndarray], out: Path) -> Iterator[FloatSource]:
    """Write the f16 file of all K-quants beside the bundles in `out`; it is removed at the end."""
    with staged(out / f"{source.checkpoint.name}-floats") as directory:
        _write_gguf(source, directory / "model.gguf", {})
        yield FloatSource(directory / "model.gguf", importance)


def _write_gguf(source: Source, path: Path, quantized: Mapping[str, QuantizedTensor]) -> None:
    from edge_distill_export.gguf_writer import write_gguf

    context = source.context_length
    write_gguf(source.checkpoint, path, float_type="f16", quantized=quantized, context_length=context)


def make_manifest(
    source: Source,
    target: Target,
    directory: Path,
    method: str,
    lineage: dict[str, Any],
    reasoning_lengths: ReasoningLengths | None = None,
) -> Manifest:
    """The manifest of the files in `directory`, as yet without their hashes and without verification."""
    checkpoint = source.checkpoint
    parameters = sum(weight.numel() for weight in checkpoint.model.parameters())
    data_bytes, types = tensor_summary(directory)
    packages = ("llama-cpp-python",) if target.format == "gguf" else ("onnxruntime",)
    return Manifest(
        name=f"{checkpoint.name}-{target.folder}",
        format=target.format,
        precision=Precision(target.precision, method, 8 * data_bytes / parameters, types),  # type: ignore[arg-type]
        architecture=checkpoint.config.model_type,
        parameter_count=parameters,
        vocab_size=checkpoint.model.get_input_embeddings().weight.shape[0],
        context_length=source.context_length,
        kv=kv_layout(source, target),
        stop_ids=source.stop_ids,
        bos_id=source.bos_id,
        chat=source.style.chat,
        reasoning=source.style.markers,
        reasoning_lengths=reasoning_lengths if source.style.markers else None,
        sampling=_sampling(checkpoint),
        files=(),
        lineage=lineage,
        runtime={name: f">={version(name)}" for name in ("edge-distill-runtime", *packages)},
    )


def kv_layout(source: Source, target: Target) -> KVLayout:
    """float16 in libllama, float32 in the ONNX graph."""
    config = source.checkpoint.config
    value = 2 if target.format == "gguf" else 4
    return KVLayout(config.num_hidden_layers, config.num_key_value_heads, head_dim(config), value)


def tensor_summary(directory: Path) -> tuple[int, dict[str, int]]:
    """Bytes of tensor data in a bundle's model, and how many tensors have which type."""
    if (directory / "model.gguf").exists():
        from edge_distill_runtime.bundles.gguf_header import read_gguf_header

        header = read_gguf_header(directory / "model.gguf")
        return sum(tensor.size for tensor in header.tensors), header.tensor_types
    from edge_distill_export.onnx_inspect import read_initializers

    tensors = read_initializers(directory / "model.onnx")
    types: dict[str, int] = {}
    for tensor in tensors:
        types[tensor.type_name] = types.get(tensor.type_name, 0) + 1
    return sum(tensor.size for tensor in tensors), types


def _sampling(checkpoint: Checkpoint) -> SamplingDefaults:
    """The checkpoint's own recommendation; greedy where it gives none."""
    generation = checkpoint.model.generation_config
    if not getattr(generation, "do_sample", False):
        return SamplingDefaults()
    return SamplingDefaults(
        temperature=float(generation.temperature if generation.temperature is not None else 1.0),
        top_k=int(generation.top_k or 0),
        top_p=float(generation.top_p or 1.0),
        min_p=float(generation.min_p or 0.0),
    )


def check_tokenizer(source: Source, directory: Path) -> int:
    """Compare the bundle's tokenizers with the checkpoint's on hostile strings; the number of strings compared.

    Raises `ParityError` with the first string that comes out differently.
    """
    from edge_distill_export.gguf_vocab import compare_tokenizers
    from edge_distill_runtime.text.hostile_strings import HOSTILE_STRINGS

    tokenizer = source.checkpoint.tokenizer
    stored, _ = load_tokenizer(directory / "tokenizer.json")
    for text in HOSTILE_STRINGS:
        expected = tokenizer.encode(text, add_special_tokens=False)
        if encode(stored, text) != expected:
            raise ParityError(
                "tokenizer", f"tokenizer.json splits {text!r} differently", "report this as a bug"
            )
    if (directory / "model.gguf").exists() and (
        bad := compare_tokenizers(tokenizer, directory / "model.gguf")
    ):
        raise ParityError("tokenizer", f"libllama splits {bad[0].text!r} differently", "report this as a bug")
    return len(HOSTILE_STRINGS)


def write_modelfile(source: Source, directory: Path) -> None:
    """The Modelfile with which `ollama create` takes a GGUF bundle."""
    lines = ["FROM ./model.gguf", f"PARAMETER num_ctx {source.context_length}"]
    tokenizer = source.checkpoint.tokenizer
    lines += [f"PARAMETER stop {json.dumps(tokenizer.convert_ids_to_tokens(i))}" for i in source.stop_ids]
    chat = source.style.chat
    if chat and '"""' not in "".join(chat.user + chat.assistant + (chat.default_system,)):
        before, after = chat.system or ("", "")
        system = f"{{{{ if .System }}}}{before}{{{{ .System }}}}{after}{{{{ else }}}}{chat.default_system}{{{{ end }}}}"
        user, assistant = chat.user, chat.assistant
        joined = chat.system_joins_user
        turn = (user[0] + system if joined else system + user[0]) + "{{ .Prompt }}" + user[1]
        # Ollama adds the beginning-of-sequence token by itself.
        reply = chat.generation_prompt + "{{ .Response }}" + assistant[1]
        lines.append(f'TEMPLATE """{turn}{reply}"""')
    (directory / "Modelfile").write_text("\n".join(lines) + "\n", encoding="utf-8")
