"""The Hugging Face tokenizer of a GGUF file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_distill_export.gguf_tokens import compare_tokenizers
from edge_distill_runtime.errors import InputError
from edge_distill_runtime.gguf_header import read_gguf_header

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

_HINT = "export the Hugging Face checkpoint that the file was made from"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5  # gguf.TokenType
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# llama.cpp's names of the pre-tokenizers of the supported families, by kind.
_DIGITS = ("smollm", "refact", "starcoder", "command-r", "codeshell")
_SINGLE_DIGITS = ("qwen2", "deepseek-r1-qwen")
_THREE_DIGITS = ("llama-bpe", "llama3", "llama-v3", "smaug-bpe", "dbrx")
# Llama 3: libllama takes a whole piece that is a token before it merges, and adds BOS unless told otherwise.
_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
_NOT_STRIPPING = ("<unk>", "<s>", "<|endoftext|>")
_ROLES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
_PLAIN = ("gpt-2", "phi-2", "olmo", "jais", "mpt")


def tokenizer_from_gguf(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in a GGUF file that has passed `check_gguf`, proven against libllama's.

    It is built here: transformers does not know the pre-tokenizer, which the file only names. Raises
    `InputError` for an unknown name or kind, and when the result splits hostile strings differently.
    """
    metadata = read_gguf_header(path).metadata
    model = metadata.get("tokenizer.ggml.model")
    if model == "gpt2":
        tokenizer = _byte_level(metadata)
    elif model == "llama":
        tokenizer = _byte_fallback(metadata)
    else:
        raise InputError(
            "unsupported-tokenizer", f"the tokenizer model {model!r} of {path.name} is not known", _HINT
        )
    wrapped = _wrap(tokenizer, metadata)
    mismatches = compare_tokenizers(wrapped, path)
    if mismatches:
        first = mismatches[0]
        raise InputError(
            "tokenizer-mismatch",
            f"the tokenizer read from {path.name} splits {first.text!r} into {first.expected}, libllama into "
            f"{first.found}",
            _HINT,
        )
    return wrapped


def _byte_level(metadata: dict[str, Any]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models

    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    name = _pre_name(metadata)
    tokenizer = Tokenizer(models.BPE(_vocabulary(metadata), merges, ignore_merges=name in _LLAMA3))
    tokenizer.pre_tokenizer = _pre_tokenizer(name)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _byte_fallback(metadata: dict[str, Any]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocabulary = _vocabulary(metadata)
    scores = metadata["tokenizer.ggml.scores"]
    # libllama merges any two neighbours whose concatenation is a token, the highest score first.
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted(vocabulary, key=lambda piece: -scores[vocabulary[piece]])
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    unknown = metadata["tokenizer.ggml.tokens"][metadata.get("tokenizer.ggml.unknown_token_id", 0)]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _vocabulary(metadata: dict[str, Any]) -> dict[str, int]:
    return {text: index for index, (text, kind) in enumerate(_tokens(metadata)) if kind != _UNUSED}


def _tokens(metadata: dict[str, Any]) -> list[tuple[str, int]]:
    """Text and gguf.TokenType of every token."""
    texts = metadata["tokenizer.ggml.tokens"]
    types = metadata.get("tokenizer.ggml.token_type") or [_NORMAL] * len(texts)
    return list(zip(texts, types, strict=True))


def _wrap(tokenizer: Tokenizer, metadata: dict[str, Any]) -> PreTrainedTokenizerFast:
    """Add the special tokens, their roles, what is added around a text, and the chat template."""
    from tokenizers import AddedToken, processors
    from transformers import PreTrainedTokenizerFast

    tokens = _tokens(metadata)
    phi3 = re.search("phi-?3", str(metadata.get("general.name", "")), re.IGNORECASE) is not None
    for text, kind in tokens:
        strips = phi3 and text not in _NOT_STRIPPING  # as libllama derives it from the name
        if kind == _USER_DEFINED:
            tokenizer.add_tokens([AddedToken(text, special=False, normalized=False, rstrip=strips)])
        elif kind in (_CONTROL, _UNKNOWN):
            tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False, rstrip=strips)])
    ids = {role: metadata.get(f"tokenizer.ggml.{role}_token_id") for role in _ROLES}
    special = {_ROLES[role]: tokens[index][0] for role, index in ids.items() if index is not None}
    adds_bos = metadata["tokenizer.ggml.model"] == "llama" or _pre_name(metadata) in _LLAMA3
    bos = f"{special['bos_token']} " if metadata.get("tokenizer.ggml.add_bos_token", adds_bos) else ""
    eos = f" {special['eos_token']}" if metadata.get("tokenizer.ggml.add_eos_token", False) else ""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos}$A{eos}",
        pair=f"{bos}$A{eos} {bos}$B{eos}",
        special_tokens=[
            (tokens[index][0], index) for role in ("bos", "eos") if (index := ids[role]) is not None
        ],
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special
    )
    wrapped.chat_template = metadata.get("tokenizer.chat_template")
    return wrapped


def _pre_name(metadata: dict[str, Any]) -> str:
    return str(metadata.get("tokenizer.ggml.pre", "default"))


def _pre_tokenizer(name: str) -> Any:
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    if name in _PLAIN:
        return ByteLevel(add_prefix_space=False)
    if name in _DIGITS:
        return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    if name in _SINGLE_DIGITS + _THREE_DIGITS:
        digits = r"\p{N}" if name in _SINGLE_DIGITS else r"\p{N}{1,3}"
        split = Split(Regex(f"{_CONTRACTIONS}|{_WORDS}|{digits}|{_REST}"), "isolated")
        return Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])
    raise InputError(
        "unknown-pre-tokenizer",
        f"the GGUF file names the pre-tokenizer {name!r}, which is not known",
        _HINT,
    )
