"""The shared integer grid: blocks of 32 along the input dimension, signed integers, one float16 scale.

GGUF `Q4_0`/`Q8_0` and ONNX Runtime `MatMulNBits` (block 32, no zero point) are two packings of these integers,
so whatever chooses them (round to nearest here, GPTQ in `gptq.py`) chooses them once for both formats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_distill_runtime.errors import InputError

if TYPE_CHECKING:
    import torch

BLOCK_SIZE = 32
FLOAT16_MAX = 65504.0


@dataclass(frozen=True)
class QuantizedTensor:
    """One linear layer on the grid; `dequantize()` is exact in float32 (4 or 8 bits times 11 bits)."""

    integers: np.ndarray
    """int8 [rows, columns], within [-8, 7] at 4 bits and [-127, 127] at 8 bits."""
    scales: np.ndarray
    """float16 [rows, columns / 32]; of either sign, 0 for a block of zeros."""
    bits: int

    def dequantize(self) -> np.ndarray:
        """float32 [rows, columns]: each integer times the scale of its block."""
        rows, columns = self.integers.shape
        blocks = self.integers.reshape(rows, -1, BLOCK_SIZE).astype(np.float32)
        return (blocks * self.scales.astype(np.float32)[:, :, None]).reshape(rows, columns)

    def rows(self, index: slice | np.ndarray) -> QuantizedTensor:
        """The rows that `index` selects: a part of a fused layer, or a permutation."""
        return QuantizedTensor(self.integers[index], self.scales[index], self.bits)

    @staticmethod
    def concatenate(tensors: Sequence[QuantizedTensor]) -> QuantizedTensor:
        """The tensors below each other, as a fused query/key/value projection holds them."""
        (bits,) = {tensor.bits for tensor in tensors}
        integers = np.concatenate([tensor.integers for tensor in tensors])
        return QuantizedTensor(integers, np.concatenate([tensor.scales for tensor in tensors]), bits)


def limits(bits: int) -> tuple[int, int]:
    """The smallest and the largest integer: Q8_0 leaves out -128, as its scale is amax / 127."""
    return (-8, 7) if bits == 4 else (-127, 127)


def to_blocks(weight: torch.Tensor, name: str = "weight") -> torch.Tensor:
    """View [rows, columns] as [rows, columns / 32, 32]; raises `InputError` when the columns do not divide."""
    rows, columns = weight.shape
    if columns % BLOCK_SIZE:
        raise InputError(
            "not-divisible",
            f"{name} has rows of {columns} weights, which is not a multiple of {BLOCK_SIZE}",
            "export to gguf:f16 or onnx:fp32",
        )
    return weight.reshape(rows, columns // BLOCK_SIZE, BLOCK_SIZE)


def nearest_integers(blocks: torch.Tensor, scales: torch.Tensor, bits: int) -> torch.Tensor:
    """Round [..., 32] weights to the grid of float32 `scales` [...]; a scale of 0 gives 0."""
    low, high = limits(bits)
    inverse = (1.0 / scales).nan_to_num(0.0, 0.0, 0.0)
    return (blocks * inverse[..., None]).round_().clamp_(low, high)


def round_to_float16(scales: torch.Tensor, name: str = "weight") -> torch.Tensor:
    """float32 scales at float16 precision; raises `InputError` where float16 cannot hold them."""
    import torch

    largest = scales.abs().max().item()
    if largest > FLOAT16_MAX:
        raise InputError(
            "scale-overflow",
            f"{name} needs a block scale of {largest:.3g}, beyond float16's {FLOAT16_MAX:.0f}",
            "rescale the layer or export to onnx:fp32",
        )
    return scales.to(torch.float16).to(torch.float32)


def block_scales(blocks: torch.Tensor, bits: int, name: str = "weight") -> torch.Tensor:
    """The scales that map each block's largest weight to the end of the grid, as ggml's reference does.

    At 4 bits the scale takes the sign that puts the largest weight on -8, the longer side
    (`quantize_row_q4_0_ref`); at 8 bits it is amax / 127 (`quantize_row_q8_0_ref`).
    """
    if bits == 8:
        return round_to_float16(blocks.abs().amax(-1) / 127, name)
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True)).squeeze(-1)
    return round_to_float16(largest / -8, name)


def quantize_rtn(weight: torch.Tensor, bits: int, name: str = "weight") -> QuantizedTensor:
    """Round a float32 weight [rows, columns] to nearest on the grid."""
    blocks = to_blocks(weight, name)
    scales = block_scales(blocks, bits, name)
    return from_blocks(nearest_integers(blocks, scales, bits), scales, bits)


def from_blocks(integers: torch.Tensor, scales: torch.Tensor, bits: int) -> QuantizedTensor:
    """A `QuantizedTensor` of integers [rows, blocks, 32] and float16-representable scales [rows, blocks]."""
    import torch

    flat = integers.reshape(integers.shape[0], -1).to(torch.int8)
    return QuantizedTensor(flat.numpy(), scales.to(torch.float16).numpy(), bits)
