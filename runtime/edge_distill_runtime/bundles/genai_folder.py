"""A folder in onnxruntime-genai's form that others made: its settings from genai_config.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from edge_distill_runtime.bundles.files import (
    check_relative_path,
    list_files,
    open_regular,
    read_bounded,
    strict_json,
)
from edge_distill_runtime.bundles.found import (
    DEFAULT_CONTEXT,
    Found,
    Texts,
    chat_of,
    hash_files,
    plain_name,
    sampling_of,
)
from edge_distill_runtime.bundles.manifest import KVLayout, Manifest, Precision
from edge_distill_runtime.errors import BundleError
from edge_distill_runtime.text.chat import ReasoningMarkers
from edge_distill_runtime.text.chat_template import find_markers
from edge_distill_runtime.text.detokenizer import load_tokenizer

__all__ = ["CONFIG_NAME", "find_genai_folder"]

CONFIG_NAME = "genai_config.json"
_HINT = "take the folder's CPU variant, or export the checkpoint with edge-distill export"
_MOST_CONFIG = 1 << 20
_MOST_TOKENIZER = 1 << 26
_MODEL_KEYS = frozenset(
    {
        *("bos_token_id", "context_length", "decoder", "eos_token_id", "pad_token_id", "type", "vocab_size"),
        *("bor_token_id", "eor_token_id"),  # begin and end of reasoning
        *("bot_token_id", "eot_token_id"),  # of a tool call
    }
)
_DECODER_KEYS = frozenset(
    {
        *("filename", "head_size", "hidden_size", "inputs", "num_attention_heads", "num_hidden_layers"),
        *("num_key_value_heads", "outputs", "session_options"),
    }
)
# These change how fast the graph is computed, not what; ours are used. Above all no custom_ops_library.
_SESSION_KEYS = frozenset(
    {
        *("enable_cpu_mem_arena", "enable_mem_pattern", "enable_profiling", "graph_optimization_level"),
        *("inter_op_num_threads", "intra_op_num_threads", "log_id", "log_severity_level"),
        *("log_verbosity_level", "provider_options", "session.use_device_allocator_for_initializers"),
    }
)
_PROVIDERS = frozenset({"cpu", "cpuexecutionprovider"})
_NAMES = {
    "inputs": {
        "input_ids": "input_ids",
        "attention_mask": "attention_mask",
        "position_ids": "position_ids",
        "past_key_names": "past_key_values.%d.key",
        "past_value_names": "past_key_values.%d.value",
    },
    "outputs": {
        "logits": "logits",
        "present_key_names": "present.%d.key",
        "present_value_names": "present.%d.value",
    },
}
_SPECIAL_TOKEN = re.compile(r"(bos|eos|unk|sep|pad|cls|mask)_token")


def find_genai_folder(folder: Path) -> Found:
    """The model in an onnxruntime-genai folder: genai_config.json, the graph, its data and tokenizer.json.

    No file may be a link, none may lie outside. Raises `BundleError` for settings that this runtime would
    not follow, such as other providers, custom operators or several graphs.
    """
    model, search = _read_config(folder / CONFIG_NAME)
    decoder = _object(model, "decoder")
    vocab_size = _integer(model, "vocab_size", 1, 1 << 24)
    longest = _integer(model, "context_length", 1, 1 << 24)
    file_name = _text(decoder, "filename")
    files = _regular_files(folder, check_relative_path(file_name))
    document = _read_json(folder / "tokenizer.json", _MOST_TOKENIZER)
    tokens = _objects(document.get("added_tokens"))
    added = {str(token.get("content")): token["id"] for token in tokens if type(token.get("id")) is int}
    template, special_tokens = _read_template(folder, files)
    name = plain_name(folder.resolve().name, "model")
    chat, notes = chat_of(template, special_tokens, name)
    sampling, sampling_notes = sampling_of(search if search.get("do_sample") is True else {})
    stops = [*_ids(model, "eos_token_id", vocab_size), added.get(chat.assistant[1].strip()) if chat else None]
    markers = _markers(model, vocab_size, added) or find_markers(
        template if isinstance(template, str) else "", added
    )
    layers, kv_heads, head_dim = (
        _integer(decoder, key, 1, 1 << 16)
        for key in ("num_hidden_layers", "num_key_value_heads", "head_size")
    )
    bos = next(iter(_ids(model, "bos_token_id", vocab_size)), None)
    tokenizer, detokenizer = load_tokenizer(
        folder / "tokenizer.json", (markers.open, markers.close) if markers else ()
    )
    manifest = Manifest(
        name=name,
        format="onnx",
        precision=Precision("onnx", "unknown", 0.0, {}),  # not written in the configuration
        architecture=plain_name(model.get("type"), "unknown"),
        parameter_count=0,
        vocab_size=vocab_size,
        context_length=longest,
        # float32 is the larger of the two; the graph says which it is when it is opened
        kv=KVLayout(layers, kv_heads, head_dim, bytes_per_value=4),
        stop_ids=tuple(dict.fromkeys(token for token in stops if type(token) is int and token < vocab_size)),
        bos_id=bos if _adds_bos(tokenizer, bos) else None,
        chat=chat,
        reasoning=markers,
        files=(),
        sampling=sampling,
    )
    return Found(
        manifest=manifest,
        model_path=folder / file_name,
        model_bytes=sum(size for path, size in files.items() if path.startswith(file_name)),
        tokenizer_bytes=files["tokenizer.json"],
        default_context=min(longest, DEFAULT_CONTEXT),
        notes=(*notes, *sampling_notes),
        # of all files: which ones hold weights only the graph knows
        read_texts=lambda: Texts(tokenizer, detokenizer, hash_files(folder, files)),
    )


def _markers(model: Mapping[str, Any], vocab_size: int, added: Mapping[str, Any]) -> ReasoningMarkers | None:
    """The texts of the tokens that the configuration names for the begin and end of reasoning."""
    ids = [*_ids(model, "bor_token_id", vocab_size), *_ids(model, "eor_token_id", vocab_size)]
    texts = {token: text for text, token in added.items()}
    found = [texts.get(token, "") for token in ids]
    return ReasoningMarkers(*found) if len(found) == 2 and all(found) else None


def _adds_bos(tokenizer: Any, bos: int | None) -> bool:
    try:
        return bool(tokenizer.encode("a").ids[:1] == [bos])
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as exc:  # a panic in the Rust library is no Exception
        raise BundleError("bad-tokenizer", f"tokenizer.json does not work: {exc}", _HINT) from exc


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The objects `model` and `search`, of which only known keys are let pass."""
    config = _read_json(path, _MOST_CONFIG)
    _only(config, {"model", "search"}, "")
    model, search = _object(config, "model"), _object(config, "search")
    _only(model, _MODEL_KEYS, "model.")
    decoder = _object(model, "decoder")
    _only(decoder, _DECODER_KEYS, "model.decoder.")
    session = _object(decoder, "session_options")
    _only(session, _SESSION_KEYS, "model.decoder.session_options.")
    for provider in _objects(session.get("provider_options", [])):
        if foreign := [key for key in provider if key.lower() not in _PROVIDERS]:
            _refuse(f"it asks for the provider {foreign[0][:40]!r}, this runtime computes on the CPU")
    for side, names in _NAMES.items():
        for key, value in _object(decoder, side).items():
            if names.get(key) != value:
                _refuse(
                    f"model.decoder.{side}.{key[:40]} is {str(value)[:60]!r}, expected {names.get(key)!r}"
                )
    return model, search


