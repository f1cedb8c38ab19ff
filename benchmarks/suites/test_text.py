"""What happens to every token beside the model: tokenizer, sampling and grammar, over SmolLM2's 49,152 tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from edge_distill_bench.prompts import PROBLEM
from edge_distill_runtime.bundles.found import Texts
from edge_distill_runtime.bundles.opening import find
from edge_distill_runtime.engines.backend import Floats
from edge_distill_runtime.generation.constraint import AnswerFormat, ConstraintCompiler
from edge_distill_runtime.generation.sampling import Sampler, SamplingOptions
from edge_distill_runtime.text.detokenizer import encode

VOCABULARY = 49_152
SCHEMA = {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]}
SAMPLINGS = {
    "greedy": SamplingOptions(),
    "temperature": SamplingOptions(temperature=0.7, seed=0),
    "top-k, top-p": SamplingOptions(temperature=0.7, top_k=40, top_p=0.95, seed=0),
    "penalty": SamplingOptions(temperature=0.7, top_p=0.95, repetition_penalty=1.1, seed=0),
}


@pytest.fixture(scope="module")
def texts(smollm2: Path) -> Texts:
    return find(smollm2).read_texts()


@pytest.fixture(scope="module")
def logits() -> Floats:
    """Spread as a language model's are: one likely token, a few hundred that count."""
    values = np.random.default_rng(0).normal(0, 3, VOCABULARY).astype(np.float32)
    values[1234] = values.max() + 1
    return values


def test_encode(benchmark: BenchmarkFixture, texts: Texts) -> None:
    ids = benchmark(encode, texts.tokenizer, PROBLEM)
    assert texts.detokenizer.decode(ids) == PROBLEM


def test_decode(benchmark: BenchmarkFixture, texts: Texts) -> None:
    ids = encode(texts.tokenizer, PROBLEM)
    assert benchmark(texts.detokenizer.decode, ids) == PROBLEM


@pytest.mark.parametrize("name", SAMPLINGS)
def test_sampling(benchmark: BenchmarkFixture, logits: Floats, name: str) -> None:
    sampler = Sampler(SAMPLINGS[name], range(200))
    token = benchmark(sampler.sample, logits)
    assert token == 1234 if name == "greedy" else logits[token] > 0


def test_grammar(benchmark: BenchmarkFixture, texts: Texts, logits: Floats) -> None:
    """The first tokens of an answer that must be JSON of a schema: compiled before, masked and accepted in turn."""
    compiler = ConstraintCompiler(
        texts.detokenizer.bytes_of,
        lambda text: encode(texts.tokenizer, text),
        vocab_size=VOCABULARY,
        stop_ids=[2],
        special_ids=[],
    )
    start = compiler.compile(AnswerFormat.json_schema(SCHEMA))
    answer = encode(texts.tokenizer, '{"answer":')

    def constrained() -> int:
        constraint = start.copy()
        for token in answer:
            assert np.isfinite(constraint.mask(logits)[token])
            constraint.accept(token)
        return int(constraint.mask(logits).argmax())

    token = benchmark(constrained)
    assert texts.detokenizer.decode([token]).strip(" \n\t\r-0123456789") == ""
