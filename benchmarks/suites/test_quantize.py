"""Speed of quantizing one layer of SmolLM2's feed-forward network, 1536 x 576, and of packing it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from edge_distill_export.blocks import pack_q4_0
from edge_distill_export.gptq import Hessian, quantize_layer
from edge_distill_export.grid import QuantizedTensor, quantize_rtn
from edge_distill_export.onednn import multiply_by_onednn
from edge_distill_export.onnx_packing import pack_blocks

ROWS, COLUMNS, TOKENS = 1536, 576, 4096


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def hessian() -> Hessian:
    inputs = torch.randn(TOKENS, COLUMNS, generator=torch.Generator().manual_seed(1))
    return Hessian(inputs.T @ inputs / TOKENS, "layer")


@pytest.fixture(scope="module")
def tensor(weight: torch.Tensor) -> QuantizedTensor:
    return quantize_rtn(weight, 4)


@pytest.mark.parametrize("library", ["default", "onednn"])
def test_product(benchmark: BenchmarkFixture, weight: torch.Tensor, library: str) -> None:
    inputs = torch.randn(TOKENS, COLUMNS, generator=torch.Generator().manual_seed(1))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    if library == "onednn" and not multiply_by_onednn():
        pytest.skip("oneDNN would round to bfloat16 here")
    try:
        assert benchmark(torch.mm, inputs, weight.T).shape == (TOKENS, ROWS)
    finally:
        torch.set_float32_matmul_precision(before)


def test_round_to_nearest(benchmark: BenchmarkFixture, weight: torch.Tensor) -> None:
    assert benchmark(quantize_rtn, weight, 4).bits == 4


def test_gptq(benchmark: BenchmarkFixture, weight: torch.Tensor, hessian: Hessian) -> None:
    assert benchmark(quantize_layer, weight, hessian).bits == 4


def test_pack_gguf(benchmark: BenchmarkFixture, tensor: QuantizedTensor) -> None:
    packed: np.ndarray = benchmark(pack_q4_0, tensor.integers, tensor.scales)
    assert packed.nbytes == ROWS * COLUMNS // 32 * 18


def test_pack_onnx(benchmark: BenchmarkFixture, tensor: QuantizedTensor) -> None:
    packed: np.ndarray = benchmark(pack_blocks, tensor)
    assert packed.nbytes == ROWS * COLUMNS // 2
