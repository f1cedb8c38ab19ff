"""The runtime's tiny bundles, and the peers' scripts."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.conftest import bundles, checkpoint, model

__all__ = ["PEERS", "bundles", "checkpoint", "model", "peers_on_path"]

PEERS = Path(__file__).parents[2] / "benchmarks" / "peers"


@pytest.fixture(scope="module")
def peers_on_path() -> Iterator[None]:
    """The scripts import each other by their names, as scripts do."""
    sys.path.insert(0, str(PEERS))
    yield
    sys.path.remove(str(PEERS))
    for name in {path.stem for path in PEERS.glob("*.py")} & sys.modules.keys():
        del sys.modules[name]
