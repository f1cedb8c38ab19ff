"""Both engines against transformers and themselves: all ways to the same tokens give the same logits."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_distill_export.checkpoint import Checkpoint
from edge_distill_runtime import BackendError, EdgeDistillError, InputError, Model, ResourceError, load
from edge_distill_runtime.backend import Backend, Sequence
from tests.numerics import kl_divergence, reference_logits
from tests.random_models import CONTEXT_LENGTH, VOCAB_SIZE
from tests.runtime.bundles import write_manifest

TOKENS = [int(token) for token in np.random.default_rng(0).integers(3, VOCAB_SIZE, 150)]


def assert_close(measured: np.ndarray, expected: np.ndarray) -> None:
    """Logits deviate by about 3; libllama's float16 cache moves them by up to 0.04, a wrong position by 3."""
    difference = np.abs(measured - expected)
    assert difference.max() < 0.08, f"largest {difference.max()}, mean {difference.mean()}"
    assert difference.mean() < 0.01, f"largest {difference.max()}, mean {difference.mean()}"


@pytest.fixture(scope="module")
def reference(checkpoint: Checkpoint) -> np.ndarray:
    return reference_logits(checkpoint.model, TOKENS)


def fresh(backend: Backend, tokens: list[int]) -> np.ndarray:
    """Logits behind `tokens`, computed from nothing."""
    sequence = backend.prefill(tokens)
    logits = sequence.logits.copy()
    backend.release(sequence)
    return logits


def test_prefill_equals_transformers(backend: Backend, reference: np.ndarray) -> None:
    for length in (1, 2, 33, 150):
        assert_close(fresh(backend, TOKENS[:length]), reference[length - 1])


def test_teacher_forcing_equals_transformers(backend: Backend, reference: np.ndarray) -> None:
    rows = np.concatenate([chunk.copy() for chunk in backend.teacher_force(TOKENS)])
    assert rows.shape == reference.shape
    divergence = kl_divergence(reference, rows)
    assert divergence.max() < 1e-4, f"largest {divergence.max()}, mean {divergence.mean()}"


