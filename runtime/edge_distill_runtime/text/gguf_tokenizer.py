"""The `tokenizers.Tokenizer` of a GGUF file, and the proof that it splits text as libllama does.

libllama itself is not asked for every prompt: its pre-tokenizers in std::regex overflow the stack on a run of some
ten thousand characters (SIGSEGV), and byte tokens and special tokens cost it quadratic time (1 MB: 20 to 110 s).
"""

from __future__ import annotations

import ctypes
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_distill_runtime.errors import BackendError, BundleError, EdgeDistillError, InputError, MissingExtra
from edge_distill_runtime.text.child import ChildFailed, ask_child
from edge_distill_runtime.text.detokenizer import Detokenizer, encode
from edge_distill_runtime.text.hostile_strings import HOSTILE_STRINGS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["adds_bos", "answer", "build_tokenizer", "gguf_detokenizer", "prove_tokenizer", "token_texts"]

_HINT = "export the checkpoint that the file was made from, with edge-distill export"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5  # gguf.TokenType
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# llama.cpp's names of the pre-tokenizers of the supported families, by kind.
_PLAIN = ("gpt-2", "phi-2", "olmo", "jais", "mpt")
_DIGITS = ("smollm", "refact", "starcoder", "command-r", "codeshell")
_SINGLE_DIGITS = ("qwen2", "deepseek-r1-qwen")
_THREE_DIGITS = ("llama-bpe", "llama3", "llama-v3", "smaug-bpe", "dbrx")
# Llama 3: libllama takes a whole piece that is a token before it merges, and adds BOS unless told otherwise.
_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
_NFC = ("qwen2",)  # Qwen's own tokenizer normalizes; llama.cpp does not
_NOT_STRIPPING = ("<unk>", "<s>", "<|endoftext|>")
_PROOF_SECONDS = 30.0
_MOST_ADDED = 1 << 16  # libllama searches a text for one after the other
_MOST_ADDED_PROVEN = 32
# Tokens that libllama takes for special by their text, whatever their type (llama-vocab.cpp, special_eog_ids).
_TAKEN_FOR_SPECIAL = (
    *("</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end|>", "<|call|>", "<|calls|>", "<|return|>"),
    *("<|flush|>", "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<end_of_turn>", "<|endoftext|>", "<turn|>"),
    *("<|end_of_text|>", "<end_of_utterance>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~["),
)


def token_texts(metadata: dict[str, Any]) -> list[tuple[str, int]]:
    """Text and gguf.TokenType of every token."""
    texts = metadata["tokenizer.ggml.tokens"]
    types = metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(texts)
    return list(zip(texts, types, strict=True))


def adds_bos(metadata: dict[str, Any]) -> bool:
    """Whether raw text begins with the beginning-of-sequence token."""
    default = metadata["tokenizer.ggml.model"] == "llama" or _pre_name(metadata) in _LLAMA3
    return bool(metadata.get("tokenizer.ggml.add_bos_token", default))


