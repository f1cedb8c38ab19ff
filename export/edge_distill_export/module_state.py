"""A model in another state for a while: its own parameters come back when the block ends, however it ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """The model's own parameters take no gradient."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, needed in before:
            parameter.requires_grad_(needed)


@contextmanager
def swapped_parameters(model: PreTrainedModel, leaves: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Compute with other tensors of any type, by parameter name, and lead gradients to them.

    Every module that shares a parameter, as a tied head does, gets its tensor.
    """
    wanted = {id(model.get_parameter(name)): leaf for name, leaf in leaves.items()}
    places = [
        (module._parameters, key, parameter)
        for module in model.modules()
        for key, parameter in module._parameters.items()
        if id(parameter) in wanted
    ]
    try:
        for parameters, key, parameter in places:
            parameters[key] = wanted[id(parameter)]
        yield
    finally:
        for parameters, key, parameter in places:
            parameters[key] = parameter


@contextmanager
def recomputed_layers(model: PreTrainedModel) -> Iterator[None]:
    """Keep only the inputs of decoder layers for the backward pass, which computes the rest again.

    It has to run inside the block, too.
    """
    from torch.utils.checkpoint import checkpoint

    layers: list[Any] = list(model.get_decoder().layers)
    try:
        for layer in layers:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)
