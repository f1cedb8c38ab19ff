"""Both engines against transformers and themselves: all ways to the same tokens give the same logits."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_distill_export.checkpoint import Checkpoint
from edge_distill_runtime import BackendError, EdgeDistillError, InputError, Model, ResourceError, load
from edge_distill_runtime.engines.backend import Backend, Sequence
from edge_distill_runtime.engines.llama import LlamaBackend, library
from edge_distill_runtime.engines.onnx import OnnxBackend
from tests.numerics import kl_divergence, reference_logits
from tests.random_models import CONTEXT_LENGTH, VOCAB_SIZE, random_checkpoint, variant_named
from tests.runtime.bundles import write_manifest, write_model

TOKENS = [int(token) for token in np.random.default_rng(0).integers(3, VOCAB_SIZE, 150)]


def assert_close(measured: np.ndarray, expected: np.ndarray) -> None:
    """Logits deviate by about 3; libllama's float16 cache moves them by up to 0.04, a wrong position by 3."""
    difference = np.abs(measured - expected)
    assert difference.max() < 0.08, f"largest {difference.max()}, mean {difference.mean()}"
    assert difference.mean() < 0.01, f"largest {difference.max()}, mean {difference.mean()}"


@pytest.fixture(scope="module")
def reference(checkpoint: Checkpoint) -> np.ndarray:
    return reference_logits(checkpoint.model, TOKENS)


@pytest.fixture(params=["gguf", "onnx"])
def opened(request: pytest.FixtureRequest, bundles: dict[str, Path]) -> Iterator[Any]:
    """Opens engines by `opened(context=, cache_tokens=)`, in one format after the other."""
    engines: list[Backend] = []

    def open_engine(**options: Any) -> Any:
        engine: Backend
        if request.param == "gguf":
            engine = LlamaBackend(bundles["gguf"] / "model.gguf", threads=1, **options)
        else:
            engine = OnnxBackend(bundles["onnx"] / "model.onnx", threads=1, head_dim=32, **options)
        engines.append(engine)
        return engine

    yield open_engine
    for engine in engines:
        engine.close()


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


def test_more_cache_than_one_sequence_may_use(opened: Any, reference: np.ndarray) -> None:
    backend = opened(context=60, cache_tokens=512)
    assert backend.context_length == 60
    assert backend.cache_tokens == 512
    sequences = [backend.prefill(TOKENS[:59]) for _ in range(8)]
    rows = backend.step(sequences, [TOKENS[59]] * 8)
    for row in rows:
        assert_close(row, reference[59])
    for call in (lambda: backend.step(sequences[:1], [5]), lambda: backend.verify(sequences[0], [5])):
        with pytest.raises(InputError, match="61 tokens do not fit the context of 60"):
            call()
    with pytest.raises(ResourceError, match=r"cache of 512 tokens is full|fit the cache of 512") as error:
        backend.prefill(TOKENS[:40])
    assert error.value.code == "cache-full"


def test_whole_contexts_are_caches_of_their_own(bundles: dict[str, Path], reference: np.ndarray) -> None:
    """What one sequence holds takes no room from the others, and its forks are copies."""
    path = bundles["gguf"] / "model.gguf"
    backend = LlamaBackend(path, context=256, threads=1, cache_tokens=1024, own_caches=True)
    assert (backend.max_sequences, backend.cache_tokens, backend.shares_prefix) == (4, 1024, False)
    first = backend.prefill(TOKENS[:150])
    second = backend.prefill(TOKENS[:20])
    (child,) = backend.fork(second, 1)
    backend.release(second)
    third = backend.prefill(TOKENS[:100])  # where the fork's past was copied from
    assert_close(backend.step([child], [TOKENS[20]])[0], reference[20])
    rows = backend.step([third, child], [TOKENS[100], TOKENS[21]])
    assert_close(rows[0], reference[100])
    assert_close(rows[1], reference[21])
    state = backend.save(child)
    backend.rewind(child, 5)
    backend.extend(child, TOKENS[5:60])
    again = backend.restore(state, 22)
    rows = backend.step([again, child], [TOKENS[22], TOKENS[60]])
    assert_close(rows[0], reference[22])
    assert_close(rows[1], reference[60])
    with pytest.raises(ResourceError, match="all of 4 sequences are in use"):
        backend.prefill(TOKENS[:5])
    for sequence in (third, again):
        backend.release(sequence)
    rows = backend.step([first, child], [TOKENS[150 - 1], TOKENS[61]])  # over a free one, which stays empty
    assert_close(rows[1], reference[61])
    assert_close(fresh(backend, TOKENS[:100]), reference[99])
    for sequence in (first, child):
        backend.release(sequence)
    forced = np.concatenate([rows.copy() for rows in backend.teacher_force(TOKENS, 40)])
    assert_close(forced[0], reference[40])
    backend.close()
    with pytest.raises(InputError, match="256"):
        LlamaBackend(path, context=200, threads=1, cache_tokens=800, own_caches=True)


