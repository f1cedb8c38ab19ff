"""GPTQ onto the shared grid: integers and scales that keep each layer's outputs, not its weights.

Per layer, with H = X^T X / n over the inputs X that the quantized layers before it give: the weights are first moved
to those that make up best for what these layers have lost (`compensated`); scales come by search with the diagonal of
H as weights; integers column by column, each rounding error moved onto the columns that follow (Frantar et al. 2022,
arXiv:2210.17323, with columns in descending order of H's diagonal); then scales and integers are refined in turn, each
in closed form given the other, against the same error (w - q) H (w - q)^T.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from edge_distill_export.activations import Seen, replace_linears
from edge_distill_export.calibration import Text
from edge_distill_export.grid import (
    BLOCK_SIZE,
    QuantizedTensor,
    block_scales,
    from_blocks,
    limits,
    nearest_integers,
    quantize_rtn,
    round_to_float16,
    to_blocks,
)
from edge_distill_runtime.engines.allocator import give_back_freed_memory
from edge_distill_runtime.errors import InputError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_COLUMNS = 128  # columns quantized before their errors reach the rest of the matrix
_DAMPING = (0.01, 0.1, 1.0)  # shares of the mean diagonal, each tried when the one before left H singular
_SHRINKS = (0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05)  # of the largest weight, as ends of the grid
_REFINEMENTS = 2
_TABLE_ROWS = 8192  # of an embedding at once: each is quantized by itself
_TABLE_TEXTS = 20  # whose last hidden states a head is fitted to
_ENERGY_TOKENS = 2048  # that tell how much there is to make up for
_SYSTEM_ENTRIES = 1 << 22  # of the linear systems solved at once: 32 MiB in float64


@dataclass(frozen=True)
class Quantized:
    """What one pass over calibration text gives."""

    tensors: dict[str, QuantizedTensor]
    importance: dict[str, np.ndarray]
    """H's diagonal: the mean squared input of every column, float32 [columns], by parameter name."""


def quantize_gptq(
    model: PreTrainedModel,
    texts: Sequence[Text],
    names: Sequence[str],
    embeddings: Mapping[str, QuantizedTensor],
    advance: Callable[[], None],
    high: Collection[str] = (),
    *,
    compensate: bool = True,
) -> Quantized:
    """Quantize the layers in `names` to 4 bits, one after the other, each seeing the quantized ones before it.

    `embeddings` are already quantized and stand in from the start. Layers in `high` are rounded to 8 bits instead,
    and have no importance. With `compensate`, each makes up for what those before it have lost. The model's own weights
    stay as they are.
    """
    result = Quantized({}, {})
    moments: WeakKeyDictionary[Seen, tuple[Hessian, Any]] = WeakKeyDictionary()  # what is seen is large

    def replace(name: str, weight: torch.Tensor, seen: Seen) -> torch.Tensor:
        import torch

        if seen not in moments:
            drift = input_drift(seen) if compensate else None
            moments[seen] = Hessian(second_moment(seen.inputs), name), drift
        hessian, drift = moments[seen]
        wanted = compensated(weight, seen, drift, hessian) if compensate else weight
        if name in high:
            result.tensors[name] = quantize_rtn(wanted, 8, name)
        else:
            result.importance[name] = hessian.importance.numpy()
            result.tensors[name] = quantize_layer(wanted, hessian, name)
        give_back_freed_memory()  # hundreds of MB
        advance()
        return torch.from_numpy(result.tensors[name].dequantize())

    replace_linears(model, texts, names, replace, embeddings, exact=compensate)
    return result


