"""The bytes of MatMulNBits, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from edge_distill_export.grid import QuantizedTensor
from edge_distill_export.onnx_packing import pack_blocks, pack_scales, unpack_blocks


def tensor(rows: list[list[int]], bits: int, scales: list[list[float]] | None = None) -> QuantizedTensor:
    integers = np.array(rows, np.int8)
    blocks = integers.shape[1] // 32
    values = np.array(scales if scales else [[1.0] * blocks] * len(rows), np.float16)
    return QuantizedTensor(integers, values, bits)


def test_four_bits_put_the_even_column_into_the_low_nibble() -> None:
    row = [-8, 7, 0, -1, 1, -7] + [0] * 26
    packed = pack_blocks(tensor([row], 4))
    assert packed.shape == (1, 1, 16)
    assert packed.dtype == np.uint8
    # -8 + 8 = 0, 7 + 8 = 15; 0 + 8 = 8, -1 + 8 = 7; 1 + 8 = 9, -7 + 8 = 1; zeros are 8
    assert packed.tobytes() == bytes([0xF0, 0x78, 0x19]) + b"\x88" * 13


def test_eight_bits_add_128() -> None:
    row = [-127, 127, 0, -1, 1] + [0] * 27
    packed = pack_blocks(tensor([row], 8))
    assert packed.shape == (1, 1, 32)
    assert packed.tobytes() == bytes([1, 255, 128, 127, 129]) + b"\x80" * 27


def test_blocks_follow_each_other_along_the_row() -> None:
    """Three rows of 96 columns: an odd number of blocks, which ends in the middle of 64 columns."""
    rows = [[row] * 32 + [row + 1] * 32 + [-row] * 32 for row in range(3)]
    packed = pack_blocks(tensor(rows, 4))
    assert packed.shape == (3, 3, 16)
    expected = [[0x88, 0x99, 0x88], [0x99, 0xAA, 0x77], [0xAA, 0xBB, 0x66]]
    assert packed[:, :, 0].tolist() == expected
    assert packed[:, :, 15].tolist() == expected
    last = np.zeros((1, 96), np.int8)
    last[0, -1] = -8
    assert (
        pack_blocks(QuantizedTensor(last, np.ones((1, 3), np.float16), 4)).tobytes() == b"\x88" * 47 + b"\x08"
    )


def test_scales_keep_sign_and_value() -> None:
    scales = pack_scales(tensor([[0] * 96], 4, [[-0.1, 0.0, 6e-8]]))
    assert scales.dtype == np.float32
    # float16's -0.1, its 0, its smallest subnormal
    assert scales.tolist() == [[-0.0999755859375, 0.0, 2.0**-24]]


@pytest.mark.parametrize(("bits", "low", "high"), [(4, -8, 7), (8, -127, 127)])
@pytest.mark.parametrize("columns", [32, 96, 576])
def test_unpacking_gives_the_integers_back(bits: int, low: int, high: int, columns: int) -> None:
    integers = np.random.default_rng(0).integers(low, high, (5, columns), endpoint=True).astype(np.int8)
    packed = pack_blocks(QuantizedTensor(integers, np.ones((5, columns // 32), np.float16), bits))
    np.testing.assert_array_equal(unpack_blocks(packed, bits), integers)
