"""Teacher forcing for the comparison: what texts begin with is computed once, and no logits change by it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edge_distill_export.calibration import Text
from edge_distill_export.checkpoint import load_checkpoint
from edge_distill_runtime import load
from edge_distill_runtime.engines.backend import Backend
from edge_distill_runtime.engines.forcing import Forcing
from tests.export.bundle_files import source_of, write_bundle
from tests.random_models import save_checkpoint, variant_named

SYSTEM = list(range(20, 60))
TEXTS = [
    Text([*SYSTEM, 5, 6, *range(100, 190)], prompt=42, answer=80),  # 90 tokens: several chunks
    Text([*SYSTEM, 5, 6, 200, 201], prompt=42, answer=43),  # the same prompt
    Text([*SYSTEM, 7, 200], prompt=41, answer=41),  # one token after the prompt
    Text([9, 8, 7, 6, 5], prompt=2, answer=3),  # nothing shared
    Text([9, 300, 301], prompt=1, answer=2),  # a prompt of one token, which is always computed
]


@pytest.fixture(scope="module", params=["gguf:f16", "onnx:fp32"])
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    folder = tmp_path_factory.mktemp("parity")
    saved = save_checkpoint(folder / "student", variant_named("llama-tied-gqa"))
    write_bundle(source_of(load_checkpoint(saved)), request.param, folder / "bundle")
    with load(folder / "bundle") as model:
        yield model.backend


class Counting:
    """A backend that notes how many tokens it computes."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.computed: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def prefill(self, tokens: list[int]) -> Any:
        self.computed.append(len(tokens))
        return self._backend.prefill(tokens)

    def extend(self, sequence: Any, tokens: list[int]) -> None:
        self.computed.append(len(tokens))
        self._backend.extend(sequence, tokens)

    def verify(self, sequence: Any, tokens: list[int]) -> Any:
        self.computed.append(len(tokens))
        return self._backend.verify(sequence, tokens)


def test_every_row_is_as_if_the_text_stood_alone(backend: Backend) -> None:
    alone = [
        np.concatenate([chunk.copy() for chunk in backend.teacher_force(text.tokens[:-1], text.prompt - 1)])
        for text in TEXTS
    ]
    counting = Counting(backend)
    forced = Forcing(counting)  # type: ignore[arg-type]
    for text, expected in zip(TEXTS, alone, strict=True):
        found = np.concatenate([chunk.copy() for chunk in forced.logits(text.tokens, text.prompt)])
        assert found.shape == (len(text.tokens) - text.prompt, backend.vocab_size)
        # other batches sum in another order, and libllama rounds activations and cache to float16 (0.024 was
        # seen); a wrong past changes logits by 1 and more
        np.testing.assert_allclose(found, expected, atol=0.1)
    forced.close()
    # 41 of the first prompt's 42 tokens are kept for the second text, 40 for the third
    assert sum(counting.computed) == (42 + 89) + (1 + 1) + (1 + 0) + (2 + 2) + (1 + 1)


def test_the_sequence_is_released(backend: Backend) -> None:
    for _ in range(backend.max_sequences + 1):
        forced = Forcing(backend)
        next(forced.logits(TEXTS[1].tokens, TEXTS[1].prompt))
        forced.close()
    sequences = [backend.prefill([1]) for _ in range(backend.max_sequences)]
    assert len({sequence.slot for sequence in sequences}) == backend.max_sequences
    for sequence in sequences:
        backend.release(sequence)
