"""Training on the grid: layers compute with integers and block scales while what stands behind them learns.

A pass sees the rounded weights alone. Their gradient goes straight through the rounding to the continuous values
(Bengio et al. 2013, arXiv:1308.3432), as in `distil/qat.py`, except that scales do not follow the largest weight:
they are the quantization's own, so that training starts from exactly its integers. A gradient is used up as soon as
it is there, so that those of all layers never lie in memory together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from edge_distill_export.grid import BLOCK_SIZE, QuantizedTensor, from_blocks, limits, to_blocks

__all__ = ["Integers", "Norm", "Pace", "Scales", "multiplies_bf16"]

_MOMENTUM, _SQUARES = 0.9, 0.95
_INSIDE = 0.499  # of a grid step: what lies this far beyond the last integer still rounds to it
_TINY = 1e-12


def multiplies_bf16() -> bool:
    """Whether the processor multiplies bfloat16 in hardware; elsewhere it is slower than float32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@dataclass
class Pace:
    """How large the next update is, for all layers alike."""

    step: int = 0
    """From 1; the average of the gradients is young at first, which is divided out."""
    factor: float = 0.0
    """Of the learning rates: warm-up and decay."""


class _Average:
    """Adam's direction with one second moment for each run of the last dimension (Adam-mini, arXiv:2406.16793)."""

    def __init__(self, values: torch.Tensor) -> None:
        # the average of ten gradients is no more exact than bfloat16, and half as large
        self._first = torch.zeros_like(values, dtype=torch.bfloat16)
        self._second = torch.zeros_like(values[..., :1])

    def direction(self, gradient: torch.Tensor, step: int) -> torch.Tensor:
        """Of size 1 or so, against which to go."""
        self._first.mul_(_MOMENTUM).add_(gradient, alpha=1 - _MOMENTUM)
        self._second.lerp_(gradient.square().mean(-1, keepdim=True), 1 - _SQUARES)
        size = (self._second / (1 - _SQUARES**step)).sqrt_().add_(_TINY)
        return self._first.float().div_(size).div_(1 - _MOMENTUM**step)


class _Layer:
    """A linear layer; `weight` is the leaf that passes compute with and whose gradient is taken at once."""

    def __init__(self, tensor: QuantizedTensor, pace: Pace, dtype: torch.dtype) -> None:
        self._pace = pace
        self._scales = torch.from_numpy(tensor.scales).float()
        self.weight = torch.empty(tensor.integers.shape, dtype=dtype)
        self._compute()
        self.weight.requires_grad_().register_post_accumulate_grad_hook(self._take)

    def tensor(self) -> QuantizedTensor:
        """What passes compute with now, on the grid exactly."""
        return from_blocks(self._integers(), self._scales, 4)

    def _integers(self) -> torch.Tensor:
        """[rows, blocks, 32]."""
        raise NotImplementedError

    def _learn(self, gradient: torch.Tensor) -> None:
        """Take the gradient [rows, blocks, 32] of the weights."""
        raise NotImplementedError

    @torch.no_grad()
    def _take(self, weight: torch.Tensor) -> None:
        assert weight.grad is not None
        gradient, weight.grad = weight.grad, None
        self._learn(gradient.float().reshape(*self._scales.shape, BLOCK_SIZE))
        self._compute()

    @torch.no_grad()
    def _compute(self) -> None:
        self.weight.copy_((self._integers() * self._scales[..., None]).reshape(self.weight.shape))


class Scales(_Layer):
    """The integers stay; each block's scale learns, and is float16 in every pass."""

    RATE = 2e-4
    """Of a scale, in an update."""

    def __init__(self, tensor: QuantizedTensor, pace: Pace, dtype: torch.dtype) -> None:
        self._fixed = to_blocks(torch.from_numpy(tensor.integers))
        super().__init__(tensor, pace, dtype)
        self._behind = self._scales.clone()
        self._steps = self._scales.abs() * self.RATE
        self._average = _Average(self._scales)

    def _integers(self) -> torch.Tensor:
        return self._fixed

    def _learn(self, gradient: torch.Tensor) -> None:
        direction = self._average.direction((gradient * self._fixed).sum(-1), self._pace.step)
        self._behind -= direction.mul_(self._steps).mul_(self._pace.factor)
        self._scales = self._behind.half().float()


class Integers(_Layer):
    """The scales stay; behind each integer a continuous weight learns, in steps of the grid, and starts on it.

    Half a step has to be gone before an integer changes, which only gradients do that agree for long. Started where
    the checkpoint's weights lie, those near a border change at once, and undo what the quantization had balanced.
    """

    RATE = 1e-2
    """Of a grid step, in an update."""

    def __init__(self, tensor: QuantizedTensor, pace: Pace, dtype: torch.dtype) -> None:
        self._behind = to_blocks(torch.from_numpy(tensor.integers)).float()
        super().__init__(tensor, pace, dtype)
        self._average = _Average(self._behind)

    def _integers(self) -> torch.Tensor:
        return self._behind.round()

    def _learn(self, gradient: torch.Tensor) -> None:
        # by the weight itself: the gradient by the integer has the scale's sign, and Adam forgets its size
        direction = self._average.direction(gradient, self._pace.step).mul_(self._scales.sign()[..., None])
        low, high = limits(4)
        self._behind.sub_(direction, alpha=self.RATE * self._pace.factor)
        self._behind.clamp_(low - _INSIDE, high + _INSIDE)


class Norm:
    """A norm's weights, float32 in both formats."""

    RATE = 2e-4

    def __init__(self, values: torch.Tensor, pace: Pace) -> None:
        self._pace, self._average = pace, _Average(values)
        self.weight = values.clone().requires_grad_()
        self.weight.register_post_accumulate_grad_hook(self._take)

    def values(self) -> np.ndarray:
        return self.weight.detach().numpy().copy()

    @torch.no_grad()
    def _take(self, weight: torch.Tensor) -> None:
        assert weight.grad is not None
        direction = self._average.direction(weight.grad, self._pace.step)
        weight.sub_(direction, alpha=self.RATE * self._pace.factor)
        weight.grad = None
