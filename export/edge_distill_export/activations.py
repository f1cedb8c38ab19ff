"""Forward passes over calibration text in which every linear layer's inputs can be seen, and its weight replaced.

Layers come in the order of computation, each with the inputs that the layers before it really produced, so a layer
that is replaced (quantized) shapes what all later ones see. The model is left as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from edge_distill_export.calibration import Text
from edge_distill_export.families import embedding_names
from edge_distill_export.grid import QuantizedTensor

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_ADDED = (".o_proj.weight", ".down_proj.weight")  # to the residual stream

Parts = list["torch.Tensor"]
"""Activations [tokens, columns] in parts."""
Visit = Callable[[str, Parts], None]
"""(parameter name, inputs)"""
Replace = Callable[[str, "torch.Tensor", "Seen"], "torch.Tensor"]
"""(parameter name, weight [rows, columns], what reaches the layer) -> the weight to use."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What reaches one linear layer when the layers before it are replaced, and when none is."""

    inputs: Parts
    exact: Parts
    """The checkpoint's own inputs; `inputs` where only the replaced layers compute."""
    residual_drift: Parts | None
    """By how much the layer's outputs [tokens, rows] would have to grow for the residual stream to be the
    checkpoint's behind it; None where they are not simply added to it, or nobody knows."""


def visit_linears(model: PreTrainedModel, texts: Sequence[Text], names: Sequence[str], visit: Visit) -> None:
    """Run the decoder once over all texts and call `visit` for each layer in `names`."""
    import torch

    tokens, positions, filled = _packed(texts)

    def observe(name: str, module: Any, inputs: torch.Tensor) -> torch.Tensor:
        visit(name, _parts(inputs, filled))
        return torch.nn.functional.linear(inputs, module.weight, module.bias)

    with torch.inference_mode(), _computing(model, names, observe):
        model.get_decoder()(input_ids=tokens, position_ids=positions, use_cache=False)


