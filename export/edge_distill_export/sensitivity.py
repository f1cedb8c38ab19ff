r"""How much each tensor's rounding costs, measured for all tensors and pairs of tensors at once.

For a model p and weights that are off by E = sum_i E_i (one E_i a tensor), the KL divergence to second order is

    KL = 1/2 sum_t E_y~p_t (d log p_t(y) . E)^2 = 1/2 sum_ij C_ij,
    C_ij = sum_t E_y (d log p_t(y) . E_i) (d log p_t(y) . E_j)

where d is the gradient in the weights: the Fisher information along the errors that quantization really makes. The
scores of different tokens are uncorrelated (each has mean 0 given what stands before it), so the product of
a_i = (d sum_t log p_t(y_t)) . E_i and a_j, with y_t drawn from the model itself, has the mean C_ij: one backward pass
over one text gives a sample for every pair, whatever the number of tensors. Off the diagonal C tells which errors add
up and which cancel, as those of GPTQ do on purpose: each layer is fitted to the errors before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_distill_export.calibration import Text

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

__all__ = ["Sensitivity", "measure_sensitivity"]


@dataclass(frozen=True)
class Sensitivity:
    """Samples of what errors of the weights do to the log-probability of text."""

    names: tuple[str, ...]
    """Of the errors: a parameter each, or another name for an alternative precision of one."""
    products: np.ndarray
    """float64 [draws, names]: a_i of each draw, in nats."""
    tokens: np.ndarray
    """int64 [draws]: how many tokens each draw's text has."""

    def matrix(self) -> np.ndarray:
        """float64 [names, names]: C / 2 in nats a token; the sum over a set of errors is the KL divergence."""
        return self.products.T @ self.products / (2 * self.tokens.sum())


def measure_sensitivity(
    model: PreTrainedModel,
    texts: Sequence[Text],
    errors: Mapping[str, tuple[str, np.ndarray]],
    *,
    draws: int,
    seed: int,
    advance: Callable[[], None],
) -> Sensitivity:
    """Draw `draws` continuations of the texts' tokens and project their gradients on the errors.

    `errors` are (parameter name, float32 error of its shape) by name. Only reasoning and answer are drawn and counted.
    The model's weights stay as they are; its parameters' gradients are used one at a time, so that no second copy of
    the model is held.
    """
    import torch

    parameters = dict(model.named_parameters())
    by_parameter: dict[str, list[int]] = {}
    for index, (name, _) in enumerate(errors.values()):
        by_parameter.setdefault(name, []).append(index)
    flat = [torch.from_numpy(error).reshape(-1) for _, error in errors.values()]
    products, tokens = np.zeros((draws, len(errors))), np.zeros(draws, np.int64)
    generator = torch.Generator().manual_seed(seed)
    before = {name: parameter.requires_grad for name, parameter in parameters.items()}
    handles = []
    try:
        row = products[0]

        def project(parameter: torch.Tensor, indices: Sequence[int]) -> None:
            assert parameter.grad is not None
            gradient = parameter.grad.reshape(-1)
            for index in indices:
                row[index] = float(gradient @ flat[index])
            parameter.grad = None

        for name, parameter in parameters.items():
            parameter.requires_grad_(name in by_parameter)
            if name in by_parameter:
                hook = parameter.register_post_accumulate_grad_hook(
                    lambda parameter, indices=by_parameter[name]: project(parameter, indices)
                )
                handles.append(hook)
        for draw in range(draws):
            row, text = products[draw], texts[draw % len(texts)]
            tokens[draw] = len(text.tokens) - text.prompt
            logits = model(input_ids=torch.tensor([text.tokens]), use_cache=False).logits[0]
            scores = logits[text.prompt - 1 : -1].float().log_softmax(-1)
            drawn = torch.multinomial(scores.detach().exp(), 1, generator=generator)
            scores.gather(-1, drawn).sum().backward()
            advance()
    finally:
        for handle in handles:
            handle.remove()
        for name, parameter in parameters.items():
            parameter.requires_grad_(before[name])
            parameter.grad = None
    return Sensitivity(tuple(errors), products, tokens)
