"""The shared grid: literal numbers, both signs, ggml's own rounding as the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants

from edge_distill_export.blocks import pack_q4_0, pack_q8_0
from edge_distill_export.grid import QuantizedTensor, quantize_rtn
from edge_distill_runtime.errors import InputError


def test_rounding_by_hand() -> None:
    weight = torch.zeros(1, 32)
    weight[0, :4] = torch.tensor([-4.0, 3.5, 1.2, -0.2])
    tensor = quantize_rtn(weight, 4)
    # the largest weight, -4, becomes -8: the scale is 0.5
    assert tensor.scales.tolist() == [[0.5]]
    assert tensor.integers[0, :4].tolist() == [-8, 7, 2, 0]
    assert tensor.dequantize()[0, :4].tolist() == [-4.0, 3.5, 1.0, 0.0]


def test_a_positive_largest_weight_gives_a_negative_scale() -> None:
    weight = torch.zeros(1, 32)
    weight[0, 0] = 4.0
    tensor = quantize_rtn(weight, 4)
    assert tensor.scales.tolist() == [[-0.5]]
    assert tensor.integers[0, 0] == -8
    assert tensor.dequantize()[0, 0] == 4.0


@pytest.mark.parametrize(("bits", "low", "high"), [(4, -8, 7), (8, -127, 127)])
def test_integers_stay_on_the_grid(bits: int, low: int, high: int) -> None:
    tensor = quantize_rtn(torch.randn(64, 96) * 3, bits)
    assert tensor.integers.dtype == np.int8
    assert tensor.scales.dtype == np.float16
    assert tensor.integers.min() >= low
    assert tensor.integers.max() <= high


def test_zeros_stay_zeros() -> None:
    for bits in (4, 8):
        tensor = quantize_rtn(torch.zeros(2, 64), bits)
        assert not tensor.dequantize().any()


@pytest.mark.parametrize(("bits", "kind", "pack"), [(4, "Q4_0", pack_q4_0), (8, "Q8_0", pack_q8_0)])
def test_close_to_ggmls_own_rounding(bits: int, kind: str, pack: object) -> None:
    weight = torch.randn(48, 128, generator=torch.Generator().manual_seed(0))
    ours = quantize_rtn(weight, bits)
    theirs = quants.dequantize(
        quants.quantize(weight.numpy(), GGMLQuantizationType[kind]), GGMLQuantizationType[kind]
    )
    error_of_ours = np.square(ours.dequantize() - weight.numpy()).mean()
    error_of_theirs = np.square(theirs - weight.numpy()).mean()
    # ggml rounds with the scale before it becomes float16: ours must not be worse than that
    assert error_of_ours <= error_of_theirs * 1.001


def test_rows_and_concatenation() -> None:
    tensor = quantize_rtn(torch.randn(8, 64), 4)
    order = np.array([3, 1, 0])
    assert np.array_equal(tensor.rows(order).dequantize(), tensor.dequantize()[order])
    joined = QuantizedTensor.concatenate([tensor.rows(slice(0, 2)), tensor.rows(slice(2, 8))])
    assert np.array_equal(joined.dequantize(), tensor.dequantize())


def test_columns_that_do_not_divide_are_refused() -> None:
    with pytest.raises(InputError, match=r"rows of 48 weights, which is not a multiple of 32"):
        quantize_rtn(torch.zeros(2, 48), 4)


def test_scales_beyond_float16_are_refused() -> None:
    with pytest.raises(InputError, match="beyond float16's 65504"):
        quantize_rtn(torch.full((1, 32), 1e6), 4)
