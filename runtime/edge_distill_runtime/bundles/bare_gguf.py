"""A GGUF file that others made: its settings from its metadata."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from edge_distill_runtime.bundles.found import (
    DEFAULT_CONTEXT,
    Found,
    Texts,
    chat_of,
    hash_files,
    plain_name,
    sampling_of,
)
from edge_distill_runtime.bundles.gguf_check import kv_layout, validate_gguf
from edge_distill_runtime.bundles.gguf_header import GGUFHeader
from edge_distill_runtime.bundles.manifest import Manifest, Precision
from edge_distill_runtime.text.chat import ChatSegments
from edge_distill_runtime.text.chat_template import find_markers
from edge_distill_runtime.text.gguf_tokenizer import (
    CONTROL,
    USER_DEFINED,
    adds_bos,
    build_tokenizer,
    gguf_detokenizer,
    prove_tokenizer,
    token_texts,
)

__all__ = ["find_gguf"]

# Tokens that end a turn by their text, in files that name none or another one.
_END_TOKENS = (
    *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>"),
    *("<|end_of_text|>", "<｜end▁of▁sentence｜>", "<EOT>"),
)
_ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_SAMPLING = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}
_MODEL_TYPES = {"gemma3": "gemma3_text"}  # where Hugging Face's name differs


def find_gguf(path: Path, *, isolate: bool) -> Found:
    """The model in a .gguf file; with `isolate`, libllama sees it only in processes of its own.

    Raises `BundleError` for a file that `validate_gguf` does not let pass.
    """
    header = validate_gguf(path, allow_links=True)
    metadata = header.metadata
    name = plain_name(metadata.get("general.name"), path.stem)
    chat, notes = chat_of(metadata.get("tokenizer.chat_template"), _special_tokens(metadata), name)
    sampling, sampling_notes = sampling_of(
        {ours: metadata.get(f"general.sampling.{theirs}") for ours, theirs in _SAMPLING.items()}
    )
    longest = int(metadata[f"{header.architecture}.context_length"])
    added = [text for text, kind in token_texts(metadata) if kind in (CONTROL, USER_DEFINED)]
    manifest = Manifest(
        name=name,
        format="gguf",
        # how it was rounded is not written in the file
        precision=Precision(_main_type(header), "unknown", header.bits_per_weight, header.tensor_types),
        architecture=_MODEL_TYPES.get(header.architecture, header.architecture),
        parameter_count=header.parameter_count,
        vocab_size=len(metadata["tokenizer.ggml.tokens"]),
        context_length=longest,
        kv=kv_layout(header),
        stop_ids=_stop_ids(metadata, chat),
        bos_id=_bos_id(metadata),
        chat=chat,
        reasoning=find_markers(str(metadata.get("tokenizer.chat_template", "")), added),
        files=(),
        sampling=sampling,
    )

    def read_texts() -> Texts:
        tokenizer = build_tokenizer(metadata)
        prove_tokenizer(tokenizer, metadata, path, isolate=isolate)
        markers = manifest.reasoning
        keep = (markers.open, markers.close) if markers else ()
        digest = hash_files(path.parent, [path.name], allow_links=True)
        return Texts(tokenizer, gguf_detokenizer(tokenizer, metadata, keep), digest)

    return Found(
        manifest=manifest,
        model_path=path,
        model_bytes=header.file_size,
        # the header is mostly vocabulary, which takes about twice as much in a tokenizer.json
        tokenizer_bytes=2 * min(tensor.offset for tensor in header.tensors),
        default_context=min(longest, DEFAULT_CONTEXT),
        notes=(*notes, *sampling_notes),
        read_texts=read_texts,
    )


def _special_tokens(metadata: dict[str, Any]) -> dict[str, str]:
    """What a chat template may name, as transformers calls it."""
    tokens = metadata["tokenizer.ggml.tokens"]
    ids = {name: metadata.get(f"tokenizer.ggml.{role}_token_id") for name, role in _ROLES.items()}
    return {name: tokens[token] for name, token in ids.items() if token is not None}


def _bos_id(metadata: dict[str, Any]) -> int | None:
    if not adds_bos(metadata):
        return None
    default = 1 if metadata["tokenizer.ggml.model"] == "llama" else None  # libllama's
    token: int | None = metadata.get("tokenizer.ggml.bos_token_id", default)
    return token


def _stop_ids(metadata: dict[str, Any], chat: ChatSegments | None) -> tuple[int, ...]:
    """What the file names, what ends a turn in its template, and well-known end tokens."""
    ids = [metadata.get(f"tokenizer.ggml.{role}_token_id") for role in ("eos", "eot", "eom")]
    special = {
        text: index
        for index, (text, kind) in enumerate(token_texts(metadata))
        if kind in (CONTROL, USER_DEFINED)
    }
    if chat:
        ids.append(special.get(chat.assistant[1].strip()))
    ids += [special.get(text) for text in _END_TOKENS]
    return tuple(dict.fromkeys(token for token in ids if token is not None))


def _main_type(header: GGUFHeader) -> str:
    """The tensor type that holds most weights, e.g. `q4_0`."""
    weights: Counter[str] = Counter()
    for tensor in header.tensors:
        weights[tensor.type] += tensor.elements
    return weights.most_common(1)[0][0].lower()