def test_default_cache_is_what_fits_in_memory(bundles: dict[str, Path], monkeypatch: Any) -> None:
    path = bundles["onnx"] / "model.onnx"
    for fitting, expected in ((1000, 1000), (10, CONTEXT_LENGTH), (10**9, 64 * CONTEXT_LENGTH)):
        monkeypatch.setattr("edge_distill_runtime.engines.onnx.tokens_that_fit", lambda _, most=fitting: most)
        backend = OnnxBackend(path, context=CONTEXT_LENGTH, threads=1, head_dim=32)
        assert backend.cache_tokens == expected
        backend.close()


def test_more_cache_may_not_change_the_positions(tmp_path: Path) -> None:
    """libllama takes LongRoPE's other frequencies when the whole cache passes 256 tokens."""
    model, tokenizer = random_checkpoint(variant_named("phi3-partial-longrope"))
    write_model(tmp_path, Checkpoint(model, tokenizer, "tiny", {}), "gguf")
    path = tmp_path / "model.gguf"
    backend = LlamaBackend(path, context=200, threads=1, cache_tokens=256)
    assert_close(fresh(backend, TOKENS), reference_logits(model, TOKENS)[-1])
    backend.close()
    with pytest.raises(
        InputError, match="cache of 512 tokens changes the positions of this model, made for 256"
    ):
        LlamaBackend(path, context=200, threads=1, cache_tokens=300)


def test_full_cache_changes_nothing(opened: Any, reference: np.ndarray, monkeypatch: Any) -> None:
    backend = opened(context=256, cache_tokens=256)
    use_small_chunks(backend, monkeypatch)  # so that a part of a prompt is computed before it fails
    others = [backend.prefill(TOKENS[:100]) for _ in range(2)]
    sequence = backend.prefill(TOKENS[:20])
    state = backend.save(others[0])
    backend.step([sequence], [TOKENS[20]])
    backend.extend(sequence, TOKENS[21:55])  # 255 of 256 are in use
    kept = sequence.logits.copy()
    for call in (
        lambda: backend.prefill(TOKENS[:40]),
        lambda: backend.extend(sequence, TOKENS[55:95]),
        lambda: backend.verify(sequence, TOKENS[55:60]),
        lambda: backend.step([sequence, others[0]], [1, 2]),
        lambda: backend.restore(state, 100),
    ):
        with pytest.raises(ResourceError) as error:
            call()
        assert error.value.code == "cache-full"
        assert (sequence.length, others[0].length) == (55, 100)
        np.testing.assert_array_equal(sequence.logits, kept)
    assert_close(backend.step([sequence], [TOKENS[55]])[0], reference[55])
    with pytest.raises(ResourceError):
        backend.step([sequence], [TOKENS[56]])
    backend.release(others[1])
    assert_close(backend.step([others[0]], [TOKENS[100]])[0], reference[100])
    assert_close(backend.step([sequence], [TOKENS[56]])[0], reference[56])


def test_rewound_and_released_tokens_free_the_cache(opened: Any) -> None:
    backend = opened(context=256, cache_tokens=256)
    sequence = backend.prefill(TOKENS[:150])
    backend.rewind(sequence, 50)
    backend.release(backend.prefill(TOKENS[:150]))
    with pytest.raises(InputError):
        backend.extend(sequence, TOKENS * 2)
    other = backend.prefill(TOKENS[:150])
    backend.extend(sequence, TOKENS[50:106])  # exactly full
    backend.release(other)
    backend.release(sequence)
    for _ in range(20):
        backend.release(backend.prefill(TOKENS))