@pytest.mark.parametrize("start", [0, 1, 7, 100, 149])
def test_teacher_forcing_from_a_position(
    backend: Backend, reference: np.ndarray, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_chunks(backend, monkeypatch)
    rows = np.concatenate([chunk.copy() for chunk in backend.teacher_force(TOKENS, start)])
    assert_close(rows, reference[start:])


def test_teacher_forcing_dropped_halfway_frees_its_sequence(backend: Backend) -> None:
    for _ in range(100):  # more often than there are sequences
        chunks = backend.teacher_force(TOKENS)
        next(chunks)
        chunks.close()  # type: ignore[attr-defined]
    sequence = backend.prefill(TOKENS)
    assert sequence.length == len(TOKENS)
    backend.release(sequence)


def use_small_chunks(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are computed in stretches; make them shorter than the tiny context."""
    name = "_chunk" if hasattr(backend, "_chunk") else "_batch_size"
    monkeypatch.setattr(backend, name, 16)


def test_prompt_in_stretches(
    backend: Backend, reference: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_chunks(backend, monkeypatch)
    for length in (15, 16, 17, 150):
        assert_close(fresh(backend, TOKENS[:length]), reference[length - 1])


def test_step_equals_transformers(backend: Backend, reference: np.ndarray) -> None:
    sequence = backend.prefill(TOKENS[:20])
    for position in range(20, 60):
        rows = backend.step([sequence], [TOKENS[position]])
        assert rows.shape == (1, VOCAB_SIZE)
        assert_close(rows[0], reference[position])
        assert sequence.length == position + 1
        np.testing.assert_array_equal(sequence.logits, rows[0])
    backend.release(sequence)


def test_extend_equals_prefill(backend: Backend, reference: np.ndarray) -> None:
    sequence = backend.prefill(TOKENS[:5])
    backend.extend(sequence, TOKENS[5:40])
    assert_close(sequence.logits, reference[39])
    backend.step([sequence], [TOKENS[40]])
    backend.extend(sequence, TOKENS[41:90])
    assert_close(sequence.logits, reference[89])
    backend.release(sequence)


def test_batched_step_of_different_lengths(backend: Backend, reference: np.ndarray) -> None:
    lengths = [1, 30, 7, 64, 12]
    sequences = [backend.prefill(TOKENS[:length]) for length in lengths]
    for offset in range(5):
        rows = backend.step(sequences, [TOKENS[length + offset] for length in lengths])
        for row, length in zip(rows, lengths, strict=True):
            assert_close(row, reference[length + offset])
    for sequence in sequences:
        backend.release(sequence)


def test_batch_in_any_order_with_gaps_between_slots(backend: Backend, reference: np.ndarray) -> None:
    lengths = [3, 50, 9, 21, 5, 40]
    sequences = [backend.prefill(TOKENS[:length]) for length in lengths]
    backend.release(sequences[2])
    for order in ([5, 0, 3], [1, 0], [4, 3, 1, 0, 5]):
        rows = backend.step([sequences[i] for i in order], [TOKENS[sequences[i].length] for i in order])
        for row, i in zip(rows, order, strict=True):
            assert_close(row, reference[sequences[i].length - 1])
            np.testing.assert_array_equal(row, sequences[i].logits)
    for sequence in sequences:
        backend.release(sequence)


def test_fork_equals_recomputation(backend: Backend) -> None:
    parent = backend.prefill(TOKENS[:40])
    children = backend.fork(parent, 3)
    tails = [[5, 6, 7], [100, 101, 102], [300, 3, 200]]
    assert all(child.length == 40 for child in children)
    for child in children:
        np.testing.assert_array_equal(child.logits, parent.logits)
    for position in range(3):
        rows = backend.step(children, [tail[position] for tail in tails]).copy()
        for row, tail in zip(rows, tails, strict=True):
            assert_close(row, fresh(backend, TOKENS[:40] + tail[: position + 1]))
    # the parent is as it was, also after its children are gone
    for child in children:
        backend.release(child)
    rows = backend.step([parent], [9]).copy()
    assert_close(rows[0], fresh(backend, [*TOKENS[:40], 9]))
    backend.release(parent)


def test_rewind_equals_recomputation(backend: Backend, reference: np.ndarray) -> None:
    sequence = backend.prefill(TOKENS[:80])
    backend.rewind(sequence, 30)
    assert sequence.length == 30
    with pytest.raises(BackendError, match="logits of this sequence are gone"):
        _ = sequence.logits
    for position in range(30, 40):
        assert_close(backend.step([sequence], [TOKENS[position]])[0], reference[position])
    # another past, then back again
    backend.rewind(sequence, 10)
    backend.extend(sequence, [400, 401, 402])
    assert_close(sequence.logits, fresh(backend, [*TOKENS[:10], 400, 401, 402]))
    backend.rewind(sequence, 10)
    backend.extend(sequence, TOKENS[10:20])
    assert_close(sequence.logits, reference[19])
    backend.rewind(sequence, 0)
    backend.extend(sequence, TOKENS[:5])
    assert_close(sequence.logits, reference[4])
    with pytest.raises(InputError, match="cannot rewind 5 tokens to 6"):
        backend.rewind(sequence, 6)
    backend.release(sequence)


def test_released_slots_are_used_again(backend: Backend, reference: np.ndarray) -> None:
    kept = backend.prefill(TOKENS[:30])
    for _ in range(100):
        backend.release(backend.prefill(TOKENS[:2]))
    others = backend.fork(kept, 5)
    for sequence in others:
        backend.release(sequence)
        backend.release(sequence)  # twice is allowed
    assert_close(backend.step([kept], [TOKENS[30]])[0], reference[30])
    backend.release(kept)


def test_old_logits_cannot_be_read(backend: Backend) -> None:
    first, second = backend.prefill(TOKENS[:4]), backend.prefill(TOKENS[:5])
    kept = second.logits.copy()
    backend.step([first], [7])
    np.testing.assert_array_equal(second.logits, kept)  # from a prefill: kept until its own step
    backend.step([second], [7])
    with pytest.raises(BackendError, match="logits of this sequence are gone"):
        _ = first.logits
    backend.release(first)
    backend.release(second)


def test_context_is_what_was_asked_for(bundles: dict[str, Path], model: Model) -> None:
    with load(bundles[model.manifest.format], context=40, threads=1) as small:
        assert small.backend.context_length == 40
        sequence = small.backend.prefill(TOKENS[:39])
        small.backend.step([sequence], [5])
        with pytest.raises(InputError, match="41 tokens do not fit the context of 40"):
            small.backend.step([sequence], [5])
        with pytest.raises(InputError, match="42 tokens do not fit the context of 40"):
            small.backend.extend(sequence, [5, 6])
        with pytest.raises(InputError, match="41 tokens do not fit the context of 40"):
            small.backend.prefill(TOKENS[:41])
        with pytest.raises(InputError, match="41 tokens do not fit the context of 40"):
            next(small.backend.teacher_force(TOKENS[:41]))
        assert sequence.length == 40


def test_bad_calls_leave_the_backend_usable(backend: Backend, reference: np.ndarray) -> None:
    sequence = backend.prefill(TOKENS[:10])
    bad: list[tuple[type[EdgeDistillError], str, Any]] = [
        (InputError, "no tokens", lambda: backend.prefill([])),
        (InputError, f"token {VOCAB_SIZE} lies outside", lambda: backend.prefill([1, VOCAB_SIZE])),
        (InputError, "token -1 lies outside", lambda: backend.prefill([-1])),
        (InputError, "token -5 lies outside", lambda: backend.step([sequence], [-5])),
        (InputError, "token 99999 lies outside", lambda: backend.step([sequence], [99999])),
        (InputError, "1 sequences and 2 tokens", lambda: backend.step([sequence], [1, 2])),
        (InputError, "0 sequences", lambda: backend.step([], [])),
        (InputError, "stands twice", lambda: backend.step([sequence, sequence], [1, 2])),
        (ResourceError, "1000", lambda: backend.fork(sequence, 1000)),
    ]
    for kind, message, call in bad:
        with pytest.raises(kind, match=message):
            call()
    assert_close(backend.step([sequence], [TOKENS[10]])[0], reference[10])
    backend.release(sequence)
    with pytest.raises(BackendError, match="released"):
        backend.step([sequence], [1])
    with pytest.raises(BackendError, match="released"):
        backend.fork(sequence, 1)


def test_all_sequences_in_use(backend: Backend) -> None:
    sequences: list[Sequence] = []
    with pytest.raises(ResourceError, match="of 64"):
        while True:
            sequences.append(backend.prefill([5]))
    assert len(sequences) == backend.max_sequences == 64
    for sequence in sequences:
        backend.release(sequence)
    backend.release(backend.prefill([5]))


def test_full_cache_is_a_typed_error(bundles: dict[str, Path]) -> None:
    """libllama's sequences share the cells of one context."""
    with load(bundles["gguf"], threads=1) as model:
        first = model.backend.prefill(TOKENS[:150])
        with pytest.raises(ResourceError, match=f"cache of {CONTEXT_LENGTH} tokens is full"):
            model.backend.prefill(TOKENS[:150])
        model.backend.release(first)
        model.backend.release(model.backend.prefill(TOKENS[:150]))


def test_closed(bundles: dict[str, Path], model: Model) -> None:
    loaded = load(bundles[model.manifest.format], threads=1)
    sequence = loaded.backend.prefill([1, 2, 3])
    loaded.close()
    loaded.close()
    for call in (
        lambda: loaded.backend.prefill([1]),
        lambda: loaded.backend.step([sequence], [1]),
        lambda: loaded.backend.fork(sequence, 1),
        lambda: loaded.backend.rewind(sequence, 1),
        lambda: next(loaded.backend.teacher_force([1, 2])),
        lambda: loaded.generate("hello"),
    ):
        with pytest.raises(BackendError, match="closed"):
            call()
    loaded.backend.release(sequence)


def test_threads_do_not_disturb_each_other(backend: Backend, reference: np.ndarray) -> None:
    failures: list[str] = []

    def work(offset: int) -> None:
        for round_number in range(8):
            length = 5 + 7 * offset + round_number
            sequence = backend.prefill(TOKENS[:length])
            difference = np.abs(sequence.logits - reference[length - 1]).max()
            if difference > 0.08:
                failures.append(f"thread {offset}, length {length}: {difference}")
            backend.release(sequence)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("kind", ["gguf", "onnx"])
def test_nan_weights_are_reported(
    kind: Any, bundles: dict[str, Path], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    for source in bundles[kind].iterdir():
        if source.name != "edge_distill.json":
            (tmp_path / source.name).write_bytes(source.read_bytes())
    path = tmp_path / ("model.gguf" if kind == "gguf" else "model.onnx.data")
    norm = checkpoint.model.model.norm.weight.detach().numpy().tobytes()
    data = path.read_bytes()
    assert data.count(norm) == 1
    path.write_bytes(data.replace(norm, np.full(len(norm) // 4, np.nan, np.float32).tobytes()))
    write_manifest(tmp_path, kind)
    with load(tmp_path, threads=1) as model:
        for call in (
            lambda: model.backend.prefill([1, 2]),
            lambda: next(model.backend.teacher_force([1, 2])),
            lambda: model.generate("hello"),
        ):
            with pytest.raises(BackendError, match="NaN"):
                call()