def quantize_table(model: PreTrainedModel, texts: Sequence[Text], name: str) -> QuantizedTensor:
    """Embedding or head at 4 bits: for the products with the last hidden states where the head reads it."""
    import torch

    weight = model.get_parameter(name).detach()
    hidden: list[torch.Tensor] = []
    if model.get_output_embeddings().weight.data_ptr() == weight.data_ptr():
        with torch.inference_mode():
            for text in texts[:: -(-len(texts) // _TABLE_TEXTS)]:
                found = model.get_decoder()(torch.tensor([text.tokens]), use_cache=False).last_hidden_state[0]
                hidden.append(found[max(0, text.prompt - 1) :])
    matrix = second_moment(hidden) if hidden else torch.eye(weight.shape[1])
    with torch.inference_mode():
        hessian = Hessian(matrix, name)
        parts = [quantize_layer(rows, hessian, name) for rows in weight.split(_TABLE_ROWS)]
    return QuantizedTensor.concatenate(parts)


def second_moment(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """X^T X / n [columns, columns] of inputs [tokens, columns] in parts."""
    return cross_moment((part, part) for part in inputs)


def input_drift(seen: Seen) -> torch.Tensor:
    """(E - X)^T X / n [columns, columns] of the checkpoint's own inputs E and the inputs X."""
    pairs = zip(seen.exact, seen.inputs, strict=True)
    return cross_moment((exact - inputs, inputs) for exact, inputs in pairs)


def cross_moment(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Y^T X / n [rows, columns] of activations Y [tokens, rows] and X [tokens, columns] in parts."""
    import torch

    total, tokens = torch.zeros(1, 1), 0
    for left, right in pairs:
        if not tokens:
            total = torch.zeros(left.shape[1], right.shape[1])
        total.addmm_(left.T, right)
        tokens += len(right)
    return total / tokens


def compensated(weight: torch.Tensor, seen: Seen, drift: torch.Tensor, hessian: Hessian) -> torch.Tensor:
    """The weights that do best with the inputs there are, before rounding.

    They shall give what the checkpoint's own do with its own inputs E, and what the residual stream that this is added
    to lacks, R: with Y = W (E - X) + R, min |W X + Y - V X|^2 has the solution V = W + Y X^T (X X^T)^-1. The damped H
    leaves W where little is known. Without R this is the aim of GPTAQ (Li et al. 2025, arXiv:2504.02692), in closed
    form. Few tokens would fit noise: V - W is shrunk by what of Y it would explain on other text.
    """
    lacking = weight @ drift
    if seen.residual_drift is not None:
        pairs = zip(seen.residual_drift, seen.inputs, strict=True)
        lacking += cross_moment(pairs)
    change = lacking @ hessian.inverse
    explained = float((lacking * change).sum()) / max(_lacking_energy(weight, seen), 1e-30)
    return weight + shrinkage(explained, sum(map(len, seen.inputs)), weight.shape[1]) * change


def shrinkage(explained: float, tokens: int, columns: int) -> float:
    """Adjusted over plain R^2 (Ezekiel 1930), 0 to 1, of a regression on `columns` that explains a share of 0 to 1."""
    if tokens <= columns or explained <= 0:
        return 0.0
    adjusted = 1 - (1 - explained) * tokens / (tokens - columns)
    return min(max(adjusted / explained, 0.0), 1.0)


def _lacking_energy(weight: torch.Tensor, seen: Seen) -> float:
    """Sum over the rows of the mean square of Y, on some of the tokens."""
    every = -(-sum(map(len, seen.inputs)) // _ENERGY_TOKENS)
    total, tokens = 0.0, 0
    for index, inputs in enumerate(seen.inputs):
        found = (seen.exact[index][::every] - inputs[::every]) @ weight.T
        if seen.residual_drift is not None:
            found += seen.residual_drift[index][::every]
        total += float(found.square().sum())
        tokens += len(found)
    return total / tokens


class Hessian:
    """H of one layer's inputs, damped until its inverse has a Cholesky factor."""

    def __init__(self, matrix: torch.Tensor, name: str) -> None:
        import torch

        self.importance = matrix.diagonal().clone()
        mean = float(self.importance.mean()) or 1.0  # inputs that are all zero leave plain rounding
        self.order = self.importance.argsort(descending=True)
        for damping in _DAMPING:
            self.matrix = matrix.clone()
            self.matrix.diagonal().add_(damping * mean)
            ordered = self.matrix[self.order][:, self.order].double()
            factor, failed = torch.linalg.cholesky_ex(ordered)
            if failed:
                continue
            inverse = torch.cholesky_inverse(factor)
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed and torch.isfinite(upper).all():
                self.inverse_factor = upper.float()
                back = self.order.argsort()
                self.inverse = inverse[back][:, back].float()
                return
        raise InputError(
            "singular-hessian",
            f"the calibration inputs of {name} give a singular Hessian at damping {_DAMPING[-1]}",
            "calibrate on more or other traces, or use --method rtn",
        )


def quantize_layer(weight: torch.Tensor, hessian: Hessian, name: str = "weight") -> QuantizedTensor:
    """Quantize a float32 weight [rows, columns] to 4 bits so that its error under `hessian` is small."""
    scales = search_scales(weight, hessian.importance, name)
    integers = _round_columns(weight, scales, hessian)
    for _ in range(_REFINEMENTS):
        scales = _refine_scales(weight, integers, scales, hessian.matrix)
        integers = _refine_integers(weight, integers, scales, hessian.matrix)
    return from_blocks(to_blocks(integers), scales, 4)


def search_scales(weight: torch.Tensor, importance: torch.Tensor, name: str = "weight") -> torch.Tensor:
    """Scales [rows, blocks] with the least rounding error, weighted by each column's `importance`.

    Tried are the largest weight at either end of the grid and parts of it, each moved to the scale that fits the
    integers it leads to best.
    """
    import torch

    blocks = to_blocks(weight, name)
    weights = importance.reshape(1, -1, BLOCK_SIZE)

    def error_of(scales: torch.Tensor, integers: torch.Tensor) -> torch.Tensor:
        return (integers * scales[..., None]).sub_(blocks).square_().mul_(weights).sum(-1)

    best = block_scales(blocks, 4, name)
    least = error_of(best, nearest_integers(blocks, best, 4))
    end = blocks.abs().amax(-1) / 8
    for shrink in _SHRINKS:
        for candidate in (end * shrink, -end * shrink):
            integers = nearest_integers(blocks, candidate, 4)
            weighted = integers * weights
            fitted = (weighted * blocks).sum(-1) / (weighted * integers).sum(-1).clamp_min_(1e-30)
            fitted = round_to_float16(fitted, name)
            error = error_of(fitted, nearest_integers(blocks, fitted, 4))
            better = error < least
            best, least = torch.where(better, fitted, best), torch.where(better, error, least)
    return best


def _round_columns(weight: torch.Tensor, scales: torch.Tensor, hessian: Hessian) -> torch.Tensor:
    """GPTQ proper: float32 integers [rows, columns]."""
    import torch

    order, factor = hessian.order, hessian.inverse_factor
    remaining = weight[:, order]
    column_scales = scales.repeat_interleave(BLOCK_SIZE, 1)[:, order]
    inverse_scales = (1.0 / column_scales).nan_to_num(0.0, 0.0, 0.0)
    low, high = limits(4)
    integers = torch.empty_like(remaining)
    for start in range(0, weight.shape[1], _COLUMNS):
        stop = min(start + _COLUMNS, weight.shape[1])
        part, errors = remaining[:, start:stop].T.contiguous(), []
        for offset in range(stop - start):
            column = start + offset
            rounded = (part[offset] * inverse_scales[:, column]).round_().clamp_(low, high)
            integers[:, column] = rounded
            error = (part[offset] - rounded * column_scales[:, column]) / factor[column, column]
            part[offset + 1 :].addr_(factor[column, column + 1 : stop], error, alpha=-1)
            errors.append(error)
        remaining[:, stop:] -= torch.stack(errors, 1) @ factor[start:stop, stop:]
    return integers[:, order.argsort()]


def _refine_scales(
    weight: torch.Tensor, integers: torch.Tensor, scales: torch.Tensor, matrix: torch.Tensor
) -> torch.Tensor:
    """The scales [rows, blocks] with the least error for given integers: one linear system a row."""
    import torch

    at_once = max(1, _SYSTEM_ENTRIES // scales.shape[1] ** 2)
    parts = [part.split(at_once) for part in (weight @ matrix, integers, scales)]
    return torch.cat([_solve_scales(*rows, matrix=matrix) for rows in zip(*parts, strict=True)])


def _solve_scales(
    products: torch.Tensor, integers: torch.Tensor, scales: torch.Tensor, *, matrix: torch.Tensor
) -> torch.Tensor:
    """As above for some rows; `products` are their weights times H."""
    import torch

    rows, count = scales.shape
    blocks = integers.reshape(rows, count, BLOCK_SIZE)
    right = (products.reshape(blocks.shape) * blocks).sum(-1)
    left = torch.empty(rows, count, count)
    for index in range(count):
        columns = blocks[:, index] @ matrix[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE]
        left[:, index] = (columns.reshape(blocks.shape) * blocks).sum(-1)
    diagonal = left.diagonal(dim1=1, dim2=2)
    empty = diagonal <= 0  # a block of zeros: any scale will do
    diagonal.add_(1e-6 * diagonal.mean(-1, keepdim=True) + empty)
    solved = torch.linalg.solve(left.double(), right.double()).float()
    return torch.where(empty, scales, round_to_float16(solved))


def _refine_integers(
    weight: torch.Tensor, integers: torch.Tensor, scales: torch.Tensor, matrix: torch.Tensor
) -> torch.Tensor:
    """Coordinate descent: each column to the integers with the least error, all others fixed."""
    import torch

    columns = weight.shape[1]
    column_scales = scales.repeat_interleave(BLOCK_SIZE, 1)
    steps = (1.0 / column_scales).nan_to_num(0.0, 0.0, 0.0) / matrix.diagonal()
    low, high = limits(4)
    gradient = (weight - integers * column_scales) @ matrix
    refined = torch.empty_like(integers)
    for start in range(0, columns, _COLUMNS):
        stop = min(start + _COLUMNS, columns)
        part, changes = gradient[:, start:stop].T.contiguous(), []
        for offset in range(stop - start):
            column = start + offset
            before = integers[:, column]
            after = (before + part[offset] * steps[:, column]).round_().clamp_(low, high)
            change = (after - before) * column_scales[:, column]
            part.addr_(matrix[start:stop, column], change, alpha=-1)
            refined[:, column] = after
            changes.append(change)
        gradient -= torch.stack(changes, 1) @ matrix[start:stop]
    return refined
