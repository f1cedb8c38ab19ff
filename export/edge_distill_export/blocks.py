"""ggml's Q4_0 and Q8_0 blocks of 32 weights: integers and float16 scales, packed and unpacked exactly.

Layouts as `block_q4_0` and `block_q8_0` in ggml-common.h.
"""

from __future__ import annotations

import numpy as np

from edge_distill_export.grid import BLOCK_SIZE


def pack_q4_0(integers: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """uint8 [rows, columns / 32 * 18] of int8 [rows, columns] in [-8, 7] and float16 [rows, columns / 32].

    A block is the scale, then 16 bytes: weight i in the low and weight i + 16 in the high nibble, stored + 8.
    """
    rows = len(integers)
    nibbles = (integers.reshape(rows, -1, BLOCK_SIZE) + 8).astype(np.uint8)
    half = BLOCK_SIZE // 2
    return _with_scales(scales, nibbles[:, :, :half] | (nibbles[:, :, half:] << 4))


def unpack_q4_0(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The integers and scales of `pack_q4_0`."""
    scales, data = _split_scales(packed, BLOCK_SIZE // 2)
    nibbles = np.concatenate([data & 15, data >> 4], axis=-1).astype(np.int8) - 8
    return nibbles.astype(np.int8).reshape(len(packed), -1), scales


def pack_q8_0(integers: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """uint8 [rows, columns / 32 * 34] of int8 [rows, columns] and float16 [rows, columns / 32].

    A block is the scale, then 32 signed bytes.
    """
    return _with_scales(scales, integers.reshape(len(integers), -1, BLOCK_SIZE).view(np.uint8))


def unpack_q8_0(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The integers and scales of `pack_q8_0`."""
    scales, data = _split_scales(packed, BLOCK_SIZE)
    return np.ascontiguousarray(data).view(np.int8).reshape(len(packed), -1), scales


def _with_scales(scales: np.ndarray, data: np.ndarray) -> np.ndarray:
    rows, blocks, size = data.shape
    packed = np.empty((rows, blocks, 2 + size), dtype=np.uint8)
    packed[:, :, :2] = np.ascontiguousarray(scales, dtype="<f2").view(np.uint8).reshape(rows, blocks, 2)
    packed[:, :, 2:] = data
    return packed.reshape(rows, -1)


def _split_scales(packed: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    blocks = packed.reshape(len(packed), -1, 2 + size)
    scales = np.ascontiguousarray(blocks[:, :, :2]).view("<f2").reshape(len(packed), -1)
    return scales, blocks[:, :, 2:]
