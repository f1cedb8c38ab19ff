"""Thousands of damaged model files: opened or refused, never a signal, a hang or an untyped error.

`make fuzz` goes on where this ends.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edge_distill_runtime import load
from edge_distill_runtime.errors import BundleError
from tests.runtime.fuzz import Report, fuzz
from tests.runtime.fuzz_cases import Cases, write_sound_models

SEED = 20261
GGUF_MUTANTS, OTHER_MUTANTS = 1250, 500  # of each of the parts below: 5,000 and 2,000


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("fuzz") / "sound"
    write_sound_models(folder)
    return folder


def run(sound: Path, scratch: Path, group: str, numbers: range) -> Report:
    kept = scratch / "failures"
    report = fuzz(sound, scratch, kept, SEED, numbers, [group])
    assert not report.failures, "\n".join(report.failures)
    assert report.outcomes.total() == len(numbers)
    return report


@pytest.mark.parametrize("part", range(4))
def test_gguf(sound: Path, tmp_path: Path, part: int) -> None:
    numbers = range(part * GGUF_MUTANTS, (part + 1) * GGUF_MUTANTS)
    outcomes = run(sound, tmp_path, "gguf", numbers).outcomes
    # both sides of the gate are exercised
    assert outcomes["BundleError"] > GGUF_MUTANTS // 4
    assert outcomes["ok"] > GGUF_MUTANTS // 20


@pytest.mark.parametrize("group", ["onnx", "tokenizer", "genai", "manifest"])
def test_other_files(sound: Path, tmp_path: Path, group: str) -> None:
    outcomes = run(sound, tmp_path, group, range(OTHER_MUTANTS)).outcomes
    assert outcomes["BundleError"] > OTHER_MUTANTS // 5
    assert outcomes["ok"] > OTHER_MUTANTS // 20


def test_sound_models_open_and_mutants_repeat(sound: Path, tmp_path: Path) -> None:
    """Every original is whole, so that what is refused is refused for its damage; a number is always the same bytes."""
    models = sorted(sound.iterdir())
    for folder in models:
        with load(folder, threads=1) as model:
            assert len(model.generate("Anna", max_tokens=2).tokens) == 2
    assert {folder.name.split("-")[1] for folder in models} == {
        *("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3", "smollm3", "granite")
    }
    cases = Cases(sound, SEED)
    for number in (0, 17, 1234):
        first = cases.write(number, tmp_path / "first")
        again = cases.write(number, tmp_path / "again")
        file = cases[number].file
        folders = [path if path.is_dir() else path.parent for path in (first, again)]
        one, other = ((folder / file).read_bytes() for folder in folders)
        assert one == other != (sound / cases[number].model / file).read_bytes()


def test_token_ids_that_are_no_integers(sound: Path, tmp_path: Path) -> None:
    """Found by fuzzing: an added token whose id is an object."""
    folder = tmp_path / "genai"
    shutil.copytree(sound / "onnx-llama-tied-gqa-int4", folder)
    (folder / "edge_distill.json").unlink()
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"id": 0,', '"id": {"a": 1},', 1))
    with pytest.raises(BundleError, match="is no tokenizer"):
        load(folder, threads=1)
