"""A tiny model that has learned a few sums by heart, so that its answers mean something, and its artifacts."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from edge_distill_bench.problem import Problem
from edge_distill_export.checkpoint import load_checkpoint
from edge_distill_runtime.bundles.gguf_header import read_gguf_header
from edge_distill_runtime.text.chat import ReasoningMarkers, render
from tests.export.bundle_files import reseal, source_of, write_bundle
from tests.random_models import Variant, random_checkpoint
from tests.runtime.bundles import CHAT

SUMS = [(a, b) for a in range(2, 6) for b in range(11, 15)]
PROBLEMS = [
    Problem(f"{a}+{b}", "sums", f"{a} + {b}", str(a + b), {}, f"{a} + {b} = {a + b}") for a, b in SUMS
]

_SMALL = Variant(
    "llama",
    "small",
    "smollm",
    {
        "tie_word_embeddings": True,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
)
_MARKERS = ReasoningMarkers("<think>", "</think>")


def written(problem: Problem) -> tuple[str, str]:
    """Prompt and solution, as the model is taught."""
    prompt = render(CHAT, [{"role": "user", "content": problem.problem}])
    return prompt, f"<think>\n{problem.solution}\n</think>\n\n\\boxed{{{problem.answer}}}<|im_end|>"


def teach(most_steps: int = 400) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Cross-entropy on all solutions until all are known."""
    model, tokenizer = random_checkpoint(_SMALL)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
    model.config.architectures = [type(model).__name__]
    pairs = [[tokenizer(part, add_special_tokens=False).input_ids for part in written(p)] for p in PROBLEMS]
    longest = max(len(prompt) + len(said) for prompt, said in pairs)
    tokens = torch.zeros(len(pairs), longest, dtype=torch.long)
    labels = torch.full_like(tokens, -100)
    for row, (prompt, said) in enumerate(pairs):
        tokens[row, : len(prompt) + len(said)] = torch.tensor(prompt + said)
        labels[row, len(prompt) : len(prompt) + len(said)] = torch.tensor(said)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(most_steps):
        loss = model(input_ids=tokens, labels=labels).loss
        if loss < 0.02:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), tokenizer


def write_artifacts(folder: Path) -> None:
    """`student` (onnx:fp32), `q8_0` and `int8` of a taught model."""
    model, tokenizer = teach()
    model.save_pretrained(folder / "checkpoint")
    tokenizer.save_pretrained(folder / "checkpoint")
    source = source_of(load_checkpoint(folder / "checkpoint"))
    for target, name in (("onnx:fp32", "student"), ("gguf:q8_0", "q8_0"), ("onnx:int8", "int8")):
        write_bundle(source, target, folder / name)
        reseal(folder / name, chat=CHAT, reasoning=_MARKERS)


def swap_tensors(bundle: Path, copy: Path, one: str, two: str) -> None:
    """A copy of a GGUF bundle with the data of two tensors exchanged; its hashes fit."""
    spans, data = _opened(bundle)
    (a, size), (b, other) = spans[one], spans[two]
    assert size == other
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]
    _write(bundle, copy, data)


def zero_scales(bundle: Path, copy: Path, name: str) -> None:
    """A copy of a Q8_0 bundle with all scales of one tensor at zero: blocks of a float16 and 32 bytes."""
    spans, data = _opened(bundle)
    start, size = spans[name]
    blocks = np.frombuffer(data, np.uint8, size, start).reshape(-1, 34)
    blocks[:, :2] = 0
    _write(bundle, copy, data)


def _opened(bundle: Path) -> tuple[dict[str, tuple[int, int]], bytearray]:
    path = bundle / "model.gguf"
    spans = {tensor.name: (tensor.offset, tensor.size) for tensor in read_gguf_header(path).tensors}
    return spans, bytearray(path.read_bytes())


def _write(bundle: Path, copy: Path, data: bytearray) -> None:
    shutil.copytree(bundle, copy)
    (copy / "model.gguf").write_bytes(data)
    reseal(copy)
