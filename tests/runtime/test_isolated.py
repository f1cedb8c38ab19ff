"""An engine in a process of its own: the same numbers, and the app outlives its death."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_distill_runtime import BackendCrashed, BackendError, BundleError, EdgeDistillError, ResourceError
from edge_distill_runtime.engines.backend import Backend, Sequence
from edge_distill_runtime.engines.isolated import IsolatedBackend
from tests.random_models import VOCAB_SIZE
from tests.runtime.isolation import Format, environment, is_gone, open_here, open_isolated

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

TOKENS = [int(token) for token in np.random.default_rng(0).integers(3, VOCAB_SIZE, 200)]
KINDS: list[Format] = ["gguf", "onnx"]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Format:
    return request.param


@pytest.fixture(scope="module")
def pair(bundles: dict[str, Path], kind: Format) -> Iterator[tuple[Backend, Backend]]:
    """The same model in this process and in another one."""
    with (
        contextlib.closing(open_here(bundles, kind)) as here,
        contextlib.closing(open_isolated(bundles, kind)) as isolated,
    ):
        yield here, isolated


@contextlib.contextmanager
def stopped(backend: IsolatedBackend) -> Iterator[int]:
    """The engine's process stands still, so that a call is under way for as long as the test likes."""
    pid = backend._process.pid
    os.kill(pid, signal.SIGSTOP)
    yield pid
    if not is_gone(pid):
        os.kill(pid, signal.SIGCONT)


