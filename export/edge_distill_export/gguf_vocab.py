"""A Hugging Face tokenizer as GGUF metadata, proven by libllama to give the same tokens.

llama.cpp knows pre-tokenizers by name only, so the name is found by measurement: the likely ones are tried in
turn, until libllama gives the tokenizer's own ids on hostile strings.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_distill_export.gguf_tokenizer import tokenizer_from_gguf
from edge_distill_export.gguf_tokens import Mismatch, compare_tokenizers, tokenizer_json
from edge_distill_runtime.errors import InputError

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerFast

__all__ = [
    "Mismatch",
    "Vocabulary",
    "choose_vocabulary",
    "compare_tokenizers",
    "read_vocabulary",
    "tokenizer_from_gguf",
]

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE = "▁"
_PHI3_NAME = re.compile("phi-?3", re.IGNORECASE)
_PHI3_TOKENS = {"<unk>", "<s>", "</s>", "<|endoftext|>"}

# Names whose regular expressions differ, the frequent ones first; llama.cpp's others are aliases of these.
_PRE_TOKENIZERS = (
    "gpt-2",
    "smollm",
    "llama-bpe",
    "dbrx",
    "qwen2",
    "qwen35",
    "tekken",
    "gpt-4o",
    "deepseek-v3",
    "deepseek-llm",
    "deepseek-coder",
    "default",
    "falcon",
    "refact",
    "starcoder",
    "stablelm2",
    "viking",
    "bloom",
    "superbpe",
    "bailingmoe",
    "seed-coder",
)


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says about tokens; `tokens`, `types`, `scores` have an entry per embedding row."""

    model: str
    """"gpt2" (byte-level BPE) or "llama" (BPE over "▁" with byte fallback)."""
    tokens: list[str]
    types: list[int]
    """gguf.TokenType of each token."""
    scores: list[float]
    """Of "llama": minus the rank of the first merge that makes the token; empty for "gpt2"."""
    merges: list[str]
    """Of "gpt2": "left right", in the order of rank; empty for "llama"."""
    pre: str
    add_space_prefix: bool
    special_ids: dict[str, int]
    """Ids of "bos", "eos", "unk" and "pad", where the tokenizer has them."""
    add_bos: bool
    add_eos: bool
    chat_template: str | None
    model_name: str
    """`general.name`, from which libllama derives one behaviour of tokens."""

    def add_to(self, writer: GGUFWriter) -> None:
        """Write the name and all `tokenizer.*` keys."""
        writer.add_name(self.model_name)
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores:
            writer.add_token_scores(self.scores)
        if self.model == "gpt2":
            writer.add_token_merges(self.merges)
        for name, token_id in self.special_ids.items():
            getattr(writer, f"add_{name}_token_id")(token_id)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        writer.add_add_space_prefix(self.add_space_prefix)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def choose_vocabulary(
    tokenizer: PreTrainedTokenizerFast, rows: int, name: str, architecture: str
) -> Vocabulary:
    """The vocabulary with which libllama tokenizes as `tokenizer` does, for an embedding of `rows` rows.

    Raises `InputError` "tokenizer-mismatch" with the first string that differs, when no candidate agrees.
    """
    vocabulary = read_vocabulary(tokenizer, rows, name)
    first_mismatch: Mismatch | None = None
    with tempfile.TemporaryDirectory(prefix="edge-distill-") as directory:
        for candidate in _candidates(vocabulary, tokenizer_json(tokenizer)):
            path = Path(directory) / "vocabulary.gguf"
            write_vocabulary(candidate, path, architecture)
            mismatches = compare_tokenizers(tokenizer, path)
            if not mismatches:
                return candidate
            first_mismatch = first_mismatch or mismatches[0]
    assert first_mismatch is not None
    raise InputError(
        "tokenizer-mismatch",
        f"no pre-tokenizer of llama.cpp splits text as this tokenizer does: {first_mismatch.text!r} becomes "
        f"{first_mismatch.found}, which should be {first_mismatch.expected}",
        "export to an onnx target instead",
    )


def write_vocabulary(vocabulary: Vocabulary, path: Path, architecture: str) -> None:
    """Write a GGUF file without tensors, which libllama opens for its vocabulary alone."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, architecture)
    vocabulary.add_to(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def read_vocabulary(tokenizer: PreTrainedTokenizerFast, rows: int, name: str) -> Vocabulary:
    """The likeliest vocabulary of `tokenizer`, padded with unused tokens to `rows`.

    Raises `InputError` for a vocabulary larger than the embedding and for kinds unknown to llama.cpp.
    """
    document = tokenizer_json(tokenizer)
    model = _model_kind(document)
    tokens, types = _tokens(tokenizer, document, model, rows)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in document["model"]["merges"]]
    template = tokenizer.chat_template
    bos, add_bos, add_eos = _added_around(tokenizer)
    special_ids = {"bos": bos, "eos": tokenizer.eos_token_id, "unk": tokenizer.unk_token_id}
    special_ids["pad"] = tokenizer.pad_token_id
    return Vocabulary(
        model=model,
        tokens=tokens,
        types=types,
        scores=_scores(tokens, document["model"]["merges"]) if model == "llama" else [],
        merges=merges if model == "gpt2" else [],
        pre="default",
        add_space_prefix=model == "llama" and _prefixes_space(document),
        special_ids={key: token_id for key, token_id in special_ids.items() if token_id is not None},
        add_bos=add_bos,
        add_eos=add_eos,
        chat_template=template.get("default") if isinstance(template, dict) else template,
        model_name=_model_name(name, document),
    )


def _model_kind(document: dict[str, Any]) -> str:
    model = document["model"]
    if model["type"] == "BPE" and any(
        step["type"] == "ByteLevel" for step in _steps(document["pre_tokenizer"])
    ):
        return "gpt2"
    if model["type"] == "BPE" and model.get("byte_fallback"):
        missing = {f"<0x{byte:02X}>" for byte in range(256)} - model["vocab"].keys()
        if not missing:
            return "llama"
        raise InputError(
            "unsupported-tokenizer",
            f"the tokenizer falls back to bytes but has no token {min(missing)}",
            "export to an onnx target instead",
        )
    raise InputError(
        "unsupported-tokenizer",
        f"a {model['type']} tokenizer without byte-level or byte-fallback tokens cannot be written as GGUF",
        "export to an onnx target instead",
    )


def _steps(node: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, sequences flattened."""
    if node is None:
        return
    if node["type"] != "Sequence":
        yield node
    for child in node.get("pretokenizers") or node.get("normalizers") or ():
        yield from _steps(child)


