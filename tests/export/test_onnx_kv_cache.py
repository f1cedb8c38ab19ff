"""An int8 cache in an ONNX bundle, opened and used through the runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_distill_export.checkpoint import Checkpoint
from edge_distill_export.onnx_kv_cache import quantize_onnx_cache
from edge_distill_runtime import InputError, load
from edge_distill_runtime.bundles.opening import open_model
from tests.numerics import kl_divergence, reference_logits
from tests.random_models import VOCAB_SIZE, random_checkpoint, variant_named
from tests.runtime.bundles import write_manifest, write_model

TOKENS = [int(token) for token in np.random.default_rng(0).integers(3, VOCAB_SIZE, 150)]
TEXTS = [[int(t) for t in np.random.default_rng(n).integers(3, VOCAB_SIZE, 100)] for n in (1, 2)]


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint(*random_checkpoint(variant_named("llama-tied-gqa")), "tiny", {})


@pytest.fixture(scope="module")
def bundle(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bundle") / "float"
    write_model(directory, checkpoint, "onnx")
    write_manifest(directory, "onnx")
    quantize_onnx_cache(directory, directory.parent / "int8", TEXTS)
    return directory.parent / "int8"


@pytest.mark.parametrize("isolate", [False, True])
def test_it_runs_forks_rewinds_and_restores(bundle: Path, checkpoint: Checkpoint, isolate: bool) -> None:
    expected = reference_logits(checkpoint.model, TOKENS)
    opened = open_model(bundle, threads=1, isolate=isolate)
    backend = opened.backend
    assert (opened.kv_cache, opened.manifest.kv.bytes_per_token) == ("int8", 2 * 2 * 2 * 32)
    rows = np.concatenate([chunk.copy() for chunk in backend.teacher_force(TOKENS)])
    divergence = kl_divergence(expected, rows).mean()
    assert 1e-6 < divergence < 0.05  # of another size than the float cache's, and far from a wrong position's
    sequence = backend.prefill(TOKENS[:60])
    forks = backend.fork(sequence, 2)
    stepped = backend.step([sequence, *forks], [TOKENS[60]] * 3).copy()
    assert np.abs(stepped - rows[60]).max() < 0.3
    backend.rewind(forks[0], 40)
    backend.extend(forks[0], TOKENS[40:100])
    assert np.abs(forks[0].logits - rows[99]).max() < 0.3
    restored = backend.restore(backend.save(sequence), 61)
    pair = backend.step([sequence, restored], [TOKENS[61]] * 2)
    np.testing.assert_allclose(pair[0], pair[1], atol=1e-4)
    backend.close()


def test_what_has_no_float_cache_is_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="with values of 1 bytes"):
        quantize_onnx_cache(bundle, tmp_path / "again", TEXTS)
    with pytest.raises(InputError, match="0 texts were given"):
        quantize_onnx_cache(bundle.parent / "float", tmp_path / "none", [])
    with pytest.raises(InputError, match="is int8, not f32"):
        load(bundle, threads=1, kv_cache="f32")