def _regular_files(folder: Path, model_file: str) -> dict[str, int]:
    """Sizes of all files by name; `BundleError` for a link, through which the graph could read elsewhere."""
    sizes = {}
    for name in list_files(folder):
        with open_regular(folder / name) as file:
            sizes[name] = file.seek(0, 2)
    for name in (model_file, "tokenizer.json"):
        if name not in sizes:
            raise BundleError("missing-file", f"{folder} lacks {name}", "copy the folder again")
    return sizes


def _read_template(folder: Path, files: Mapping[str, int]) -> tuple[Any, dict[str, str]]:
    """The Jinja template, None without one, and the special tokens that it may name."""
    config = {}
    if "tokenizer_config.json" in files:
        config = _read_json(folder / "tokenizer_config.json", _MOST_TOKENIZER)
    special: dict[str, str] = {}
    for key, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if _SPECIAL_TOKEN.fullmatch(key) and isinstance(text, str):
            special[key] = text
    if "chat_template.jinja" in files:
        data = read_bounded(folder / "chat_template.jinja", _MOST_CONFIG)
        return data.decode("utf-8", "replace"), special
    template = config.get("chat_template")
    if isinstance(template, list):  # several by name
        named = {str(item.get("name")): item.get("template") for item in _objects(template)}
        template = named.get("default")
    return template, special


def _read_json(path: Path, limit: int) -> dict[str, Any]:
    """An object of unique keys, or `BundleError`."""
    data = read_bounded(path, limit)
    try:
        value = strict_json(data)
        if not isinstance(value, dict):
            raise ValueError("it is no JSON object")
    except ValueError as exc:
        raise BundleError("bad-json", f"{path}: {exc}", "copy or download it again") from exc
    return value


def _only(values: Mapping[str, Any], known: set[str] | frozenset[str], where: str) -> None:
    if unknown := sorted(values.keys() - known):
        _refuse(f"it has the key {where}{unknown[0][:40]}, which this runtime would not follow")


def _object(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = values.get(key, {})
    if not isinstance(value, dict):
        _refuse(f"{key} is no object")
    return value


def _objects(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        _refuse("a list of objects was expected, and is none")
    return value


def _integer(values: Mapping[str, Any], key: str, low: int, high: int) -> int:
    value = values.get(key)
    if type(value) is not int or not low <= value <= high:
        _refuse(f"{key} is {str(value)[:40]}, it must be an integer in [{low}, {high}]")
    return value


def _text(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    if not isinstance(value, str):
        _refuse(f"{key} is {str(value)[:40]}, it must be a string")
    return value


def _ids(values: Mapping[str, Any], key: str, vocab_size: int) -> list[int]:
    """One token id or a list of them."""
    value = values.get(key, [])
    ids = value if isinstance(value, list) else [value]
    if bad := [token for token in ids if type(token) is not int or not 0 <= token < vocab_size]:
        _refuse(f"{key} holds {str(bad[0])[:40]}, the vocabulary has {vocab_size} tokens")
    return ids


def _refuse(what: str) -> NoReturn:
    raise BundleError("bad-genai-config", f"{CONFIG_NAME}: {what}", _HINT)