def later(seconds: float, action: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


def tour(backend: Backend) -> list[np.ndarray]:
    """Logits of every call, in the order of the calls."""
    rows: list[np.ndarray] = []
    first = backend.prefill(TOKENS[:30])
    rows.append(first.logits.copy())
    backend.extend(first, TOKENS[30:47])
    rows.append(first.logits.copy())
    forks = backend.fork(first, 3)
    rows += [fork.logits.copy() for fork in forks]
    rows.append(backend.step([forks[2], first, forks[0]], [5, 6, 7]).copy())
    rows.append(first.logits.copy())
    rows.append(backend.step([forks[0]], [9]).copy())
    rows.append(backend.verify(forks[1], TOKENS[60:70]).copy())
    rows.append(forks[1].logits.copy())
    backend.rewind(forks[1], 50)
    rows.append(backend.step([forks[1], forks[2]], [11, 12]).copy())
    state = backend.save(forks[1])
    restored = backend.restore(state, forks[1].length)
    assert restored.length == forks[1].length == 51
    rows.append(backend.verify(restored, [13]).copy())
    for sequence in (first, *forks, restored):
        backend.release(sequence)
        backend.release(sequence)
    for start in (0, 1, 150, 199, 200):
        rows += [chunk.copy() for chunk in backend.teacher_force(TOKENS, start)]
    return rows


def test_every_call_gives_the_same_logits_bit_for_bit(pair: tuple[Backend, Backend]) -> None:
    here, isolated = (np.concatenate([np.atleast_2d(rows) for rows in tour(backend)]) for backend in pair)
    np.testing.assert_array_equal(here, isolated)
    assert len(here) > 400


def test_the_same_limits(pair: tuple[Backend, Backend]) -> None:
    for name in ("vocab_size", "context_length", "max_sequences", "cache_tokens", "shares_prefix"):
        assert getattr(pair[0], name) == getattr(pair[1], name)


def test_states_go_from_one_to_the_other(pair: tuple[Backend, Backend]) -> None:
    states, rows = [], []
    for backend in pair:
        sequence = backend.prefill(TOKENS[:40])
        states.append(backend.save(sequence))
        backend.release(sequence)
    assert states[0] == states[1]
    for backend, state in zip(pair, reversed(states), strict=True):
        sequence = backend.restore(state, 40)
        rows.append(backend.step([sequence], [77]).copy())
        backend.release(sequence)
    np.testing.assert_array_equal(rows[0], rows[1])


def failures(backend: Backend) -> list[Callable[[], Any]]:
    sequence = backend.prefill(TOKENS[:5])
    released = Sequence(-1)
    state = backend.save(sequence)
    return [
        lambda: backend.prefill([]),
        lambda: backend.prefill([VOCAB_SIZE]),
        lambda: backend.prefill([1] * 257),
        lambda: backend.extend(sequence, [1] * 252),
        lambda: backend.step([sequence, sequence], [1, 2]),
        lambda: backend.step([], []),
        lambda: backend.step([released], [1]),
        lambda: backend.fork(released, 1),
        lambda: backend.fork(sequence, 64),
        lambda: backend.rewind(sequence, 6),
        lambda: backend.verify(sequence, [1] * 65),
        lambda: backend.restore(state, 4),
        lambda: backend.restore(state[:40], 5),
        lambda: backend.restore(b"x" * 5000, 5),
        lambda: list(backend.teacher_force([])),
        lambda: backend.release(sequence),
        lambda: backend.step([sequence], [1]),
    ]


def code_of(call: Callable[[], Any]) -> tuple[type, str] | None:
    try:
        call()
    except EdgeDistillError as error:
        return type(error), error.code
    return None


def test_the_same_typed_errors(pair: tuple[Backend, Backend]) -> None:
    here, isolated = ([code_of(call) for call in failures(backend)] for backend in pair)
    assert isolated == here
    assert here.count(None) == 1


def test_a_full_cache_leaves_everything_as_it_was(bundles: dict[str, Path]) -> None:
    with contextlib.closing(open_isolated(bundles, "gguf")) as backend:
        first, second = backend.prefill(TOKENS[:128]), backend.prefill(TOKENS[:127])
        backend.step([second], [5])
        with pytest.raises(ResourceError, match="256") as caught:
            backend.step([first, second], [5, 6])
        assert caught.value.code == "cache-full"
        assert (first.length, second.length) == (128, 128)
        backend.release(second)
        with contextlib.closing(open_here(bundles, "gguf")) as here:
            expected = here.step([here.prefill(TOKENS[:128])], [5])
            np.testing.assert_array_equal(backend.step([first], [5]), expected)


def test_logits_of_a_step_are_gone_after_the_next_call(bundles: dict[str, Path], kind: Format) -> None:
    with contextlib.closing(open_isolated(bundles, kind)) as backend:
        one, two = backend.prefill([1]), backend.prefill([2])
        backend.step([one], [3])
        kept = two.logits.copy()
        backend.step([two], [4])
        with pytest.raises(BackendError, match="gone"):
            _ = one.logits
        assert not np.array_equal(two.logits, kept)


def test_threads_share_it(pair: tuple[Backend, Backend]) -> None:
    expected = [pair[0].prefill(TOKENS[at : at + 9]) for at in range(4)]
    wrong: list[int] = []

    def work(at: int) -> None:
        for _ in range(25):
            sequence = pair[1].prefill(TOKENS[at : at + 9])
            if not np.array_equal(sequence.logits, expected[at].logits):
                wrong.append(at)
            pair[1].release(sequence)

    threads = [threading.Thread(target=work, args=(at,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for sequence in expected:
        pair[0].release(sequence)
    assert not wrong


def test_limits_are_in_force(bundles: dict[str, Path]) -> None:
    with contextlib.closing(open_isolated(bundles, "onnx")) as backend:
        process = Path(f"/proc/{backend._process.pid}")
        limits = (process / "limits").read_text()
        for limit in ("Max core file size +0 +0 ", "Max open files +64 +64 "):
            assert re.search(limit, limits), limits
        assert "NoNewPrivs:\t1" in (process / "status").read_text()
        assert b"GGML_NO_BACKTRACE=1" in (process / "environ").read_bytes()
        assert os.getsid(backend._process.pid) != os.getsid(0)
        assert os.readlink(process / "cwd") == os.getcwd()
        assert os.readlink(process / "fd" / "0") == os.readlink(process / "fd" / "1") == os.devnull


@pytest.mark.parametrize(
    ("kind", "number"),
    [("gguf", signal.SIGKILL), ("gguf", signal.SIGSEGV), ("gguf", signal.SIGABRT), ("onnx", signal.SIGSEGV)],
)
def test_death_in_the_middle_of_a_step(
    bundles: dict[str, Path], kind: Format, number: signal.Signals
) -> None:
    backend = open_isolated(bundles, kind)
    sequence = backend.prefill(TOKENS[:9])
    backend.step([sequence], [3])
    with stopped(backend) as pid:

        def kill() -> None:
            os.kill(pid, number)
            os.kill(pid, signal.SIGCONT)

        timer = later(0.1, kill)
        with pytest.raises(BackendCrashed, match=rf"{number.name} \(exit status -{int(number)}\)"):
            backend.step([sequence], [4])
        timer.join()
    for _ in range(2):
        for call in (
            lambda: backend.step([sequence], [4]),
            lambda: backend.prefill([1]),
            lambda: backend.save(sequence),
            lambda: list(backend.teacher_force([1, 2])),
        ):
            with pytest.raises(BackendCrashed, match=number.name):
                call()
    backend.release(sequence)
    backend.close()
    with contextlib.closing(open_isolated(bundles, kind)) as again:
        assert again.prefill(TOKENS[:9]).length == 9


def test_death_between_two_calls_and_while_forcing(bundles: dict[str, Path]) -> None:
    backend = open_isolated(bundles, "onnx")
    chunks = backend.teacher_force(TOKENS)
    next(chunks)
    os.kill(backend._process.pid, signal.SIGKILL)
    with pytest.raises(BackendCrashed, match="SIGKILL"):
        next(chunks)


def test_a_call_that_hangs_is_ended(bundles: dict[str, Path]) -> None:
    backend = open_isolated(bundles, "gguf", call_timeout=0.2)
    sequence = backend.prefill([1, 2])
    with stopped(backend) as pid:
        with pytest.raises(BackendCrashed, match=r"within 0.2 seconds") as caught:
            backend.step([sequence], [3])
        assert caught.value.code == "timeout"
        assert is_gone(pid)


def test_five_crashes_and_reloads_leak_nothing(bundles: dict[str, Path]) -> None:
    def crash() -> int:
        backend = open_isolated(bundles, "gguf")
        kept = backend.step([backend.prefill([1, 2])], [3])
        os.kill(backend._process.pid, signal.SIGSEGV)
        with pytest.raises(BackendCrashed):
            backend.prefill([1])
        assert np.isfinite(kept).all()  # still there, though its process is not
        return backend._process.pid

    def held() -> tuple[int, int, int]:
        gc.collect()
        mapped = Path("/proc/self/maps").read_text().count("memfd:edge-distill")
        return len(os.listdir("/proc/self/fd")), mapped, threading.active_count()

    crash()
    before = held()
    pids = [crash() for _ in range(5)]
    assert held() == before
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]  # not even as zombies


def test_close_and_use_after_it(bundles: dict[str, Path]) -> None:
    backend = open_isolated(bundles, "gguf")
    sequence = backend.prefill([1, 2])
    backend.step([sequence], [3])
    with stopped(backend) as pid:  # even when it does not leave by itself
        start = time.monotonic()
        backend.close()
        assert time.monotonic() - start < 2
        assert is_gone(pid)
    backend.close()
    for call in (
        lambda: backend.step([sequence], [3]),
        lambda: sequence.logits,
        lambda: list(backend.teacher_force([1])),
    ):
        with pytest.raises(BackendError) as caught:
            call()
        assert not isinstance(caught.value, BackendCrashed)
    backend.release(sequence)


def test_dropped_without_close(bundles: dict[str, Path]) -> None:
    backend = open_isolated(bundles, "gguf")
    pid = backend._process.pid
    del backend
    gc.collect()
    assert is_gone(pid)


def test_it_outlives_the_thread_that_loaded_it(bundles: dict[str, Path]) -> None:
    loaded: list[IsolatedBackend] = []
    thread = threading.Thread(target=lambda: loaded.append(open_isolated(bundles, "gguf")))
    thread.start()
    thread.join()
    time.sleep(0.1)
    assert loaded[0].prefill([1, 2]).length == 2
    loaded[0].close()


def test_interrupted_call_is_finished_first(
    pair: tuple[Backend, Backend], request: pytest.FixtureRequest
) -> None:
    # a shell that runs the tests in the background lets them ignore Ctrl-C
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    isolated = pair[1]
    assert isinstance(isolated, IsolatedBackend)
    sequences = [backend.prefill(TOKENS[:7]) for backend in pair]
    with stopped(isolated) as pid:
        later(0.1, lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT))
        timer = later(0.3, lambda: os.kill(pid, signal.SIGCONT))
        with pytest.raises(KeyboardInterrupt):
            isolated.step([sequences[1]], [8])
        timer.join()
    # the step was computed all the same: the sequence is set back to where the caller believes it to be
    for token in (9, 10):
        rows = [backend.step([sequence], [token]) for backend, sequence in zip(pair, sequences, strict=True)]
        np.testing.assert_array_equal(rows[0], rows[1])
    for backend, sequence in zip(pair, sequences, strict=True):
        backend.release(sequence)


@pytest.mark.parametrize(
    ("kind", "options"), [("gguf", {"cache_tokens": 1 << 23}), ("onnx", {"context": 1 << 23})]
)
def test_memory_limit_below_the_need(bundles: dict[str, Path], kind: Format, options: dict[str, int]) -> None:
    """A cache of 4 GiB and 8 GiB, and 64 MiB for the model."""

    def use() -> None:
        with contextlib.closing(open_isolated(bundles, kind, memory_bytes=64 << 20, **options)) as backend:
            sequence = backend.prefill([1, 2])
            for _ in range(24):
                backend.extend(sequence, [1] * 200_000)

    with pytest.raises((ResourceError, BackendCrashed)):
        use()
    with contextlib.closing(open_isolated(bundles, kind, memory_bytes=64 << 20)) as backend:
        backend.prefill(TOKENS)


def test_damaged_files_are_the_same_typed_errors(tmp_path: Path, bundles: dict[str, Path]) -> None:
    for kind in KINDS:
        path = tmp_path / f"model.{kind}"
        path.write_bytes((bundles[kind] / path.name).read_bytes()[:5000])
        with pytest.raises(BundleError) as caught:
            open_isolated({kind: tmp_path}, kind)
        assert path.name in caught.value.what


ORPHAN = """
import os, sys, time
from edge_distill_runtime.engines.isolated import IsolatedBackend
from edge_distill_runtime.bundles.manifest import KVLayout
backend = IsolatedBackend({path!r}, format="gguf", context=64, threads=1, kv=KVLayout(2, 2, 32, 2))
"""


def start_app(bundles: dict[str, Path], code: str) -> subprocess.Popen[str]:
    code = ORPHAN.format(path=str(bundles["gguf"] / "model.gguf")) + code
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment()
    )


@pytest.mark.parametrize("forks", [False, True])
def test_it_dies_with_the_app(bundles: dict[str, Path], forks: bool) -> None:
    # the app's other children may hold its end of the socket open
    fork = "if os.fork() == 0: time.sleep(5); os._exit(0)\n" if forks else ""
    app = start_app(bundles, fork + "print(backend._process.pid, flush=True)\ntime.sleep(60)")
    assert app.stdout is not None
    with app.stdout:
        pid = int(app.stdout.readline())
        assert not is_gone(pid)
        app.kill()
        app.wait()
        start = time.monotonic()
        while not is_gone(pid):
            assert time.monotonic() - start < 2
            time.sleep(0.02)


def test_a_fork_of_the_app_cannot_use_or_end_it(bundles: dict[str, Path]) -> None:
    code = """
sequence = backend.prefill([1, 2])
chunks = backend.teacher_force([1, 2])
next(chunks)
if os.fork() == 0:
    try:
        backend.step([sequence], [3])
    except Exception as error:
        print(type(error).__name__, error.code, flush=True)
    chunks.close(); backend.release(sequence); backend.close()
    sys.exit()
os.wait()
print(backend.step([sequence], [3]).shape)
"""
    app = start_app(bundles, code)
    output, _ = app.communicate(timeout=30)
    assert output.split() == ["BackendError", "forked", "(1,", "512)"]
    assert app.returncode == 0