def _tokens(
    tokenizer: PreTrainedTokenizerFast, document: dict[str, Any], model: str, rows: int
) -> tuple[list[str], list[int]]:
    from gguf import TokenType

    vocabulary = tokenizer.get_vocab()
    largest = max(vocabulary.values())
    if largest >= rows:
        raise InputError(
            "vocabulary-too-large",
            f"the tokenizer has token id {largest}, but the embedding has only {rows} rows",
            "resize the embedding (model.resize_token_embeddings) and train the new rows",
        )
    tokens = [f"[PAD{index}]" for index in range(rows)]
    types = [int(TokenType.UNUSED)] * rows
    for token, index in vocabulary.items():
        tokens[index] = token
        is_byte = model == "llama" and _BYTE.fullmatch(token)
        types[index] = int(TokenType.BYTE if is_byte else TokenType.NORMAL)
    for added in document["added_tokens"]:
        index, token = added["id"], added["content"]
        spaced = token.replace(_SPACE, " ")
        # Gemma's runs of spaces are stored as "▁▁" and match "  ".
        if not added["special"] and spaced != token and _encode(tokenizer, spaced) == [index]:
            token = spaced
        tokens[index] = token
        types[index] = int(TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED)
    if model == "llama" and tokenizer.unk_token_id is not None:
        types[tokenizer.unk_token_id] = int(TokenType.UNKNOWN)
    if len(set(tokens)) != rows:  # libllama aborts the process on a duplicate
        duplicate = next(token for index, token in enumerate(tokens) if token in tokens[:index])
        raise InputError("duplicate-token", f"the token {duplicate!r} stands twice in the vocabulary")
    return tokens, types


def _encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def _scores(tokens: list[str], merges: list[Any]) -> list[float]:
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    last = float(len(merges))
    return [-float(ranks.get(token, last)) for token in tokens]


def _prefixes_space(document: dict[str, Any]) -> bool:
    prepends = any(step["type"] == "Prepend" for step in _steps(document["normalizer"]))
    schemes = [s["prepend_scheme"] for s in _steps(document["pre_tokenizer"]) if s["type"] == "Metaspace"]
    return prepends or "always" in schemes


def _added_around(tokenizer: PreTrainedTokenizerFast) -> tuple[int | None, bool, bool]:
    """The beginning-of-sequence id, whether the tokenizer adds it, and whether it adds the end's."""
    bare, full = _encode(tokenizer, "a"), tokenizer.encode("a")
    start = next(i for i in range(len(full) + 1) if full[i : i + len(bare)] == bare)
    before, after = full[:start], full[start + len(bare) :]
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if len(before) > 1 or after not in ([], eos):
        raise InputError(
            "unsupported-tokenizer",
            f"the tokenizer adds {before} before and {after} after a text; GGUF knows one token before it "
            f"and the end token {eos} after it",
            "export to an onnx target instead",
        )
    return (before[0] if before else tokenizer.bos_token_id), bool(before), bool(after)


def _model_name(name: str, document: dict[str, Any]) -> str:
    """`name`, made to contain "phi-3" exactly when the tokenizer is Phi-3's.

    Under that name libllama lets chat tokens swallow the space on their right, and looks up four tokens.
    """
    added = document["added_tokens"]
    strips = any(token["rstrip"] and token["special"] for token in added)
    if strips and {token["content"] for token in added} >= _PHI3_TOKENS:
        return name if _PHI3_NAME.search(name) else f"{name} (phi-3 tokens)"
    return _PHI3_NAME.sub("phi 3", name)


def _candidates(vocabulary: Vocabulary, document: dict[str, Any]) -> Iterator[Vocabulary]:
    if vocabulary.model == "llama":
        yield vocabulary
        yield replace(vocabulary, add_space_prefix=not vocabulary.add_space_prefix)
        return
    for pre in dict.fromkeys([*_likely_names(document), *_PRE_TOKENIZERS]):
        yield replace(vocabulary, pre=pre)


def _likely_names(document: dict[str, Any]) -> list[str]:
    """Names of llama.cpp that fit the steps of the pre-tokenizer."""
    text = json.dumps(document["pre_tokenizer"])
    if any(step["type"] == "Digits" for step in _steps(document["pre_tokenizer"])):
        return ["smollm"]
    if r"\\p{N}{1,3}" in text:
        return ["gpt-4o"] if r"\\p{Lu}" in text else ["llama-bpe", "dbrx"]
    if r"\\p{Lu}" in text:
        return ["tekken"]
    return ["qwen2"] if r"\\p{N}" in text else ["gpt-2"]
