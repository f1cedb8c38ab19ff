"""Checks on a checkpoint directory before any library opens it: no pickle, no code, no path out, nothing cut off.

Transformers follows `../` in a shard index, reads pickles and asks about remote code; a model directory is untrusted
input, so what it may contain is decided here.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from edge_distill_runtime.bundles.files import open_regular, read_bounded
from edge_distill_runtime.errors import BundleError, InputError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")
_MAX_JSON = 64 << 20
_MAX_HEADER = 100 << 20  # safetensors' own limit
_LFS = b"version https://git-lfs"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from an untrusted file; raises `InputError` naming the file when it is none."""
    data = read_bounded(path, _MAX_JSON, allow_links=True)
    check_content(path, data[: len(_LFS)])
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise InputError("bad-json", f"{path} is not valid JSON: {exc}", "download it again") from exc
    if not isinstance(value, dict):
        raise InputError(
            "bad-json", f"{path} holds {type(value).__name__}, not an object", "download it again"
        )
    return value


def check_content(path: Path, start: bytes) -> None:
    """Refuse empty files and git-lfs pointers, which stand where a large file was not downloaded."""
    if not start:
        raise InputError("empty-file", f"{path} has 0 bytes", "download it again")
    if start.startswith(_LFS):
        raise InputError("lfs-pointer", f"{path} is a git-lfs pointer, not the file", "run: git lfs pull")


def check_directory(directory: Path) -> dict[str, Any]:
    """Check a Hugging Face model directory and return its config.json."""
    config = read_json(directory / "config.json")
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        path = directory / name
        if path.exists() and read_json(path).get("auto_map"):
            raise InputError(
                "remote-code",
                f"{path} asks to run code of its own (auto_map)",
                "convert the checkpoint to an architecture that transformers knows",
            )
    if "quantization_config" in config:
        method = config["quantization_config"]
        label = method.get("quant_method") if isinstance(method, dict) else method
        raise InputError(
            "already-quantized", f"{directory} is already quantized ({label})", "export the float checkpoint"
        )
    if not (directory / "tokenizer.json").exists():
        raise InputError(
            "no-tokenizer",
            f"{directory} has no tokenizer.json",
            "save the tokenizer beside the weights: tokenizer.save_pretrained(DIR)",
        )
    with open_regular(directory / "tokenizer.json", allow_links=True) as file:
        check_content(directory / "tokenizer.json", file.read(len(_LFS)))
    for path in weight_files(directory):
        check_safetensors(path)
    return config


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory, each inside it; pickled weights are refused."""
    if (directory / SINGLE).exists():
        return [directory / SINGLE]
    index = directory / INDEX
    if not index.exists():
        if pickles := sorted(path.name for pattern in _PICKLES for path in directory.glob(pattern)):
            raise InputError(
                "pickle",
                f"{directory} holds pickled weights ({pickles[0]}), which can run code when opened",
                "save them as safetensors: model.save_pretrained(DIR, safe_serialization=True)",
            )
        raise InputError("no-weights", f"{directory} has neither {SINGLE} nor {INDEX}", "check the path")
    shards = read_json(index).get("weight_map")
    if (
        not isinstance(shards, dict)
        or not shards
        or not all(isinstance(name, str) for name in shards.values())
    ):
        raise InputError("bad-index", f"{index} has no weight_map of file names", "download it again")
    names = sorted(set(shards.values()))
    for name in names:
        if name != Path(name).name or "\\" in name or not name.endswith(".safetensors"):
            raise InputError(
                "path-outside",
                f"{index} names the shard {name[:80]!r}, which is not a .safetensors file of its directory",
                "shards lie beside the index",
            )
        if not (directory / name).exists():
            raise InputError("missing-shard", f"{directory} lacks the shard {name}", "download it again")
    return [directory / name for name in names]


def check_safetensors(path: Path) -> None:
    """Check that a safetensors file is whole: header length, offsets and file size agree.

    Format: 8 bytes little-endian header length, JSON header, data.
    """
    with open_regular(path, allow_links=True) as file:
        start = file.read(max(8, len(_LFS)))
        check_content(path, start)
        size = file.seek(0, 2)
        length = struct.unpack("<Q", start[:8])[0] if size >= 8 else 0
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise InputError(
                "bad-safetensors",
                f"{path} is no safetensors file: header of {length} bytes in a file of {size}",
                "download it again",
            )
        file.seek(8)
        header = file.read(length)
    try:
        tensors = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as exc:
        raise InputError(
            "bad-safetensors", f"{path} has a damaged header: {exc}", "download it again"
        ) from exc
    if not isinstance(end, int) or 8 + length + end != size:
        raise InputError(
            "truncated",
            f"{path} has {size} bytes, its header says {8 + length + end if isinstance(end, int) else end}",
            "download it again",
        )


def check_adapter(directory: Path) -> dict[str, Any]:
    """Check a PEFT adapter directory and return its adapter_config.json."""
    config = read_json(directory / "adapter_config.json")
    if not (directory / ADAPTER).exists():
        found = (
            "pickled adapter weights" if (directory / "adapter_model.bin").exists() else "no adapter weights"
        )
        raise InputError(
            "pickle" if found.startswith("pickled") else "no-weights",
            f"{directory} has {found} and no {ADAPTER}",
            "save the adapter as safetensors",
        )
    check_safetensors(directory / ADAPTER)
    if not isinstance(config.get("base_model_name_or_path"), str):
        raise InputError(
            "no-base",
            f"{directory / 'adapter_config.json'} names no base model",
            "set base_model_name_or_path to the checkpoint that the adapter was trained on",
        )
    return config


def check_gguf(path: Path) -> None:
    """Validate a GGUF file before a library reads it (gguf 0.19.0's reader hangs on hostile headers)."""
    from edge_distill_runtime.bundles.gguf_check import validate_gguf

    with open_regular(path, allow_links=True) as file:
        check_content(path, file.read(len(_LFS)))
    try:
        validate_gguf(path, allow_links=True)
    except BundleError as exc:
        raise InputError(exc.code, exc.what, exc.hint) from exc
