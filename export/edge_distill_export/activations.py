"""One forward pass over calibration text, in which every linear layer can be looked at and replaced in turn.

Layers are visited in the order of computation, each with the inputs that the layers before it really produced, so
a layer that is replaced (quantized) shapes what all later ones see. The model is left as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_distill_export.calibration import Text
from edge_distill_export.families import embedding_names
from edge_distill_export.grid import QuantizedTensor

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Visit = Callable[[str, "torch.Tensor", "list[torch.Tensor]"], "torch.Tensor | None"]
"""(parameter name, weight [rows, columns], inputs [tokens, columns] in parts) -> the weight to use, or None."""


def visit_linears(
    model: PreTrainedModel,
    texts: Sequence[Text],
    names: Sequence[str],
    visit: Visit,
    embeddings: Mapping[str, QuantizedTensor] | None = None,
) -> None:
    """Run the decoder once over all texts and call `visit` just before each layer in `names` computes.

    Layers that read the same activations (query, key and value) get the same list object. `embeddings`, by
    parameter name, stand in for the model's own while tokens are looked up. Memory: the activations of one
    decoder layer for all texts.
    """
    import torch

    tokens, positions, filled = _packed(texts)
    shared: dict[str, Any] = {"activations": None, "inputs": None}

    def before(name: str, module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        if shared["activations"] is not arguments[0]:
            parts = [row[:count] for row, count in zip(arguments[0], filled, strict=True)]
            shared["activations"], shared["inputs"] = arguments[0], parts
        replacement = visit(name, module.weight.data, shared["inputs"])
        if replacement is not None:
            module.weight.data, originals[name] = replacement, module.weight.data

    def after(name: str, module: Any) -> None:
        if name in originals:
            module.weight.data = originals.pop(name)

    originals: dict[str, torch.Tensor] = {}
    modules = {name: model.get_submodule(name.removesuffix(".weight")) for name in names}
    hooks = []
    try:
        for name, module in modules.items():
            hooks.append(module.register_forward_pre_hook(lambda m, args, n=name: before(n, m, args)))
            hooks.append(module.register_forward_hook(lambda m, args, out, n=name: after(n, m)))
        with torch.inference_mode():
            # in float32 only while they are looked up: they are large
            with replaced_weights(model, {name: e.dequantize() for name, e in (embeddings or {}).items()}):
                embedded = model.get_input_embeddings()(tokens)
            model.get_decoder()(inputs_embeds=embedded, position_ids=positions, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
        for name in list(originals):
            after(name, modules[name])


@contextmanager
def replaced_weights(model: PreTrainedModel, weights: Mapping[str, np.ndarray]) -> Iterator[None]:
    """Compute with other weights, by parameter name, inside the `with` block."""
    import torch

    parameters = dict(model.named_parameters())
    originals = {name: parameters[name].data for name in weights}
    try:
        for name, weight in weights.items():
            parameters[name].data = torch.from_numpy(weight)
        yield
    finally:
        for name, original in originals.items():
            parameters[name].data = original


@contextmanager
def computing_with(model: PreTrainedModel, tensors: Mapping[str, QuantizedTensor]) -> Iterator[None]:
    """Compute with quantized layers; each is in float32 only while it computes, embedding and head all the time."""
    import torch

    modules = {name: model.get_submodule(name.removesuffix(".weight")) for name in tensors}
    tables = {name: tensors[name].dequantize() for name in embedding_names(model) if name in tensors}
    layers = {name: module for name, module in modules.items() if name not in tables}
    originals = {name: module.weight.data for name, module in layers.items()}

    def before(name: str, module: Any) -> None:
        module.weight.data = torch.from_numpy(tensors[name].dequantize())

    def after(name: str, module: Any) -> None:
        module.weight.data = originals[name]

    hooks = []
    try:
        for name, module in layers.items():
            hooks.append(module.register_forward_pre_hook(lambda m, args, n=name: before(n, m)))
            hooks.append(module.register_forward_hook(lambda m, args, out, n=name: after(n, m)))
        with replaced_weights(model, tables):
            yield
    finally:
        for hook in hooks:
            hook.remove()
        for name, module in layers.items():
            after(name, module)


def importance_matrix(
    model: PreTrainedModel, texts: Sequence[Text], names: Sequence[str], advance: Callable[[], None]
) -> dict[str, np.ndarray]:
    """Mean squared input of every column of each layer in `names`: float32 [columns] by parameter name."""
    importance = {}

    def visit(name: str, weight: torch.Tensor, inputs: list[torch.Tensor]) -> None:
        total = sum(part.square().sum(0) for part in inputs)
        importance[name] = (total / sum(map(len, inputs))).numpy()
        advance()

    visit_linears(model, texts, names, visit)
    return importance


def _packed(texts: Sequence[Text]) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Token ids [rows, longest] with several texts in a row, their positions, and how many tokens a row has.

    Positions start at 0 with each text, by which transformers keeps the texts of a row apart.
    """
    import torch

    length = max(len(text.tokens) for text in texts)
    rows: list[list[list[int]]] = []
    for text in sorted(texts, key=lambda text: -len(text.tokens)):  # first fit, longest first
        row = next((row for row in rows if sum(map(len, row)) + len(text.tokens) <= length), None)
        if row is None:
            rows.append(row := [])
        row.append(text.tokens)
    tokens = torch.zeros(len(rows), length, dtype=torch.long)
    positions = torch.arange(length).repeat(len(rows), 1)
    for index, row in enumerate(rows):
        start = 0
        for part in row:
            stop = start + len(part)
            tokens[index, start:stop] = torch.tensor(part)
            positions[index, stop:] = torch.arange(length - stop)
            start = stop
    return tokens, positions, [sum(map(len, row)) for row in rows]