def build_tokenizer(metadata: dict[str, Any]) -> Tokenizer:
    """The tokenizer of metadata that have passed `check_gguf`; it adds nothing around a text.

    Raises `InputError` for a kind or pre-tokenizer that is not known.
    """
    added = [text for text, kind in token_texts(metadata) if kind in (UNKNOWN, CONTROL, USER_DEFINED)]
    if len(added) > _MOST_ADDED:
        raise InputError(
            "unsupported-tokenizer", f"{len(added)} tokens are special, the limit is {_MOST_ADDED}", _HINT
        )
    model = metadata["tokenizer.ggml.model"]
    try:
        tokenizer = _byte_level(metadata) if model == "gpt2" else _byte_fallback(metadata)
        _add_tokens(tokenizer, metadata)
    except (InputError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as exc:  # a panic in the Rust library is no Exception
        raise BundleError("bad-tokenizer", f"the file's vocabulary is no tokenizer: {exc}", _HINT) from exc
    return tokenizer


def _add_tokens(tokenizer: Tokenizer, metadata: dict[str, Any]) -> None:
    """Tokens that are never split; all at once, as every call goes through all that are there."""
    from tokenizers import AddedToken

    phi3 = re.search("phi-?3", str(metadata.get("general.name", "")), re.IGNORECASE) is not None
    added: dict[bool, list[AddedToken]] = {False: [], True: []}
    for text, kind in token_texts(metadata):
        if kind in (UNKNOWN, CONTROL, USER_DEFINED):
            special = kind != USER_DEFINED
            strips = phi3 and text not in _NOT_STRIPPING  # as libllama derives it from the name
            added[special].append(AddedToken(text, special=special, normalized=False, rstrip=strips))
    tokenizer.add_tokens(added[False])
    tokenizer.add_special_tokens(added[True])


def gguf_detokenizer(tokenizer: Tokenizer, metadata: dict[str, Any], keep: tuple[str, ...]) -> Detokenizer:
    """The way back from ids to text; special tokens have none, but for those in `keep`."""
    if metadata["tokenizer.ggml.model"] == "gpt2":
        return Detokenizer(tokenizer, {"decoder": {"type": "ByteLevel"}}, keep)
    scheme = "always" if _prefixes_space(metadata) else "never"
    return Detokenizer(tokenizer, {"decoder": {"type": "Metaspace", "prepend_scheme": scheme}}, keep)


def _byte_level(metadata: dict[str, Any]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    merges = metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list) or not all(type(merge) is str and " " in merge[1:] for merge in merges):
        raise InputError("unsupported-tokenizer", "the metadata hold no list of merges", _HINT)
    # behind the first character: libllama looks for the space there
    pairs = [(merge[:at], merge[at + 1 :]) for merge in merges for at in (merge.index(" ", 1),)]
    name = _pre_name(metadata)
    tokenizer = Tokenizer(models.BPE(_vocabulary(metadata), pairs, ignore_merges=name in _LLAMA3))
    if name in _NFC:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _pre_tokenizer(name)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _byte_fallback(metadata: dict[str, Any]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocabulary = _vocabulary(metadata)
    # libllama throws, and so kills the process, where it finds no token for a byte
    if missing := {f"<0x{byte:02X}>" for byte in range(256)} - vocabulary.keys():
        raise InputError("unsupported-tokenizer", f"the vocabulary has no token {min(missing)}", _HINT)
    scores = metadata.get("tokenizer.ggml.scores")
    if scores is None:
        raise InputError("unsupported-tokenizer", "the metadata lack the tokens' scores", _HINT)
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
    prefix = _prefixes_space(metadata)
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _vocabulary(metadata: dict[str, Any]) -> dict[str, int]:
    return {text: index for index, (text, kind) in enumerate(token_texts(metadata)) if kind != UNUSED}


def _prefixes_space(metadata: dict[str, Any]) -> bool:
    return bool(metadata.get("tokenizer.ggml.add_space_prefix", True))


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
    known = ", ".join((*_PLAIN, *_DIGITS, *_SINGLE_DIGITS, *_THREE_DIGITS))
    raise InputError(
        "unknown-pre-tokenizer",
        f"the GGUF file names the pre-tokenizer {name[:40]!r}, which is not known; known are {known}",
        _HINT,
    )


def prove_tokenizer(tokenizer: Tokenizer, metadata: dict[str, Any], path: Path, *, isolate: bool) -> None:
    """Compare with libllama on hostile strings; `InputError` names the first that comes out differently.

    With `isolate`, libllama reads the file in a process of its own.
    """
    texts = _proof_texts(metadata)
    if isolate:
        try:
            found = ask_child(
                __name__, {"path": str(path.absolute()), "texts": texts}, seconds=_PROOF_SECONDS
            )
        except ChildFailed as exc:
            raise BundleError(
                "bad-gguf",
                f"libllama did not survive the vocabulary of {path} ({exc.reason}, exit status {exc.status})",
                "do not use this file",
            ) from exc
        if isinstance(found, dict):
            kind = MissingExtra if found["code"] == "missing-gguf" else BackendError
            raise kind(found["code"], found["what"], found["hint"])
    else:
        found = _libllama_ids(path, texts)
    for text, theirs in zip(texts, found, strict=True):
        ours = encode(tokenizer, text)
        if ours != theirs:
            raise InputError(
                "tokenizer-mismatch",
                f"the tokenizer read from {path.name} splits {text!r} into {ours}, libllama into {theirs}",
                _HINT,
            )


def _proof_texts(metadata: dict[str, Any]) -> list[str]:
    """Hostile strings and added tokens between words, without what libllama is known to see differently."""
    tokens = token_texts(metadata)
    added = [text for text, kind in tokens if kind in (UNKNOWN, CONTROL, USER_DEFINED)]
    plain = {text for text, kind in tokens if kind == NORMAL}
    texts = [
        *HOSTILE_STRINGS,
        *(f"a {token} b{token}c{token}{token} d" for token in added[:_MOST_ADDED_PROVEN]),
    ]
    for token in _TAKEN_FOR_SPECIAL:
        if token in plain:  # as Qwen2's "</s>"
            texts = [text.replace(token, "") for text in texts]
    if _pre_name(metadata) in _NFC:
        texts = [unicodedata.normalize("NFC", text) for text in texts]
    return texts


def answer(request: dict[str, Any]) -> list[list[int]] | dict[str, str]:
    """In a process of its own: libllama's ids, or what went wrong."""
    try:
        return _libllama_ids(Path(request["path"]), request["texts"])
    except EdgeDistillError as error:
        return {"code": error.code, "what": error.what, "hint": error.hint}


def _libllama_ids(path: Path, texts: list[str]) -> list[list[int]]:
    from edge_distill_runtime.engines.llama import library

    llama = library()
    parameters = llama.llama_model_default_params()
    parameters.vocab_only = True
    model = llama.llama_model_load_from_file(str(path).encode(), parameters)
    if not model:
        raise BackendError("load-failed", f"libllama cannot load the vocabulary of {path.name}", _HINT)
    try:
        vocabulary = llama.llama_model_get_vocab(model)
        results = []
        for text in texts:
            data = text.encode()
            room = len(data) + 8
            ids = (ctypes.c_int32 * room)()
            count = llama.llama_tokenize(vocabulary, data, len(data), ids, room, False, True)
            results.append(list(ids[: max(0, count)]))
        return results
    finally:
        llama.llama_model_free(model)
