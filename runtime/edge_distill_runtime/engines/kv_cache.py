"""The precision of the key-value cache: which ones an engine takes, and what a token costs in each.

libllama converts while it writes, so a GGUF file opens with any of its own; blocks of 32 values share a float16
scale. A quantized ONNX cache needs scales in the graph, so there the file decides (`KVLayout.bytes_per_value`).
"""

from __future__ import annotations

from typing import Literal

from edge_distill_runtime.bundles.manifest import KVLayout, Manifest
from edge_distill_runtime.errors import InputError

__all__ = ["GGUF_PRECISIONS", "choose_precision", "default_token_bytes", "token_bytes"]

GGUF_PRECISIONS = ("f16", "q8_0", "q4_0")
_BLOCK = 32
_BLOCK_BYTES = {"q8_0": 34, "q4_0": 18}
_ONNX = {4: "f32", 2: "f16", 1: "int8"}  # by bytes of a value


def choose_precision(
    format: Literal["gguf", "onnx"], layout: KVLayout, wanted: str | None, default: str | None = None
) -> str:
    """The precision to open a model's cache with; `InputError` where its engine cannot have the one `wanted`."""
    if format == "onnx":
        own = _ONNX.get(layout.bytes_per_value, f"{layout.bytes_per_value} bytes")
        if wanted not in (None, own):
            raise InputError(
                "bad-kv-cache",
                f"the key-value cache of this ONNX graph is {own}, not {wanted}: its operators and scales fix that",
                f"load with kv_cache={own!r} or none, or take a GGUF bundle for {', '.join(GGUF_PRECISIONS)}",
            )
        return own
    chosen = wanted or default or "f16"
    if chosen not in GGUF_PRECISIONS:
        raise InputError(
            "bad-kv-cache",
            f"{chosen!r} is no precision of a GGUF model's key-value cache",
            f"known: {', '.join(GGUF_PRECISIONS)}",
        )
    if chosen in _BLOCK_BYTES and layout.head_dim % _BLOCK:
        raise InputError(
            "bad-kv-cache",
            f"a {chosen} cache has blocks of {_BLOCK} values, the heads are {layout.head_dim} wide",
            "load with kv_cache='f16'",
        )
    return chosen


def token_bytes(layout: KVLayout, precision: str) -> int:
    """Bytes of cache that one token takes."""
    if precision not in _BLOCK_BYTES:
        return layout.bytes_per_token
    return layout.bytes_per_token // layout.bytes_per_value // _BLOCK * _BLOCK_BYTES[precision]


def default_token_bytes(manifest: Manifest) -> int:
    """Bytes of cache that a token takes when the bundle is opened as its manifest says."""
    return token_bytes(manifest.kv, choose_precision(manifest.format, manifest.kv, None, manifest.kv_cache))