def test_verify_equals_steps(backend: Backend, reference: np.ndarray) -> None:
    sequence = backend.prefill(TOKENS[:30])
    rows = backend.verify(sequence, TOKENS[30:38])
    assert rows.shape == (8, VOCAB_SIZE)
    assert sequence.length == 38
    for row, expected in zip(rows, reference[30:38], strict=True):
        assert_close(row, expected)
    np.testing.assert_array_equal(sequence.logits, rows[-1])
    backend.rewind(sequence, 33)  # a draft that was wrong from its fourth token on
    assert_close(backend.step([sequence], [TOKENS[33]])[0], reference[33])
    rows = backend.verify(sequence, TOKENS[34 : 34 + backend.max_sequences])
    assert_close(rows[-1], reference[33 + backend.max_sequences])
    with pytest.raises(InputError, match="65 tokens are to be verified, 64 can be"):
        backend.verify(sequence, [5] * 65)
    with pytest.raises(InputError, match="no tokens"):
        backend.verify(sequence, [])
    with pytest.raises(InputError, match="token 512 lies outside"):
        backend.verify(sequence, [512])
    backend.release(sequence)
    with pytest.raises(BackendError, match="released"):
        backend.verify(sequence, [5])


def test_restored_sequence_goes_on_bit_for_bit(opened: Any) -> None:
    """In a cache that was empty: libllama sums attention in the order of its cells."""
    backend = opened(context=256)
    sequence = backend.prefill(TOKENS[:100])
    state = backend.save(sequence)
    assert isinstance(state, bytes)
    backend.extend(sequence, TOKENS[100:120])
    expected = sequence.logits.copy()
    other = opened(context=256)
    copy = other.restore(state, 100)
    assert copy.length == 100
    with pytest.raises(BackendError, match="logits"):
        _ = copy.logits
    other.extend(copy, TOKENS[100:120])
    np.testing.assert_array_equal(copy.logits, expected)
    child = other.fork(copy, 2)[1]
    other.step([child], [5])
    assert len(other.save(child)) > len(state)  # a fork's state is its own


def test_restored_beside_others(backend: Backend, reference: np.ndarray) -> None:
    first = backend.prefill(TOKENS[:70])
    state = backend.save(first)
    copies = [backend.restore(state, 70), backend.restore(state, 70)]
    backend.rewind(copies[0], 60)
    backend.extend(copies[0], TOKENS[60:65])
    assert_close(copies[0].logits, reference[64])
    rows = backend.step([copies[1], first], [TOKENS[70], 9]).copy()
    assert_close(rows[0], reference[70])
    assert_close(rows[1], fresh_beside(backend, copies, [*TOKENS[:70], 9]))
    backend.release(first)


def fresh_beside(backend: Backend, others: list[Sequence], tokens: list[int]) -> np.ndarray:
    for other in others:
        backend.release(other)
    return fresh(backend, tokens)


