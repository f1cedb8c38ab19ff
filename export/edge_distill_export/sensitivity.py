r"""How much each tensor's rounding costs, measured for all tensors and pairs of tensors at once.

For a model p and weights that are off by E = sum_i E_i (one E_i a tensor), the KL divergence to second order is

    KL = 1/2 sum_t d_t' F_t d_t = 1/2 sum_ij C_ij,    C_ij = sum_t d_ti' F_t d_tj,    F_t = diag(p_t) - p_t p_t'

where d_ti is what E_i does to the logits of token t: the Fisher information along the errors that quantization really
makes. With random signs e, v_t = (diag(s) - p s') e with s = sqrt(p) has the covariance F_t, so the products of
a_i = sum_t v_t' d_ti and a_j have the mean C_ij: one backward pass of v gives a sample for every pair, whatever the
number of tensors. Signs vary less than tokens drawn from p, whose score is nearly always 0 where p is sure.
Off the diagonal C tells which errors add up and which cancel.

A layer y = W x needs no gradient of W: its part of a_i is the sum over all positions of (dy)' (E_i x), where E_i x is
computed once for all draws of a text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_distill_export.calibration import Text
from edge_distill_export.families import EMBEDDING
from edge_distill_export.grid import QuantizedTensor

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

__all__ = ["Sensitivity", "draw_products", "fisher_noise"]


@dataclass(frozen=True)
class Sensitivity:
    """Samples of what the errors of quantized tensors do to the log-probability of text."""

    names: tuple[str, ...]
    """The parameters."""
    products: np.ndarray
    """float64 [draws, names]: a_i of each draw, in nats."""
    tokens: np.ndarray
    """int64 [draws]: how many predicted tokens each draw's text has."""

    def matrix(self) -> np.ndarray:
        """float64 [names, names]: C / 2 in nats a token; the sum over a set of errors is its KL divergence."""
        return self.products.T @ self.products / (2 * self.tokens.sum())

    def noise(self) -> float:
        """The share of the squares off the diagonal that sampling alone explains, 0 to 1.

        The shrinkage intensity towards a diagonal of Schäfer and Strimmer 2005, table 2, target D.
        """
        squares = self.products**2
        draws = len(squares)
        if draws < 2:
            return 1.0
        products = self.products.T @ self.products / draws
        variances = (squares.T @ squares / draws - products**2) / (draws - 1)
        off = ~np.eye(len(self.names), dtype=bool)
        total = float((products[off] ** 2).sum())
        return float(np.clip(variances[off].sum() / total, 0.0, 1.0)) if total else 1.0

    def shrunk(self) -> np.ndarray:
        """`matrix` with its pairs multiplied by 1 - `noise`: a search must not live on chance."""
        matrix = self.matrix()
        return (1 - self.noise()) * matrix + self.noise() * np.diag(matrix.diagonal())


def draw_products(
    model: PreTrainedModel, text: Text, tensors: Mapping[str, QuantizedTensor], *, draws: int, seed: int
) -> np.ndarray:
    """float64 [draws, tensors]: samples of a_i over the reasoning and answer of one text.

    `tensors` are what the parameters of these names would be rounded to. The model's weights stay as they are.
    """
    import torch

    products = np.zeros((draws, len(tensors)))
    generator = torch.Generator().manual_seed(seed)
    rows = len(text.tokens) - text.prompt
    with _projections(model, tensors) as into, torch.enable_grad():
        output = model(torch.tensor([text.tokens]), use_cache=False, logits_to_keep=rows + 1)
        logits = output.logits[0, :-1]
        for draw in range(draws):
            into.row = products[draw]
            noise = fisher_noise(logits.detach(), generator)
            logits.backward(noise.to(logits.dtype), retain_graph=draw < draws - 1)
    return products


def fisher_noise(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """float32 [tokens, vocab]: random, its covariance is the Fisher information of each token's `logits`."""
    import torch

    chances = logits.float().softmax(-1)
    signs = torch.randint(0, 2, chances.shape, generator=generator, dtype=torch.int8).mul_(2).sub_(1)
    signed = chances.sqrt().mul_(signs)
    return signed.sub_(chances.mul_(signed.sum(-1, keepdim=True)))


class _Row:
    """Where the parts of a_i are added up."""

    row: np.ndarray


@contextmanager
def _projections(model: PreTrainedModel, tensors: Mapping[str, QuantizedTensor]) -> Iterator[_Row]:
    """While the block runs, a backward pass adds each error's part to `row`; gradients of weights are not kept."""
    import torch

    into = _Row()
    parameters = dict(model.named_parameters())
    before = {name: parameter.requires_grad for name, parameter in parameters.items()}
    handles: list[Any] = []

    def error(name: str) -> torch.Tensor:
        return torch.from_numpy(tensors[name].dequantize()).sub_(parameters[name].detach())

    def project_output(name: str, index: int, inputs: torch.Tensor, output: torch.Tensor) -> None:
        moved = torch.nn.functional.linear(inputs.detach(), error(name))
        output.register_hook(lambda gradient: _add(into.row, index, gradient, moved))

    def project_weight(parameter: torch.Tensor, index: int, moved: torch.Tensor) -> None:
        assert parameter.grad is not None
        _add(into.row, index, parameter.grad, moved)
        parameter.grad = None

    try:
        model.requires_grad_(False)
        # Without it no gradient would flow: the weights of the layers take none.
        start = model.get_input_embeddings().register_forward_hook(lambda m, args, out: out.requires_grad_())
        handles.append(start)
        for index, name in enumerate(tensors):
            if name == EMBEDDING:  # looked up, and multiplied with where it is tied
                parameters[name].requires_grad_()
                moved = error(name)
                hook = parameters[name].register_post_accumulate_grad_hook(
                    lambda parameter, index=index, moved=moved: project_weight(parameter, index, moved)
                )
            else:
                hook = model.get_submodule(name.removesuffix(".weight")).register_forward_hook(
                    lambda m, args, out, name=name, index=index: project_output(name, index, args[0], out)
                )
            handles.append(hook)
        yield into
    finally:
        for handle in handles:
            handle.remove()
        for name, parameter in parameters.items():
            parameter.requires_grad_(before[name])
            parameter.grad = None


def _add(row: np.ndarray, index: int, gradient: torch.Tensor, moved: torch.Tensor) -> None:
    row[index] += float(gradient.reshape(-1) @ moved.reshape(-1))
