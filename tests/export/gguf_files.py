"""Random checkpoints written as GGUF and read back through libllama."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from edge_distill_export.checkpoint import Checkpoint
from edge_distill_export.families import linear_names
from edge_distill_export.grid import QuantizedTensor, quantize_rtn
from edge_distill_runtime.bundles.gguf_header import GGUFHeader, read_gguf_header
from edge_distill_runtime.engines.llama import LlamaBackend
from tests.numerics import kl_divergence
from tests.random_models import CONTEXT_LENGTH, Variant, random_checkpoint

TEXT = (
    "Anna has 12 apples and gives 3 of them to Ben. How many are left? 12 - 3 = 9. 你好 "
    "def area(width):\n    return 5 * 7 and 8 more friends of the rivers"
)


def checkpoint_of(variant: Variant) -> Checkpoint:
    model, tokenizer = random_checkpoint(variant)
    return wrap(model, tokenizer, str(variant))


def wrap(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, name: str = "random") -> Checkpoint:
    return Checkpoint(model, tokenizer, name, {"license": "apache-2.0"})


def tokens_of(checkpoint: Checkpoint) -> list[int]:
    """64 tokens at most: four of the sliding windows of the random Gemma."""
    ids: list[int] = checkpoint.tokenizer(TEXT).input_ids[:64]
    assert len(ids) > 55
    return ids


def libllama_logits(path: Path, tokens: Sequence[int]) -> np.ndarray:
    """Logits [tokens, vocab] of the file at `path`, teacher-forced."""
    backend = LlamaBackend(path, context=CONTEXT_LENGTH, threads=1)
    try:
        return np.concatenate([chunk.copy() for chunk in backend.teacher_force(tokens)])
    finally:
        backend.close()


def assert_close(reference: np.ndarray, measured: np.ndarray, limit: float, what: str) -> None:
    """Mean KL(reference || measured) within `limit`; prints the largest and the mean difference."""
    divergence = kl_divergence(reference, measured)
    difference = np.abs(reference - measured)
    report = (
        f"{what}: KL mean {divergence.mean():.2e}, max {divergence.max():.2e}; "
        f"logits differ by {difference.max():.2e} at most, {difference.mean():.2e} on average"
    )
    print(report)
    assert divergence.mean() <= limit, report


def quantize_all(checkpoint: Checkpoint, bits: int) -> dict[str, QuantizedTensor]:
    """Every linear layer rounded to `bits`, embedding and head to 8 bits, and written back to the model."""
    parameters = dict(checkpoint.model.named_parameters())
    tables = [name for name in ("model.embed_tokens.weight", "lm_head.weight") if name in parameters]
    quantized = {}
    for name in [*linear_names(checkpoint.config), *tables]:
        weight = parameters[name].data
        quantized[name] = quantize_rtn(weight, 8 if name in tables else bits, name)
        weight.copy_(weight.new_tensor(quantized[name].dequantize()))
    return quantized


def header(path: Path) -> GGUFHeader:
    return read_gguf_header(path)


def tensor_bytes(path: Path, name: str) -> np.ndarray:
    """The bytes of one tensor, uint8."""
    info = next(tensor for tensor in read_gguf_header(path).tensors if tensor.name == name)
    return np.fromfile(path, dtype=np.uint8, count=info.size, offset=info.offset)


def metadata(path: Path) -> dict[str, Any]:
    return read_gguf_header(path).metadata