def test_foreign_states_are_refused(backend: Backend, reference: np.ndarray) -> None:
    sequence = backend.prefill(TOKENS[:20])
    state = backend.save(sequence)
    damaged = [
        (b"", 20),
        (state[:10], 20),
        (state, 19),
        (state, 21),
        (state, 0),
        (state[:-1], 20),
        (state + b"\0", 20),
        (state[: len(state) // 2], 20),
        (b"X" + state[1:], 20),
        (state[:12] + b"\x07" + state[13:], 20),
    ]
    for data, length in damaged:
        with pytest.raises((InputError, BackendError), match="compute the prompt again"):
            backend.restore(data, length)
    with pytest.raises(InputError, match=r"do not fit the context|holds no"):
        backend.restore(state, 10**6)
    for _ in range(100):  # a refusal leaks no slot and no cell
        with pytest.raises((InputError, BackendError)):
            backend.restore(state[:-1], 20)
    assert_close(backend.step([sequence], [TOKENS[20]])[0], reference[20])
    backend.release(sequence)
    with pytest.raises(BackendError, match="released"):
        backend.save(sequence)


def test_state_of_the_other_engine_is_refused(bundles: dict[str, Path]) -> None:
    with load(bundles["gguf"], threads=1) as gguf, load(bundles["onnx"], threads=1) as onnx:
        states = [model.backend.save(model.backend.prefill(TOKENS[:20])) for model in (gguf, onnx)]
        for model, state in ((gguf, states[1]), (onnx, states[0])):
            with pytest.raises(InputError, match="holds no 20 tokens of this model"):
                model.backend.restore(state, 20)


FORKED = """
import os, signal, sys
from edge_distill_runtime import BackendError, load
model = load(sys.argv[1], threads=2)
backend = model.backend
sequence = backend.prefill(list(range(3, 60)))
chunks = backend.teacher_force(list(range(3, 200)))
next(chunks)
child = os.fork()
if not child:
    signal.alarm(20)  # a hang is a failure
    for call in (
        lambda: backend.prefill([5]),
        lambda: backend.extend(sequence, [5]),
        lambda: backend.step([sequence], [5]),
        lambda: backend.verify(sequence, [5]),
        lambda: backend.fork(sequence, 1),
        lambda: backend.rewind(sequence, 1),
        lambda: backend.save(sequence),
        lambda: next(backend.teacher_force([5, 6])),
    ):
        try:
            call()
        except BackendError as error:
            assert error.code == "forked", error
        else:
            raise AssertionError("no error in the forked child")
    backend.release(sequence)
    backend.close()
    del chunks
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
backend.step([sequence], [5])
model.close()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_forked_child_gets_a_typed_error_and_exits(bundles: dict[str, Path], model: Model) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKED, str(bundles[model.manifest.format])]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_onnxruntime_reports_to_nobody(bundles: dict[str, Path]) -> None:
    """Its telemetry, on by default, has a thread of its own."""
    script = "import os, sys; from edge_distill_runtime.engines.onnx import OnnxBackend\n"
    script += "OnnxBackend(sys.argv[1], context=256, threads=1, head_dim=32).prefill([5])\n"
    script += "assert len(os.listdir('/proc/self/task')) == 1"
    silent = ("CI", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS")  # each of them switches it off
    environment = {name: value for name, value in os.environ.items() if name not in silent}
    command = [sys.executable, "-c", script, str(bundles["onnx"] / "model.onnx")]
    environment["OPENBLAS_NUM_THREADS"] = "1"  # numpy's own threads
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert (result.returncode, result.stderr) == (0, "")


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


def test_sequences_between_those_of_a_batch_keep_their_past(opened: Any, reference: np.ndarray) -> None:
    """The ONNX engine computes slots that lie between; a full one it must leave out."""
    backend = opened(context=60, cache_tokens=512)
    sequences = [backend.prefill(TOKENS[:5]) for _ in range(4)]
    first, idle, full, last = sequences
    backend.extend(full, TOKENS[5:60])
    for position in range(5, 9):
        for row in backend.step([last, first], [TOKENS[position]] * 2):
            assert_close(row, reference[position])
    assert_close(backend.step([idle], TOKENS[5:6])[0], reference[5])
    backend.rewind(full, 59)
    assert_close(backend.step([full], TOKENS[59:60])[0], reference[59])
    # nothing lies between: all in one batch, the longest in the middle
    backend.rewind(full, 50)
    rows = backend.step([last, full, first], [TOKENS[9], TOKENS[50], TOKENS[9]])
    for row, position in zip(rows, (9, 50, 9), strict=True):
        assert_close(row, reference[position])


def test_a_libllama_with_amx_computes_without_it(
    bundles: dict[str, Path], reference: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    libllama = library()
    given: list[bool] = []
    load_file = libllama.llama_model_load_from_file

    def recorded(path: bytes, parameters: Any) -> Any:
        given.append(parameters.use_extra_bufts)
        return load_file(path, parameters)

    monkeypatch.setattr(libllama, "llama_model_load_from_file", recorded)
    for info in (b"CPU : AVX2 = 1 | AMX_INT8 = 1 | ", b"CPU : AVX2 = 1 | "):
        monkeypatch.setattr(libllama, "llama_print_system_info", lambda info=info: info)
        backend = LlamaBackend(bundles["gguf"] / "model.gguf", context=64, threads=1)
        assert_close(backend.prefill(TOKENS[:1]).logits, reference[0])
        backend.close()
    assert given == [False, True]
