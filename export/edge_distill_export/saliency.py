"""How much each token of calibration text matters to what the model says, layer by layer: GPTQ weights them by it.

Where a layer's outputs for one token are off by e, the predictions change by 1/2 e'Fe nats to second order, with the
Fisher information F of these outputs. The squared gradient of one `fisher_noise` has the trace of F as its mean, and
GuidedQuant (Kim et al. 2025, arXiv:2505.07004) weights tokens by it. It is so uneven that of SmolLM2's value
projections one token in a hundred would count: here its root weights them, mixed with what is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from edge_distill_export.activations import Parts, pack
from edge_distill_export.calibration import Text
from edge_distill_export.module_state import frozen
from edge_distill_export.sensitivity import fisher_noise

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_EVEN = 0.2  # share of every token's weight that is the same for all


def token_weights(
    model: PreTrainedModel,
    texts: Sequence[Text],
    names: Sequence[str],
    advance: Callable[[], None],
    seed: int = 0,
) -> dict[str, Parts]:
    """Weights with mean 1 for the tokens of `texts`, in the rows of `pack`, by the names of linear layers.

    Predictions count behind the prompts alone. `advance` is called after each row. The model stays as it is.
    """
    import torch

    packed = pack(texts)
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Parts] = {name: [] for name in names}
    start = model.get_input_embeddings()
    # without it no gradient would flow: the weights take none
    handles = [start.register_forward_hook(lambda module, inputs, output: output.requires_grad_())]
    for name in names:
        module = model.get_submodule(name.removesuffix(".weight"))
        handles.append(module.register_forward_hook(_watch(found[name])))
    try:
        with frozen(model), torch.enable_grad():
            for row, count in enumerate(packed.filled):
                logits = model(
                    packed.tokens[row : row + 1, :count],
                    position_ids=packed.positions[row : row + 1, :count],
                    use_cache=False,
                    logits_to_keep=packed.predicting[row, :count].nonzero()[:, 0],
                ).logits[0]
                logits.backward(fisher_noise(logits.detach(), generator).to(logits.dtype))
                advance()
    finally:
        for handle in handles:
            handle.remove()
    return {name: _tempered(squares) for name, squares in found.items()}


def _watch(squares: Parts) -> Callable[[Any, Any, torch.Tensor], None]:
    """A hook that appends the squared gradient of a layer's outputs, float32 [tokens]."""

    def keep(gradient: torch.Tensor) -> None:
        squares.append(gradient[0].float().square().sum(-1))

    return lambda module, inputs, output: output.register_hook(keep) and None


def _tempered(squares: Parts) -> Parts:
    roots = [part.sqrt() for part in squares]
    mean = sum(float(part.sum()) for part in roots) / sum(map(len, roots))
    return [part * ((1 - _EVEN) / mean) + _EVEN for part in roots]
