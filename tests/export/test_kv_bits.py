"""Bundles whose keys and values have 8 or 4 bits, made, opened and used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_distill_export.checkpoint import Checkpoint
from edge_distill_export.export import ExportResult, export
from edge_distill_export.kv_cache import quantize_onnx_cache
from edge_distill_export.plan import plan
from edge_distill_export.verify import verify
from edge_distill_runtime import InputError, load
from edge_distill_runtime.bundles.manifest import read_manifest, verify_files
from edge_distill_runtime.bundles.opening import open_model
from edge_distill_runtime.engines.kv_cache import default_token_bytes
from tests.numerics import kl_divergence, reference_logits
from tests.random_models import VOCAB_SIZE, random_checkpoint, save_checkpoint, variant_named
from tests.runtime.bundles import write_manifest, write_model

TOKENS = [int(token) for token in np.random.default_rng(0).integers(3, VOCAB_SIZE, 150)]
NARROW = replace(
    variant_named("llama-tied-gqa"), config={**variant_named("llama-tied-gqa").config, "head_dim": 16}
)
TEXTS = [[int(t) for t in np.random.default_rng(n).integers(3, VOCAB_SIZE, 100)] for n in (1, 2)]


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint(*random_checkpoint(variant_named("llama-tied-gqa")), "tiny", {})


@pytest.fixture(scope="module")
def bundle(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bundle") / "float"
    write_model(directory, checkpoint, "onnx")
    write_manifest(directory, "onnx")
    manifest = quantize_onnx_cache(directory, TEXTS)
    verify_files(directory, manifest)
    return directory


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


def test_what_has_no_float_cache_is_refused(bundle: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="with values of 1 bytes"):
        quantize_onnx_cache(bundle, TEXTS)
    write_model(tmp_path, checkpoint, "onnx")
    write_manifest(tmp_path, "onnx")
    with pytest.raises(InputError, match="0 texts were given"):
        quantize_onnx_cache(tmp_path, [])
    with pytest.raises(InputError, match="is int8, not f32"):
        load(bundle, threads=1, kv_cache="f32")


def test_an_export_makes_records_and_verifies_it(student: Path, traces: Path, tmp_path: Path) -> None:
    calls = [
        export(str(student), to=["gguf:q8_0", "onnx:int8"], kv_bits=8, calibrate=traces, out=tmp_path / "8"),
        export(str(student), to=["gguf:q8_0"], kv_bits=4, limit_kl=1.0, out=tmp_path / "4"),
        export(str(student), to=["gguf:q8_0", "onnx:int8"], out=tmp_path / "floats"),
    ]
    found = {}
    for result in calls:
        assert isinstance(result, ExportResult)
        for bundle in result.bundles:
            with load(bundle.path, threads=1) as model:
                cache = default_token_bytes(model.manifest)
            part = Path(bundle.path).parent.name
            found[part, bundle.target] = (cache, bundle.parity.overall.kl_mean)
            verified = verify(Path(bundle.path), checkpoint=str(student))
            assert verified.parity is not None
            assert verified.parity.parity.overall.kl_mean == pytest.approx(
                bundle.parity.overall.kl_mean, rel=0.05
            )
    planned = plan(str(student), to=["gguf:q8_0", "onnx:int8"], kv_bits=8).targets
    values = 2 * 2 * 2 * 32  # keys and values, layers, heads, width
    bytes_of = {key: cache for key, (cache, _) in found.items()}
    assert bytes_of == {
        ("8", "gguf:q8_0"): values * 34 // 32,
        ("8", "onnx:int8"): values,
        ("4", "gguf:q8_0"): values * 18 // 32,
        ("floats", "gguf:q8_0"): 2 * values,
        ("floats", "onnx:int8"): 4 * values,
    }
    context = read_manifest(tmp_path / "8" / "student-q8_0").context_length
    assert [one.kv_cache_bytes for one in planned] == [bytes_of["8", one.target] * context for one in planned]
    kl = {key: divergence for key, (_, divergence) in found.items()}
    assert kl["floats", "gguf:q8_0"] < kl["8", "gguf:q8_0"] < kl["4", "gguf:q8_0"]
    assert kl["floats", "onnx:int8"] < kl["8", "onnx:int8"]


@pytest.mark.parametrize(
    ("to", "bits", "message"),
    [
        ("gguf:q8_0", 16, "--kv-bits is 16"),
        ("onnx:int8", 4, "onnx:int8 cannot have keys and values of 4 bits"),
    ],
)
def test_what_no_format_has_is_refused_before_any_work(
    to: str, bits: int, message: str, tmp_path: Path
) -> None:
    saved = save_checkpoint(tmp_path / "student", variant_named("llama-tied-gqa"))
    for call in (
        lambda: export(str(saved), to=[to], kv_bits=bits, out=tmp_path / "out"),
        lambda: plan(str(saved), to=[to], kv_bits=bits),
    ):
        with pytest.raises(InputError, match=message):
            call()
    assert not list((tmp_path / "out").glob("*"))


def test_blocks_of_32_need_such_heads(tmp_path: Path) -> None:
    saved = save_checkpoint(tmp_path / "student", NARROW)
    with pytest.raises(InputError, match="the heads are 16 wide"):
        plan(str(saved), to=["gguf:q8_0"], kv_bits=8)
