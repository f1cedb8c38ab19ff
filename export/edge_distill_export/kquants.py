"""K-quants: libllama's own quantizer, in process, and a prediction of what it will choose.

A K-quant stores super-blocks of 256 weights, so rows that 256 does not divide fall back to other types,
with no error: most tensors of a 576 wide model. `predict_types` says so before any work.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edge_distill_runtime.engines.llama import library
from edge_distill_runtime.errors import BackendError, InputError

KQuant = Literal["q4_k_m", "q5_k_m", "q6_k"]

# llama_ftype in llama.h
_FILE_TYPES: dict[str, int] = {"q4_0": 2, "q4_k_m": 15, "q5_k_m": 17, "q6_k": 18}
_BASE = {"q4_k_m": "Q4_K", "q5_k_m": "Q5_K", "q6_k": "Q6_K"}
# As tensor_type_fallback in llama-quant.cpp: types with blocks of 32.
_FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
_SUPER_BLOCK = 256


@dataclass(frozen=True)
class Fallback:
    """A tensor that cannot take the type that the mixture wants for it."""

    name: str
    columns: int
    wanted: str
    used: str

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.used} instead of {self.wanted}, 256 does not divide rows of {self.columns}"
        )


def quantize_gguf(
    source: Path,
    target: Path,
    file_type: KQuant | Literal["q4_0"],
    *,
    importance: Mapping[str, np.ndarray] | None = None,
    threads: int,
) -> None:
    """Quantize the f32 or f16 file `source`, which `write_gguf` wrote, to `target`.

    `importance` maps Hugging Face parameter names to float32 [columns], the mean squared activation of each
    input; the head of a tied model has none. Raises `BackendError` "quantize-failed" with libllama's reason.
    """
    llama = library()
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype = _FILE_TYPES[file_type]
    parameters.nthread = threads
    entries = _importance_entries(llama, importance or {})
    if importance:
        parameters.imatrix = entries
    with _log(llama) as lines:
        status = llama.llama_model_quantize(
            str(source).encode(), str(target).encode(), ctypes.byref(parameters)
        )
    if status != 0 or not target.exists():
        target.unlink(missing_ok=True)
        reason = lines[-1] if lines else "it gave no reason"
        raise BackendError(
            "quantize-failed", f"libllama cannot quantize {source.name} to {file_type}: {reason}"
        )


def _importance_entries(llama: Any, importance: Mapping[str, np.ndarray]) -> Any:
    """A null-terminated array of llama_model_imatrix_data; it keeps the data that it points to alive."""
    entries = (llama.llama_model_imatrix_data * (len(importance) + 1))()
    keep = []
    for entry, (name, values) in zip(entries, importance.items(), strict=False):
        array = np.ascontiguousarray(values, dtype=np.float32)
        if array.ndim != 1 or not np.isfinite(array).all() or (array < 0).any():
            raise InputError(
                "bad-importance", f"the importance of {name} must be finite, non-negative numbers"
            )
        keep.append(array)
        entry.name = _gguf_name(name).encode()
        entry.data = array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = array.size
    entries.keep = keep
    return entries


def _gguf_name(name: str) -> str:
    from gguf import MODEL_ARCH, get_tensor_name_map

    # PHI3's table has the fused projections, and shares the rest with the other families.
    for arch in (MODEL_ARCH.LLAMA, MODEL_ARCH.PHI3):
        if found := get_tensor_name_map(arch, _layer(name) + 1).get_name(name, try_suffixes=(".weight",)):
            return found
    raise ValueError(f"no GGUF tensor for {name}")


def _layer(name: str) -> int:
    match = re.search(r"\.(\d+)\.", name)
    return int(match[1]) if match else 0


@contextmanager
def _log(llama: Any) -> Iterator[list[str]]:
    """Collect libllama's error lines; the former log callback comes back afterwards."""
    lines: list[str] = []
    error_level = 4  # GGML_LOG_LEVEL_ERROR in ggml.h

    def collect(level: int, text: bytes, _: Any) -> None:
        if level == error_level and text.strip():
            lines.append(text.decode("utf-8", "replace").strip())

    before, user_data = llama.llama_log_callback(), ctypes.c_void_p()
    llama.llama_log_get(ctypes.byref(before), ctypes.byref(user_data))
    callback = llama.llama_log_callback(collect)
    llama.llama_log_set(callback, ctypes.c_void_p(0))
    try:
        yield lines
    finally:
        llama.llama_log_set(before, user_data)


def predict_types(shapes: Mapping[str, tuple[int, ...]], file_type: KQuant) -> dict[str, str]:
    """The type that libllama will give each tensor, by GGUF name; `shapes` as of `tensor_shapes`.

    Mirrors llama_tensor_get_type_impl in llama-quant.cpp for the supported families.
    """
    return {
        name: _fallback(wanted, shapes[name][-1]) for name, wanted in _wanted_types(shapes, file_type).items()
    }


def predict_fallbacks(shapes: Mapping[str, tuple[int, ...]], file_type: KQuant) -> list[Fallback]:
    """The tensors whose rows 256 does not divide, and what they fall back to."""
    used = predict_types(shapes, file_type)
    return [
        Fallback(name, shapes[name][-1], wanted, used[name])
        for name, wanted in _wanted_types(shapes, file_type).items()
        if used[name] != wanted
    ]


def _fallback(wanted: str, columns: int) -> str:
    if wanted not in _FALLBACK or columns % _SUPER_BLOCK == 0:
        return wanted
    return _FALLBACK[wanted] if columns % 32 == 0 else "F16"


def _wanted_types(shapes: Mapping[str, tuple[int, ...]], file_type: KQuant) -> dict[str, str]:
    layers = 1 + max((_layer(name) for name in shapes), default=0)
    tied = "output.weight" not in shapes
    # Llama 2 and 3 70B share each value head among eight query heads; libllama spends more bits on them.
    large = layers == 80 and shapes["blk.0.attn_k.weight"] != shapes["blk.0.attn_q.weight"]
    return {
        name: _wanted_type(name, shape, file_type, layers, tied, large)
        if len(shape) == 2 and name.endswith(".weight")
        else "F32"
        for name, shape in shapes.items()
    }


def _wanted_type(
    name: str, shape: tuple[int, ...], file_type: KQuant, layers: int, tied: bool, large: bool
) -> str:
    base = _BASE[file_type]
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        return "Q6_K" if shape[-1] % _SUPER_BLOCK == 0 else "Q8_0"
    layer = _layer(name)
    more = file_type != "q6_k" and _use_more_bits(layer, layers)
    if "attn_v." in name or "attn_qkv." in name:
        wanted = "Q6_K" if more else base
        return "Q5_K" if large and wanted == "Q4_K" else wanted
    if "ffn_down." in name and more:
        return "Q6_K"
    return base


def _use_more_bits(layer: int, layers: int) -> bool:
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
