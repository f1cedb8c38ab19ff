"""What is read of a GGUF file before an engine may see it: SmolLM2-135M, 272 tensors, 49,152 tokens."""

from __future__ import annotations

from pathlib import Path

from pytest_benchmark.fixture import BenchmarkFixture

from edge_distill_runtime.bundles.files import sha256_of
from edge_distill_runtime.bundles.gguf_check import validate_gguf


def test_validate_gguf(benchmark: BenchmarkFixture, smollm2: Path) -> None:
    assert len(benchmark(validate_gguf, smollm2).tensors) == 272


def test_sha256(benchmark: BenchmarkFixture, smollm2: Path) -> None:
    size, digest = benchmark.pedantic(sha256_of, (smollm2,), rounds=3, warmup_rounds=1)
    assert size == smollm2.stat().st_size
    assert len(digest) == 64
