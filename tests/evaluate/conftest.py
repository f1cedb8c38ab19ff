"""The runtime's tiny bundles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_distill_runtime import Model, load
from tests.runtime.conftest import bundles, checkpoint

__all__ = ["bundles", "checkpoint"]


@pytest.fixture(scope="session")
def model(bundles: dict[str, Path]) -> Iterator[Model]:
    """One of them, loaded: for its tokenizer and manifest."""
    with load(bundles["onnx"], threads=1) as loaded:
        yield loaded
