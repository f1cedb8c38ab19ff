"""A task that a tiny student learns in seconds, and one that has learned it badly: it mostly errs, and knows better."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from edge_distill.distil.distill import train
from edge_distill.distil.recipe import Recipe
from edge_distill.traces.trace import Trace, make_trace
from tests.distil.sums import write
from tests.random_tokenizers import random_tokenizer

TRAINING = {
    "batch_size": 16,
    "micro_batch_size": 16,
    "learning_rate": 3e-3,
    "precision": "fp32",
    "device": "cpu",
    "log_every": 5,
}


def problems(path: Path, count: int) -> Path:
    """What comes after a digit, each text different; a file of them as `traces` reads it."""
    lines = [json.dumps({"problem": _text(n), "answer": str(n % 8 + 1)}) for n in range(count)]
    path.write_text("\n".join(lines), "utf-8")
    return path


def _text(number: int) -> str:
    return f"Item {number // 8}: what comes after {number % 8}?"


def student(folder: Path, steps: int) -> Path:
    """A student whose samples are right in two of five, right by a wrong step in one, and wrong in two."""
    tokenizer = random_tokenizer("smollm")
    config = AutoConfig.for_model(
        "llama",
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.1,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(folder / "fresh")
    tokenizer.save_pretrained(folder / "fresh")
    write(folder / "mixed.jsonl", [_trace(n, kind) for n in range(64) for kind in range(5)])
    content = {
        "student": str(folder / "fresh"),
        "out": str(folder / "badly"),
        "traces": [str(folder / "mixed.jsonl")],
        "context": 128,
        "steps": {"refuted": 1},
        "training": {**TRAINING, "learning_rate": 5e-3, "steps": steps},
    }
    train(Recipe.model_validate(content))
    return folder / "badly" / "student"


def _trace(number: int, kind: int) -> Trace:
    digit = number % 8
    added, found = ((1, 1), (1, 1), (2, 1), (2, 2), (2, 2))[kind]
    said = f"{digit} + {added} = {digit + found}"
    return make_trace(_text(number), said, str(digit + found), task="successors", seed=5 * number + kind)
