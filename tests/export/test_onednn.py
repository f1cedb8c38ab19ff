"""Products by oneDNN: as exact as before, or left alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from edge_distill_export.onednn import multiply_by_onednn


@pytest.fixture(autouse=True)
def precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def test_products_are_those_of_float32() -> None:
    taken = multiply_by_onednn()
    assert torch.get_float32_matmul_precision() == ("medium" if taken else "highest")
    generator = torch.Generator().manual_seed(5)
    for rows, columns, inner in ((1, 48, 96), (300, 65, 1536), (64, 64, 8)):
        left, right = (
            torch.randn(rows, inner, generator=generator),
            torch.randn(inner, columns, generator=generator),
        )
        left.requires_grad_()
        expected = left.detach().double() @ right.double()
        product = left @ right
        # float32 gives 1e-6 of the largest with 1,536 columns, bfloat16 2e-3
        assert (product.double() - expected).abs().max() < 1e-5 * expected.abs().max()
        product.sum().backward()
        assert left.grad is not None
        assert torch.allclose(
            left.grad.double(), right.double().sum(1).expand(rows, -1), atol=1e-5 * columns**0.5
        )


def test_a_processor_that_rounds_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one with AMX: its products have the error of bfloat16."""
    multiply = torch.Tensor.__matmul__

    def rounded(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        if torch.get_float32_matmul_precision() == "medium" and left.dtype == torch.float32:
            return multiply(left.bfloat16().float(), right.bfloat16().float())
        return multiply(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    assert not multiply_by_onednn()
    assert torch.get_float32_matmul_precision() == "highest"


def test_the_precision_of_a_gpu_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not multiply_by_onednn()
    assert torch.get_float32_matmul_precision() == "highest"
