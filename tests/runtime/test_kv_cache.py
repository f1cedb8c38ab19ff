"""Quantized keys and values: as near as their bits allow, and in every way as usable as float16 ones."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_distill_export.checkpoint import Checkpoint
from edge_distill_runtime import BundleError, InputError, load
from edge_distill_runtime.bundles.manifest import KVLayout
from edge_distill_runtime.bundles.opening import open_model
from edge_distill_runtime.engines.backend import Backend
from edge_distill_runtime.engines.kv_cache import choose_precision, token_bytes
from edge_distill_runtime.generation.prompt_cache import PromptCache
from tests.numerics import kl_divergence, reference_logits
from tests.random_models import VOCAB_SIZE
from tests.runtime.bundles import write_manifest

TOKENS = [int(token) for token in np.random.default_rng(0).integers(3, VOCAB_SIZE, 150)]
LAYOUT = KVLayout(layers=2, kv_heads=2, head_dim=32, bytes_per_value=2)


@pytest.fixture(params=["q8_0", "q4_0", "q8_0 isolated"])
def backend(request: pytest.FixtureRequest, bundles: dict[str, Path]) -> Iterator[Backend]:
    precision, _, isolate = request.param.partition(" ")
    opened = open_model(bundles["gguf"], threads=1, kv_cache=precision, isolate=bool(isolate))
    assert opened.kv_cache == precision
    yield opened.backend
    opened.backend.close()


def forced(backend: Backend) -> np.ndarray:
    return np.concatenate([chunk.copy() for chunk in backend.teacher_force(TOKENS)])


def test_divergence_grows_with_fewer_bits(checkpoint: Checkpoint, bundles: dict[str, Path]) -> None:
    expected = reference_logits(checkpoint.model, TOKENS)
    means = []
    for precision in ("f16", "q8_0", "q4_0"):
        with load(bundles["gguf"], threads=1, kv_cache=precision) as model:
            means.append(float(kl_divergence(expected, forced(model.backend)).mean()))
    assert means[0] < means[1] < means[2]  # so each of them is really in use
    assert means[1] < 0.005, means  # measured 0.001
    assert means[2] < 0.3, means  # measured 0.149: random weights suffer more than trained ones


def test_a_quantized_state_is_smaller_by_its_blocks(bundles: dict[str, Path]) -> None:
    sizes = {}
    for precision in ("f16", "q8_0", "q4_0"):
        with load(bundles["gguf"], threads=1, kv_cache=precision) as model:
            states = [model.backend.save(model.backend.prefill(TOKENS[:n])) for n in (50, 150)]
            sizes[precision] = len(states[1]) - len(states[0])
    # 2 (keys and values) x 2 layers x 2 heads = 8 blocks of 32 values: 64, 34 and 18 bytes each
    assert sizes["f16"] - sizes["q8_0"] == 100 * 8 * (64 - 34)
    assert sizes["f16"] - sizes["q4_0"] == 100 * 8 * (64 - 18)
    assert [token_bytes(LAYOUT, precision) for precision in sizes] == [512, 272, 144]


def test_forks_batches_and_rewinding(backend: Backend) -> None:
    """However the same tokens came into the cache, the logits are the same but for rounding of the activations."""
    whole = forced(backend)
    sequence = backend.prefill(TOKENS[:60])
    assert np.abs(sequence.logits - whole[59]).max() < 0.2
    forks = backend.fork(sequence, 3)
    rows = backend.step([sequence, *forks], [TOKENS[60]] * 4).copy()
    assert np.abs(rows - whole[60]).max() < 0.2
    backend.step(forks[:2], [5, 7])
    for fork in forks[:2]:
        backend.rewind(fork, 40)
        backend.extend(fork, TOKENS[40:100])
        assert np.abs(fork.logits - whole[99]).max() < 0.2
    rows = backend.verify(sequence, TOKENS[61:70]).copy()
    assert np.abs(rows - whole[61:70]).max() < 0.2


def test_saved_and_restored(backend: Backend) -> None:
    sequence = backend.prefill(TOKENS[:80])
    restored = backend.restore(backend.save(sequence), 80)
    rows = backend.step([sequence, restored], [TOKENS[80]] * 2)
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-4)


def test_a_state_of_another_precision_is_refused(bundles: dict[str, Path]) -> None:
    with load(bundles["gguf"], threads=1) as model:
        state = model.backend.save(model.backend.prefill(TOKENS[:20]))
    for other in ("q8_0", "q4_0"):
        with (
            load(bundles["gguf"], threads=1, kv_cache=other) as model,
            pytest.raises(InputError, match="holds no 20 tokens of this model"),
        ):
            model.backend.restore(state, 20)


def test_prompts_on_disk_are_kept_apart(tmp_path: Path) -> None:
    directory = tmp_path / "prompts"
    PromptCache("m", format="gguf", directory=directory, precision="q8_0").store([1, 2], b"8", disk=True)

    def found(precision: str) -> object:
        return PromptCache("m", format="gguf", directory=directory, precision=precision).lookup([1, 2, 3])

    assert found("q8_0") == (2, b"8")
    assert found("f16") is found("q4_0") is None


def test_a_cached_prompt_is_not_taken_by_another_precision(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    prompt = [{"role": "user", "content": "a long beginning"}]
    counts = []
    for precision in ("q8_0", "q8_0", "q4_0"):
        with load(bundles["gguf"], threads=1, kv_cache=precision) as model:
            counts.append(model.generate(prompt, max_tokens=4).cached_tokens)
            model.cache_prefix(prompt, disk=True)
    assert counts[0] == counts[2] == 0 < counts[1]


@pytest.mark.parametrize("isolate", [False, True])
def test_onnx_has_the_precision_of_its_graph(bundles: dict[str, Path], isolate: bool) -> None:
    with pytest.raises(InputError, match="of this ONNX graph is f32, not q8_0"):
        load(bundles["onnx"], threads=1, kv_cache="q8_0", isolate=isolate)
    opened = open_model(bundles["onnx"], threads=1, kv_cache="f32", isolate=isolate)
    assert opened.kv_cache == "f32"
    opened.backend.close()


@pytest.mark.parametrize("wanted", ["q5_1", "f32", "int8", "", "Q8_0"])
def test_precisions_that_gguf_has_not(wanted: str) -> None:
    if wanted:
        with pytest.raises(InputError, match="no precision of a GGUF"):
            choose_precision("gguf", LAYOUT, wanted)
    else:
        assert choose_precision("gguf", LAYOUT, None) == "f16"


def test_heads_that_are_no_multiple_of_a_block() -> None:
    layout = KVLayout(2, 1, 80, 2)
    assert choose_precision("gguf", layout, "f16") == "f16"
    with pytest.raises(InputError, match="blocks of 32 values, the heads are 80 wide"):
        choose_precision("gguf", layout, "q8_0")


def test_the_manifest_says_the_default(bundles: dict[str, Path], tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(bundles["gguf"], bundle)
    write_manifest(bundle, "gguf", kv_cache="q8_0")
    for wanted, expected in ((None, "q8_0"), ("f16", "f16"), ("q4_0", "q4_0")):
        opened = open_model(bundle, threads=1, kv_cache=wanted)
        opened.backend.close()
        assert opened.kv_cache == expected


def test_manifests_that_cannot_be(bundles: dict[str, Path]) -> None:
    with pytest.raises(BundleError, match="an ONNX graph has its own"):
        write_manifest(bundles["onnx"], "onnx", kv_cache="q8_0")
    with pytest.raises(BundleError, match="in blocks of 32, head_dim is 48"):
        write_manifest(bundles["gguf"], "gguf", kv_cache="q8_0", kv=KVLayout(2, 2, 48, 2))
