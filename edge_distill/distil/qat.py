"""Quantization-aware training through the export grid.

Every forward pass computes with the weights that an int4 export would hold (`edge_distill_export.grid`: blocks of
32, integers in [-8, 7], one float16 scale that puts a block's largest weight on -8); the gradient goes straight
through the rounding to the float32 weights behind it (Bengio et al. 2013, arXiv:1308.3432). `bake` ends the training:
it leaves the dequantized weights, and checks that rounding them again, as `export --method rtn` does, gives exactly
the integers and scales of the last forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from edge_distill_export.grid import (
    QuantizedTensor,
    block_scales,
    from_blocks,
    nearest_integers,
    quantize_rtn,
    to_blocks,
)
from edge_distill_runtime.errors import InputError

__all__ = ["bake", "grid_tensors", "quantize_aware"]

# Below these, multiples of float16's 2**-24 are so coarse that the largest weight may miss the end of the grid.
_SMALLEST_SCALE = {4: 2.0**-20, 8: 2.0**-17}


def quantize_aware(model: nn.Module, names: Sequence[str], *, bits: int = 4) -> None:
    """Let the linear layers with the parameter `names` compute on the grid from now on.

    `names` are those of `edge_distill_export.families.linear_names`. The weights must be float32, as mixed precision
    training keeps them, and no LoRA may be around them. Embeddings and head stay as they are: at the 8 bits that the
    export gives them they lose next to nothing. The parameters move to `NAME.parametrizations.weight.original`, so
    a training checkpoint is loaded into a model that was made aware before.
    """
    modules = [_linear(model, name) for name in names]
    for name, module in zip(names, modules, strict=True):
        to_blocks(module.weight, name)  # raises when the rows do not divide
        parametrize.register_parametrization(module, "weight", _OnGrid(bits, name))


def grid_tensors(model: nn.Module) -> dict[str, QuantizedTensor]:
    """Integers and scales that the aware layers compute with, by parameter name."""
    tensors = {}
    for name, weight, grid, _ in _aware(model):
        integers, scales = _on_grid(weight.detach(), grid.bits, name)
        tensors[name] = from_blocks(integers.cpu(), scales.cpu(), grid.bits)
    return tensors


def bake(model: nn.Module) -> dict[str, QuantizedTensor]:
    """Replace the aware layers by plain ones that hold the dequantized weights; returns integers and scales.

    Save the model in float32 afterwards: bfloat16 cannot hold these weights. Rounding them again is exact because
    the block's largest weight is -8 times the scale, which gives the same scale, and no other is as large.
    """
    tensors = {}
    trained = grid_tensors(model)
    for name, weight, grid, module in list(_aware(model)):
        dequantized = torch.from_numpy(trained[name].dequantize())
        tensors[name] = again = quantize_rtn(dequantized, grid.bits, name)
        if not (
            (again.integers == trained[name].integers).all() and (again.scales == trained[name].scales).all()
        ):
            raise InputError(
                "not-on-grid",
                f"{name} rounds to other integers than those it was trained with",
                "this is a bug; export `grid_tensors` instead",
            )
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
        module.weight.data = dequantized.to(weight.device)
    return tensors


class _OnGrid(nn.Module):
    """The parametrization of one weight."""

    def __init__(self, bits: int, name: str) -> None:
        super().__init__()
        self.bits, self.name = bits, name

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        rounded: torch.Tensor = _StraightThrough.apply(weight, self.bits, self.name)
        return rounded


class _StraightThrough(torch.autograd.Function):
    """Rounds going forward, and is the identity going backward."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, bits: int, name: str) -> torch.Tensor:
        integers, scales = _on_grid(weight, bits, name)
        return (integers * scales[..., None]).reshape(weight.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradients[0], None, None


def _on_grid(weight: torch.Tensor, bits: int, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers [rows, blocks, 32] and scales [rows, blocks], as `quantize_rtn` chooses them.

    Except blocks whose scale is so small that what it gives would not round to itself: they are 0. At 4 bits that
    are blocks whose largest weight is below 8 * 2**-20.
    """
    blocks = to_blocks(weight, name)
    scales = block_scales(blocks, bits, name)
    scales = torch.where(scales.abs() < _SMALLEST_SCALE[bits], 0.0, scales)
    return nearest_integers(blocks, scales, bits), scales


def _linear(model: nn.Module, name: str) -> nn.Linear:
    module = model.get_submodule(name.removesuffix(".weight"))
    if type(module) is not nn.Linear:
        raise InputError(
            "not-linear",
            f"{name} belongs to a {type(module).__name__}, not to a plain linear layer",
            "merge adapters first, and make a model aware only once",
        )
    if module.weight.dtype != torch.float32:
        raise InputError(
            "not-float32",
            f"{name} is {module.weight.dtype}",
            "load the student in float32 and train with bf16 autocast",
        )
    return module


def _aware(model: nn.Module) -> list[tuple[str, torch.Tensor, _OnGrid, Any]]:
    """(parameter name, float32 weight behind it, grid, layer) of every aware layer, in the model's order."""
    found = []
    for path, module in model.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            chain: Any = module.parametrizations["weight"]
            if isinstance(chain[0], _OnGrid):
                found.append((f"{path}.weight", chain.original, chain[0], module))
    return found
