"""Prefill, step, batched step and fork of SmolLM2-135M in libllama, or of the bundle EDGE_DISTILL_BUNDLE."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_distill_runtime import load
from edge_distill_runtime.bundles.gguf_check import validate_gguf
from edge_distill_runtime.engines.backend import Backend
from edge_distill_runtime.engines.llama import LlamaBackend
from edge_distill_runtime.engines.machine import usable_cpus

PROMPT = [100 + 7 * index for index in range(200)]


@pytest.fixture(scope="module")
def backend(smollm2: Path) -> Iterator[Backend]:
    engine: Backend
    if bundle := os.environ.get("EDGE_DISTILL_BUNDLE"):
        engine = load(bundle).backend
    else:
        validate_gguf(smollm2)
        engine = LlamaBackend(smollm2, context=1024, threads=usable_cpus())
    yield engine
    engine.close()


def test_prefill(benchmark: Any, backend: Backend) -> None:
    """200 tokens."""

    def prefill() -> int:
        sequence = backend.prefill(PROMPT)
        length = sequence.length
        backend.release(sequence)
        return length

    assert benchmark.pedantic(prefill, rounds=5, warmup_rounds=1) == len(PROMPT)


@pytest.mark.parametrize("batch", [1, 8])
def test_step(benchmark: Any, backend: Backend, batch: int) -> None:
    """One token for each of `batch` sequences behind a shared prefix of 200 tokens."""
    parent = backend.prefill(PROMPT)
    sequences = backend.fork(parent, batch)
    tokens = list(range(100, 100 + batch))

    def step() -> None:
        backend.step(sequences, tokens)
        for sequence in sequences:
            backend.rewind(sequence, len(PROMPT))

    benchmark.pedantic(step, rounds=50, warmup_rounds=5)
    assert [sequence.length for sequence in sequences] == [len(PROMPT)] * batch
    for sequence in [parent, *sequences]:
        backend.release(sequence)


def test_fork(benchmark: Any, backend: Backend) -> None:
    """Eight forks of 200 tokens."""
    parent = backend.prefill(PROMPT)

    def fork() -> list[int]:
        children = backend.fork(parent, 8)
        lengths = [child.length for child in children]
        for child in children:
            backend.release(child)
        return lengths

    assert benchmark.pedantic(fork, rounds=20, warmup_rounds=2) == [len(PROMPT)] * 8
    backend.release(parent)
