"""Repair after quantization: a quantized student learns from the float32 one on fresh text, on the grid throughout.

Stage by stage: block scales with the integers frozen, then the integers with the scales frozen; norms learn in both.
The loss is KL(P || Q) of the
next-token distributions of checkpoint and student. Text that nothing learns from decides: the best state of all is
kept, which is the one before the repair where nothing was better.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edge_distill_export.activations import computing_with, replaced_weights
from edge_distill_export.families import embedding_names, norm_names
from edge_distill_export.grid import QuantizedTensor
from edge_distill_export.module_state import frozen, recomputed_layers, swapped_parameters
from edge_distill_export.parity import References
from edge_distill_export.progress import stage
from edge_distill_export.repair_text import Batch, RepairText, batches, sign_weights
from edge_distill_runtime.engines.allocator import give_back_freed_memory

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

Stages = Literal["both", "scales", "integers"]
_SCALES_SHARE = 0.5  # of the steps where both stages are asked for
_WARM_UP = 5  # steps in which the rates rise
_EVERY = 20  # steps between two looks at the deciding text
_PATIENCE = 3  # looks without a new best, then a stage ends


@dataclass(frozen=True)
class State:
    """A student on the grid."""

    tensors: Mapping[str, QuantizedTensor]
    """All that are quantized, by parameter name."""
    norms: Mapping[str, np.ndarray]
    """Norms' weights where they differ from the checkpoint's, float32."""
    kl: float
    """Mean KL divergence on the deciding text, in nats a token."""


@dataclass(frozen=True)
class Repaired:
    """The best state, and how it came about."""

    tensors: dict[str, QuantizedTensor]
    norms: dict[str, np.ndarray]
    record: dict[str, Any]
    """For the lineage: steps and deciding KL divergence by stage, text, seed."""


def repair_tensors(
    model: PreTrainedModel,
    tensors: Mapping[str, QuantizedTensor],
    text: RepairText,
    tokenizer: PreTrainedTokenizerFast,
    *,
    steps: int,
    stages: Stages = "both",
    seed: int = 0,
    folder: Path | None = None,
) -> Repaired:
    """Let `tensors` learn for `steps` updates in all; embedding, head and what has 8 bits stay as they are.

    The model's own weights are the teacher, and stay. The same seed on the same machine gives the same bits. The
    teacher's distributions on the deciding text, some 400 MB for 50,000 tokens of vocabulary, lie in `folder`.
    """
    weights = sign_weights(tokenizer, model.config.vocab_size)
    source = batches(text.texts, weights, seed)
    record: dict[str, Any] = {"steps": steps, "seed": seed, **text.to_dict(), "stages": []}
    with TemporaryFile(dir=folder) as file, frozen(model):
        with stage("Computing the checkpoint's logits", len(text.deciding)) as advance:
            references = References(model, text.deciding, file, advance)
        best = State(tensors, {}, math.inf)
        best = replace(best, kl=_measure(model, references, best))
        record["deciding_kl_before"] = best.kl
        for kind, count in _shares(stages, steps).items():
            if not count:
                continue
            best, taken = _run(model, references, source, best, kind, count)
            record["stages"].append({"stage": kind, "steps": taken, "deciding_kl": best.kl})
    record["deciding_kl"] = best.kl
    return Repaired(dict(best.tensors), dict(best.norms), record)


def _shares(stages: Stages, steps: int) -> dict[str, int]:
    """How many steps each stage takes."""
    if stages != "both":
        return {stages: steps}
    first = round(_SCALES_SHARE * steps)
    return {"scales": first, "integers": steps - first}


def _run(
    model: PreTrainedModel,
    references: References,
    source: Iterator[Batch],
    start: State,
    kind: str,
    steps: int,
) -> tuple[State, int]:
    """The best state of one stage, `start` among them, and after how many steps it ended."""
    student = _Student(model, start, kind)
    best, lowest, stale = start, math.inf, 0
    with stage(f"Repairing {kind}", steps) as advance:
        for step in range(1, steps + 1):
            student.learn(next(source), step, steps)
            advance()
            if step % _EVERY and step < steps:
                continue
            found = student.state()
            found = replace(found, kl=_measure(model, references, found))
            if found.kl < best.kl:
                best = found
            # against the stage's own lowest: the first steps at the full rate may cost more than they bring
            lowest, stale = (found.kl, 0) if found.kl < lowest else (lowest, stale + 1)
            if stale == _PATIENCE:
                break
    return best, step


def _measure(model: PreTrainedModel, references: References, state: State) -> float:
    with computing_with(model, state.tensors), replaced_weights(model, state.norms):
        return references.compare_model(model).overall.kl_mean


class _Student:
    """What a stage trains, and one step of it."""

    def __init__(self, model: PreTrainedModel, start: State, kind: str) -> None:
        import torch

        from edge_distill_export.grid_training import Integers, Norm, Pace, Scales, multiplies_bf16

        self._model, self._start, self._pace = model, start, Pace()
        self._fast = multiplies_bf16()
        dtype = torch.bfloat16 if self._fast else torch.float32
        self._layers: dict[str, Scales | Integers] = {}
        self._fixed: dict[str, torch.Tensor] = {}
        tables = embedding_names(model)
        for name, tensor in start.tensors.items():
            if tensor.bits == 8 or name in tables:
                self._fixed[name] = torch.from_numpy(tensor.dequantize()).to(dtype)
            elif kind == "scales":
                self._layers[name] = Scales(tensor, self._pace, dtype)
            else:
                self._layers[name] = Integers(tensor, self._pace, dtype)
        self._norms = {
            name: Norm(torch.from_numpy(values), self._pace) for name, values in _norms(model, start).items()
        }

    def state(self) -> State:
        """Integers, scales and norms as they are now."""
        trained = {name: layer.tensor() for name, layer in self._layers.items()}
        norms = {name: norm.values() for name, norm in self._norms.items()}
        return State({**self._start.tensors, **trained}, norms, math.inf)

    def learn(self, batch: Batch, step: int, steps: int) -> None:
        """One update of everything that this stage trains."""
        import torch

        self._pace.step = step
        decay = 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))
        self._pace.factor = decay * min(1.0, step / _WARM_UP)
        inputs = {"position_ids": batch.positions, "use_cache": False, "logits_to_keep": batch.before}
        with self._precision(), torch.no_grad():
            found = self._model(input_ids=batch.tokens, **inputs).logits[0]
            expected = found.float().log_softmax(-1)
        leaves = {name: part.weight for name, part in (*self._layers.items(), *self._norms.items())}
        # until the backward pass is over: it computes each decoder layer again
        with swapped_parameters(self._model, {**self._fixed, **leaves}), recomputed_layers(self._model):
            with self._precision():
                embedded = self._model.get_input_embeddings()(batch.tokens).float()
                logits = self._model(inputs_embeds=embedded, **inputs).logits[0]
            logits.backward(_gradient(expected, logits.detach(), batch.weights))
        give_back_freed_memory()  # batches differ in length, and leave holes of every size

    def _precision(self) -> AbstractContextManager[Any]:
        import torch

        return torch.autocast("cpu", torch.bfloat16) if self._fast else nullcontext()


def _norms(model: PreTrainedModel, state: State) -> dict[str, np.ndarray]:
    return {
        name: state.norms.get(name, model.get_parameter(name).detach().numpy()) for name in norm_names(model)
    }


def _gradient(expected: torch.Tensor, logits: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Of the weighted mean of KL(P || Q) by the logits of Q: by hand it needs no graph over the vocabulary.

    `expected` are P's log-probabilities [predicted, vocabulary].
    """
    difference = logits.float().softmax(-1).sub_(expected.exp_())
    return difference.mul_((weights / weights.sum())[:, None]).to(logits.dtype)
