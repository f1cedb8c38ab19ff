"""What several tests of the export share."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.random_models import Variant, save_checkpoint, variant_named

# The held-out traces are long in a vocabulary of 512.
STUDENT = Variant(
    "llama", "student", "smollm", {**variant_named("llama-tied-gqa").config, "max_position_embeddings": 1024}
)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one mebibyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "student", STUDENT)


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("traces") / "traces.jsonl"
    lines = [
        json.dumps(
            {"problem": f"What is {n} * 4?", "reasoning": f"{n} * 4 = {4 * n}", "answer": f"It is {4 * n}."}
        )
        for n in range(20, 40)
    ]
    path.write_text("\n".join(lines))
    return path