def replace_linears(
    model: PreTrainedModel,
    texts: Sequence[Text],
    names: Sequence[str],
    replace: Replace,
    embeddings: Mapping[str, QuantizedTensor],
    *,
    exact: bool = True,
) -> None:
    """The same with each layer's weight replaced; with `exact` every text runs as the checkpoint computes it, too.

    Layers that read the same activations (query, key and value) get the same object. `embeddings`, by parameter
    name, stand in for the model's own where tokens are looked up. Memory: the activations of one decoder layer for all
    texts, twice with `exact`.
    """
    import torch

    tokens, positions, filled = _packed(texts)
    runs = 2 if exact else 1
    last: dict[str, Any] = {"activations": None}

    def weights(name: str, module: Any, activations: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The layer's own weight for the first half of the activations where there are two, and its replacement."""
        if last["activations"] is not activations:
            halves = [_parts(half, filled) for half in activations.chunk(runs)]
            drift = streams.drift_behind(name) if exact else None
            lacking = None if drift is None else _parts(drift, filled)
            last.update(activations=activations, seen=Seen(halves[-1], halves[0], lacking))
        replacement = replace(name, module.weight.data, last["seen"])
        if name.endswith(_ADDED):  # no other layer reads these: an MLP's are the most of all memory
            last.update(activations=None, seen=None)
        return (module.weight.data, replacement) if exact else (replacement,)

    def compute(name: str, module: Any, activations: torch.Tensor) -> torch.Tensor:
        used = weights(name, module, activations)
        outputs = activations.new_empty(*activations.shape[:-1], len(used[0]))
        for weight, part, out in zip(used, activations.chunk(runs), outputs.chunk(runs), strict=True):
            torch.matmul(part, weight.T, out=out)
        return outputs if module.bias is None else outputs.add_(module.bias)

    with (
        torch.inference_mode(),
        _ResidualStreams(model) as streams,
        _computing(model, names, compute),
        _lean(model, names, weights),
    ):
        embedded = [model.get_input_embeddings()(tokens)] if exact else []
        # in float32 only while they are looked up: they are large
        with replaced_weights(model, {name: e.dequantize() for name, e in embeddings.items()}):
            embedded.append(model.get_input_embeddings()(tokens))
        inputs = torch.cat(embedded)
        embedded.clear()
        model.get_decoder()(inputs_embeds=inputs, position_ids=positions.repeat(runs, 1), use_cache=False)


@contextmanager
def _lean(
    model: PreTrainedModel,
    names: Sequence[str],
    weights: Callable[[str, Any, torch.Tensor], tuple[torch.Tensor, ...]],
) -> Iterator[None]:
    """Gates are multiplied row by row: half of what is the most of all memory here."""
    import torch
    from torch.nn.functional import linear

    def forward(prefix: str, mlp: Any, hidden: torch.Tensor) -> torch.Tensor:
        gate, up = mlp.gate_proj, mlp.up_proj
        gates = weights(f"{prefix}.gate_proj.weight", gate, hidden)
        ups = weights(f"{prefix}.up_proj.weight", up, hidden)
        product = hidden.new_empty(*hidden.shape[:-1], len(ups[0]))
        halves = zip(gates, ups, hidden.chunk(len(ups)), product.chunk(len(ups)), strict=True)
        for gate_weight, up_weight, part, out in halves:
            for row, values in zip(part, out, strict=True):
                opened = mlp.act_fn(linear(row, gate_weight, gate.bias))
                torch.mul(opened, linear(row, up_weight, up.bias), out=values)
        result: torch.Tensor = mlp.down_proj(product)
        return result

    mlps = {
        f"model.layers.{index}.mlp": layer.mlp
        for index, layer in enumerate(model.get_decoder().layers)
        if f"model.layers.{index}.mlp.gate_proj.weight" in names
    }
    try:
        for prefix, mlp in mlps.items():
            mlp.forward = partial(forward, prefix, mlp)
        yield
    finally:
        for mlp in mlps.values():
            vars(mlp).pop("forward", None)


class _ResidualStreams:
    """Watches the residual stream in front of every attention and MLP: the inputs of their norms."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._layers = model.get_decoder().layers
        # granite multiplies what it adds to the stream
        self._multiplier = float(getattr(model.config, "residual_multiplier", 1.0))
        self._last: torch.Tensor | None = None

    def __enter__(self) -> Self:
        norms = []
        for layer in self._layers:
            if not hasattr(
                layer, "pre_feedforward_layernorm"
            ):  # gemma3 normalizes outputs before it adds them
                norms += [layer.input_layernorm, layer.post_attention_layernorm]
        self._handles = [norm.register_forward_pre_hook(self._keep) for norm in norms]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(self, _: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        self._last = arguments[0]

    def drift_behind(self, name: str) -> torch.Tensor | None:
        """What the outputs of the layer `name` would have to make up for; None when they are not added."""
        if self._last is None or not name.endswith(_ADDED):
            return None
        exact, found = self._last.chunk(2)
        return (exact - found).div_(self._multiplier)


def _parts(activations: torch.Tensor, filled: Sequence[int]) -> Parts:
    """What is no padding of activations [rows, longest, columns]: views."""
    return [row[:count] for row, count in zip(activations, filled, strict=True)]


@contextmanager
def _computing(
    model: PreTrainedModel, names: Sequence[str], compute: Callable[[str, Any, torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """Inside the `with` block `compute(name, module, inputs)` is what the linear layers in `names` give."""
    modules = {name: model.get_submodule(name.removesuffix(".weight")) for name in names}
    try:
        for name, module in modules.items():
            module.forward = partial(compute, name, module)
        yield
    finally:
        for module in modules.values():
            vars(module).pop("forward", None)


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

    tables = {name: tensors[name].dequantize() for name in embedding_names(model) if name in tensors}

    def compute(name: str, module: Any, inputs: torch.Tensor) -> torch.Tensor:
        weight = torch.from_numpy(tensors[name].dequantize())
        return torch.nn.functional.linear(inputs, weight, module.bias)

    names = [name for name in tensors if name not in tables]
    with _computing(model, names, compute), replaced_weights(model, tables):
        yield


def importance_matrix(
    model: PreTrainedModel, texts: Sequence[Text], names: Sequence[str], advance: Callable[[], None]
) -> dict[str, np.ndarray]:
    """Mean squared input of every column of each layer in `names`: float32 [columns] by parameter name."""
    importance = {}

    def visit(name: str, inputs: Parts) -> None:
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
