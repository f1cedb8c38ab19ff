"""A random two-layer llama in both formats."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_distill_export.checkpoint import Checkpoint
from edge_distill_runtime import Model, load
from edge_distill_runtime.engines.backend import Backend
from tests.random_models import random_checkpoint, variant_named
from tests.runtime.bundles import write_manifest, write_model


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    model, tokenizer = random_checkpoint(variant_named("llama-tied-gqa"))
    return Checkpoint(model, tokenizer, "tiny", {})


@pytest.fixture(scope="session")
def bundles(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of complete bundles by format; tests must not change them."""
    result = {}
    for kind in ("gguf", "onnx"):
        directory = tmp_path_factory.mktemp("bundles") / kind
        write_model(directory, checkpoint, kind)
        write_manifest(directory, kind)
        result[kind] = directory
    return result


@pytest.fixture(scope="session", params=["gguf", "onnx"])
def model(request: pytest.FixtureRequest, bundles: dict[str, Path]) -> Iterator[Model]:
    """The tiny bundle, loaded, in one format after the other."""
    with load(bundles[request.param], threads=1) as loaded:
        yield loaded


@pytest.fixture
def backend(model: Model) -> Backend:
    return model.backend
