"""A smaller model cut from a larger one: which layers and feed-forward channels to keep, and how to copy them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_distill_export.families import family_of
from edge_distill_runtime.errors import InputError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

    from edge_distill_export.calibration import Text

__all__ = [
    "block_influence",
    "channel_scores",
    "cut",
    "evenly_spaced",
    "most_influential",
    "smaller_config",
]

_PER_LAYER = ("layer_types", "no_rope_layers")
"""Settings of a configuration that hold one value for each layer."""


def evenly_spaced(layers: int, keep: int) -> tuple[int, ...]:
    """`keep` of `layers` indices, the first and the last among them, halves rounded up; one alone is the first."""
    if keep == 1:
        return (0,)
    return tuple((2 * i * (layers - 1) + keep - 1) // (2 * (keep - 1)) for i in range(keep))


def most_influential(influence: Sequence[float], keep: int) -> tuple[int, ...]:
    """The `keep` layers of the highest influence, in their order; of equals the earlier one."""
    ranked = sorted(range(len(influence)), key=lambda layer: (-influence[layer], layer))
    return tuple(sorted(ranked[:keep]))


def block_influence(model: PreTrainedModel, texts: Sequence[Text]) -> list[float]:
    """For each layer, 1 - the mean cosine similarity of the hidden states before and after it.

    Over all tokens of the texts: how much the layer turns what passes through it (ShortGPT, Men et al. 2024,
    arXiv:2403.03853).
    """
    import torch
    from torch.nn.functional import cosine_similarity

    decoder = model.get_decoder()
    totals = [0.0] * len(decoder.layers)

    def hook(index: int) -> Any:
        def measure(module: Any, arguments: tuple[Any, ...], output: Any) -> None:
            after = output[0] if isinstance(output, tuple) else output
            totals[index] += float((1 - cosine_similarity(arguments[0], after, dim=-1)).sum())

        return measure

    hooks = [layer.register_forward_hook(hook(index)) for index, layer in enumerate(decoder.layers)]
    try:
        with torch.inference_mode():
            for text in texts:
                decoder(input_ids=torch.tensor([text.tokens]), use_cache=False)
    finally:
        for handle in hooks:
            handle.remove()
    return [total / sum(len(text.tokens) for text in texts) for total in totals]


def channel_scores(model: PreTrainedModel, layer: int, mean_squares: np.ndarray | None) -> torch.Tensor:
    """How much each feed-forward channel of a layer matters: [channels].

    With `mean_squares`, its activations' mean squares on text, the size of what it adds to the hidden state: their
    root times the norm of its column in the down projection. Without, the product of the norms of its weights.
    """
    import torch

    mlp = model.get_decoder().layers[layer].mlp
    down = mlp.down_proj.weight.detach().norm(dim=0)
    if mean_squares is not None:
        return down * torch.from_numpy(mean_squares).sqrt()
    return down * torch.stack([part.norm(dim=1) for part in _gate_and_up(mlp)]).prod(0)


def _gate_and_up(mlp: Any) -> list[torch.Tensor]:
    """The weights of gate and up projection, [channels, hidden] each; Phi-3 holds them below each other."""
    if hasattr(mlp, "gate_up_proj"):
        return list(mlp.gate_up_proj.weight.detach().chunk(2))
    return [mlp.gate_proj.weight.detach(), mlp.up_proj.weight.detach()]


def smaller_config(
    config: PreTrainedConfig, layers: Sequence[int], ffn: int, hidden: int | None = None
) -> PreTrainedConfig:
    """The configuration with these layers and feed-forward width; `hidden` also changes the number of heads.

    Heads keep their width, and there are as many of them as `hidden` has room for.
    """
    settings = config.to_dict()
    for name in _PER_LAYER:
        if settings.get(name) is not None:
            settings[name] = [settings[name][layer] for layer in layers]
    settings["num_hidden_layers"] = len(layers)
    if "max_window_layers" in settings:  # layer_types, which stands beside it, decides
        settings["max_window_layers"] = min(settings["max_window_layers"], len(layers))
    settings["intermediate_size"] = ffn
    if hidden is not None:
        settings |= _heads(config, hidden)
    return type(config).from_dict(settings)


def _heads(config: PreTrainedConfig, hidden: int) -> dict[str, int]:
    """As many heads as a hidden size has room for, with the nearest number of key-value heads that divides them."""
    width = config.hidden_size // config.num_attention_heads
    if hidden % width or hidden < width:
        raise InputError(
            "bad-hidden",
            f"a hidden size of {hidden} is no multiple of {width}, the width of the teacher's heads",
            f"take {max(1, hidden // width) * width}",
        )
    heads = hidden // width
    wanted = heads * config.num_key_value_heads / config.num_attention_heads
    divisors = [number for number in range(1, heads + 1) if heads % number == 0]
    key_value = min(divisors, key=lambda number: abs(number - wanted))
    return {"hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": key_value}


def cut(model: PreTrainedModel, layers: Sequence[int], channels: Sequence[torch.Tensor]) -> PreTrainedModel:
    """A new float32 model of the layers in `layers`, each with its feed-forward `channels` (ascending indices).

    With all layers and channels it computes the same as the original, to the bit.
    """
    import torch
    from transformers import AutoModelForCausalLM

    family_of(model.config)
    config = smaller_config(model.config, layers, len(channels[0]))
    student = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    state = {}
    for name, weight in model.state_dict().items():
        if not name.startswith("model.layers."):
            state[name] = weight.clone()
    for index, (layer, kept) in enumerate(zip(layers, channels, strict=True)):
        prefix = f"model.layers.{layer}."
        for name, weight in model.state_dict().items():
            if name.startswith(prefix):
                inner = name.removeprefix(prefix)
                state[f"model.layers.{index}.{inner}"] = _kept_channels(inner, weight, kept).clone()
    student.load_state_dict(state, strict=True)
    student.config.architectures = model.config.architectures
    student.generation_config = model.generation_config
    return student.eval()


def _kept_channels(name: str, weight: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """A layer's parameter with only these feed-forward channels."""
    import torch

    if name == "mlp.down_proj.weight":
        return weight[:, kept]
    if name.startswith(("mlp.gate_proj.", "mlp.up_proj.")):
        return weight[kept]
    if name.startswith("mlp.gate_up_proj."):
        return weight[torch.cat([kept, kept + weight.shape[0] // 2])]
    return weight
