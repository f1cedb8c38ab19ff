"""A tiny model that has learned three problems by heart, as a checkpoint, a bundle and a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from edge_distill.traces.teachers.teacher import Request
from edge_distill_export.artifact import Source, prepare
from edge_distill_export.calibration import Trace, render_trace
from edge_distill_export.checkpoint import Checkpoint
from tests.random_models import CONTEXT_LENGTH, random_checkpoint, variant_named
from tests.runtime.bundles import write_manifest, write_model

LEARNED = {
    "2 + 2?": ("2 + 2 = 4\nso four", r"\boxed{4}"),
    "3 + 4?": ("3 + 4 = 7", r"\boxed{7}"),
    "6 / 2?": ("6 / 2 = 3\nso three\nthat is all", r"\boxed{3}"),
}
"""Reasoning and answer by question."""


@dataclass(frozen=True)
class Taught:
    """The model; its files must not be changed."""

    source: Source
    folder: Path
    bundle: Path
    gguf: Path


def question(text: str, seed: int = 0, reasoning: str = "") -> Request:
    return Request(({"role": "user", "content": text},), seed, reasoning)


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Taught:
    model, tokenizer = random_checkpoint(variant_named("llama-tied-gqa"))
    source = prepare(Checkpoint(model, tokenizer, "taught", {}), CONTEXT_LENGTH)
    texts = []
    for text, (reasoning, answer) in LEARNED.items():
        trace = Trace(({"role": "user", "content": text},), reasoning, answer)
        texts.append(render_trace(trace, source.style, tokenizer, CONTEXT_LENGTH))
    _learn(model, [torch.tensor([text.tokens]) for text in texts], [text.prompt for text in texts])

    root = tmp_path_factory.mktemp("taught")
    model.save_pretrained(root / "folder")
    tokenizer.save_pretrained(root / "folder")
    write_model(root / "bundle", source.checkpoint, "gguf")
    write_manifest(root / "bundle", "gguf", name="taught", stop_ids=source.stop_ids)
    return Taught(source, root / "folder", root / "bundle", root / "bundle" / "model.gguf")


def _learn(model: torch.nn.Module, rows: list[torch.Tensor], prompts: list[int]) -> None:
    """Until every answer is nearly certain."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(200):
        losses = []
        for row, prompt in zip(rows, prompts, strict=True):
            labels = row.clone()
            labels[:, :prompt] = -100
            loss = model(input_ids=row, labels=labels).loss
            loss.backward()
            losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
        if max(losses) < 0.002:
            return
    raise AssertionError(f"it did not learn: {losses}")
