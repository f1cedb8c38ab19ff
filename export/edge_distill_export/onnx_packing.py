"""The shared grid in the bytes of MatMulNBits and GatherBlockQuantized: unsigned, zero point in the middle.

Neither operator gets a zero-point input, so both take 8 (at 4 bits) or 128 (at 8 bits).
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits
"""

from __future__ import annotations

import numpy as np

from edge_distill_export.grid import BLOCK_SIZE, QuantizedTensor


def block_bytes(bits: int) -> int:
    """Bytes of one packed block of 32 integers, without its scale."""
    return BLOCK_SIZE * bits // 8


def pack_blocks(tensor: QuantizedTensor) -> np.ndarray:
    """uint8 [rows, columns / 32, 16 or 32]: integer + 8 as nibbles, even columns low, or integer + 128."""
    rows, columns = tensor.integers.shape
    middle = 1 << (tensor.bits - 1)
    unsigned: np.ndarray = (tensor.integers.astype(np.int16) + middle).astype(np.uint8)
    if tensor.bits == 4:
        unsigned = unsigned[:, 0::2] | (unsigned[:, 1::2] << 4)
    return unsigned.reshape(rows, columns // BLOCK_SIZE, block_bytes(tensor.bits))


def unpack_blocks(packed: np.ndarray, bits: int) -> np.ndarray:
    """The int8 integers [rows, columns] that `pack_blocks` stored."""
    flat = packed.reshape(packed.shape[0], -1)
    if bits == 4:
        flat = np.stack([flat & 0x0F, flat >> 4], axis=-1).astype(np.uint8).reshape(packed.shape[0], -1)
    return (flat.astype(np.int16) - (1 << (bits - 1))).astype(np.int8)


def pack_scales(tensor: QuantizedTensor) -> np.ndarray:
    """float32 [rows, columns / 32]: MatMulNBits wants the activations' type, the values are float16's."""
    return np.ascontiguousarray(tensor.scales.astype(np.float32))
