"""Random checkpoints written as ONNX and run by plain ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import onnxruntime
import torch

from edge_distill_export.checkpoint import Checkpoint
from edge_distill_export.families import linear_names
from edge_distill_export.grid import QuantizedTensor, quantize_rtn
from tests.random_models import VOCAB_SIZE, Variant, random_checkpoint

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"  # spelled out: not the code's own


def checkpoint_of(variant: Variant) -> Checkpoint:
    model, tokenizer = random_checkpoint(variant)
    return Checkpoint(model, tokenizer, str(variant), {})


def random_tokens(count: int) -> list[int]:
    return np.random.default_rng(count).integers(0, VOCAB_SIZE, count).tolist()


def quantize_all(checkpoint: Checkpoint, bits: int) -> dict[str, QuantizedTensor]:
    """Linear layers at `bits`, embedding and head at 8 bits, all rounded to nearest."""
    parameters = dict(checkpoint.model.named_parameters())
    wanted = dict.fromkeys(linear_names(checkpoint.config), bits)
    wanted |= {name: 8 for name in (EMBEDDING, HEAD) if name in parameters}
    return {name: quantize_rtn(parameters[name].detach(), width, name) for name, width in wanted.items()}


@torch.no_grad()
def put_back(checkpoint: Checkpoint, quantized: Mapping[str, QuantizedTensor]) -> None:
    """Replace the checkpoint's weights by what the grid holds of them."""
    parameters = dict(checkpoint.model.named_parameters())
    for name, tensor in quantized.items():
        parameters[name].copy_(torch.from_numpy(tensor.dequantize()))


def initializers(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a written model, read back from its data file."""
    graph = onnx_ir.load(path).graph
    return {
        name: value.const_value.numpy()
        for name, value in graph.initializers.items()
        if value.const_value is not None
    }


def nodes(path: Path, operator: str) -> list[onnx_ir.Node]:
    return [node for node in onnx_ir.load(path).graph if node.op_type == operator]


class Decoder:
    """The graph with its key/value cache, as ONNX Runtime hands it out and takes it back."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1  # threads that wait for tiny layers only cost time
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.outputs = [output.name for output in self.session.get_outputs()]
        self.cache: dict[str, Any] = {
            value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
            for value in self.session.get_inputs()
            if value.name.startswith("past_key_values")
        }
        self.length = 0

    def feed(self, tokens: Sequence[int], **more: np.ndarray) -> np.ndarray:
        """Logits [tokens, vocab] of the next `tokens`; `more` are further inputs."""
        self.length += len(tokens)
        inputs = {
            "input_ids": np.array([tokens], np.int64),
            "attention_mask": np.ones((1, self.length), np.int64),
            **self.cache,
            **more,
        }
        results = dict(zip(self.outputs, self.session.run(None, inputs), strict=True))
        logits: np.ndarray = results.pop("logits")[0]
        self.cache = {name.replace("present", "past_key_values"): value for name, value in results.items()}
        return logits


def onnx_logits(path: Path, tokens: Sequence[int], prefill: int | None = None) -> np.ndarray:
    """Logits [tokens, vocab]: all at once, or `prefill` tokens at once and the others one by one."""
    decoder = Decoder(path)
    prefill = len(tokens) if prefill is None else prefill
    parts = [decoder.feed(tokens[:prefill]), *(decoder.feed([token]) for token in tokens[prefill:])]
    return np.concatenate(parts)
