"""Q4_0 and Q8_0 blocks: literal bytes, odd sizes, both signs, against gguf's own dequantization."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from edge_distill_export.blocks import pack_q4_0, pack_q8_0, unpack_q4_0, unpack_q8_0
from edge_distill_export.grid import QuantizedTensor

SHAPES = [(1, 32), (3, 64), (5, 96), (7, 1536)]


def random_tensor(rows: int, columns: int, bits: int) -> QuantizedTensor:
    generator = np.random.default_rng(rows * columns)
    low, high = (-8, 7) if bits == 4 else (-127, 127)
    integers = generator.integers(low, high + 1, (rows, columns)).astype(np.int8)
    scales = generator.normal(0, 0.1, (rows, columns // 32)).astype(np.float16)
    scales[0, 0] = 0
    return QuantizedTensor(integers, scales, bits)


def test_q4_0_bytes() -> None:
    # Weights 0 to 15 are -8 to 7, weights 16 to 31 are 7 to -8: the byte i holds (i, 15 - i).
    integers = np.concatenate([np.arange(-8, 8), np.arange(7, -9, -1)]).astype(np.int8)[None]
    packed = pack_q4_0(integers, np.array([[-0.5]], dtype=np.float16))
    # -0.5 is 0xB800 in float16, little-endian.
    assert packed.tobytes() == bytes.fromhex("00b8 f0e1d2c3b4a5968778695a4b3c2d1e0f")


def test_q8_0_bytes() -> None:
    integers = np.arange(-16, 16, dtype=np.int8)[None]
    packed = pack_q8_0(integers, np.array([[1.0]], dtype=np.float16))
    # 1.0 is 0x3C00 in float16.
    assert packed.tobytes() == bytes.fromhex("003c") + bytes(range(240, 256)) + bytes(range(16))


def test_q8_0_extremes() -> None:
    integers = np.array([[-127, 127] * 16], dtype=np.int8)
    packed = pack_q8_0(integers, np.array([[-2.0]], dtype=np.float16))
    assert packed.tobytes() == bytes.fromhex("00c0") + bytes.fromhex("817f") * 16


@pytest.mark.parametrize("shape", SHAPES)
def test_q4_0_round_trip_and_values(shape: tuple[int, int]) -> None:
    tensor = random_tensor(*shape, bits=4)
    packed = pack_q4_0(tensor.integers, tensor.scales)
    assert packed.shape == (shape[0], shape[1] // 32 * 18)
    integers, scales = unpack_q4_0(packed)
    np.testing.assert_array_equal(integers, tensor.integers)
    np.testing.assert_array_equal(scales, tensor.scales)
    np.testing.assert_array_equal(dequantize(packed, GGMLQuantizationType.Q4_0), tensor.dequantize())


@pytest.mark.parametrize("shape", SHAPES)
def test_q8_0_round_trip_and_values(shape: tuple[int, int]) -> None:
    tensor = random_tensor(*shape, bits=8)
    packed = pack_q8_0(tensor.integers, tensor.scales)
    assert packed.shape == (shape[0], shape[1] // 32 * 34)
    integers, scales = unpack_q8_0(packed)
    np.testing.assert_array_equal(integers, tensor.integers)
    np.testing.assert_array_equal(scales, tensor.scales)
    np.testing.assert_array_equal(dequantize(packed, GGMLQuantizationType.Q8_0), tensor.dequantize())


def test_rows_that_are_not_contiguous() -> None:
    tensor = random_tensor(6, 64, bits=8).rows(np.array([4, 0, 2]))
    transposed = np.asfortranarray(tensor.integers)
    np.testing.assert_array_equal(
        pack_q8_0(transposed, tensor.scales), pack_q8_0(tensor.integers, tensor.scales)
    )
