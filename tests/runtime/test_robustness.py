"""What an app may do wrong or have bad luck with: the same typed errors from both engines, and no signal."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from edge_distill_export.checkpoint import Checkpoint
from edge_distill_runtime import BackendCrashed, BackendError, InputError, Model, load
from edge_distill_runtime.engines.isolated import IsolatedBackend
from edge_distill_runtime.errors import EdgeDistillError
from tests.random_models import CONTEXT_LENGTH, random_checkpoint, variant_named
from tests.runtime.bundles import write_manifest, write_model
from tests.runtime.isolation import environment
from tests.runtime.test_engine import assert_same_or_near_tie, twin

QUESTION = "Anna has 7 apples. How many are left?"
THREADS, REQUESTS = 16, 50
KINDS = ["gguf", "onnx"]


def canary(number: int) -> str:
    """A word that no other prompt holds."""
    return f"canary{number * 7919 % 100_003:06d}"


def ask(model: Model, number: int, **options: Any) -> Any:
    return model.generate(f"{canary(number)} has {number % 97} apples", max_tokens=6, raw=True, **options)


def in_threads(ask_number: Callable[[int], Any]) -> list[Any]:
    """16 threads with 50 requests each; results by number."""

    def work(thread: int) -> list[Any]:
        return [ask_number(turn * THREADS + thread) for turn in range(REQUESTS)]

    with ThreadPoolExecutor(THREADS) as pool:
        columns = list(pool.map(work, range(THREADS)))
    return [columns[number % THREADS][number // THREADS] for number in range(THREADS * REQUESTS)]


def test_many_threads_without_batching(model: Model) -> None:
    alone = twin(model, batching=False)
    numbers = range(0, THREADS * REQUESTS, 7)
    expected = [ask(alone, number, temperature=1.0, seed=number) for number in numbers]
    found = in_threads(lambda number: ask(alone, number, temperature=1.0, seed=number))
    for number, one in zip(numbers, expected, strict=True):
        assert found[number].tokens == one.tokens
    assert alone.engine.load == (0, 0)


def test_many_threads_together(model: Model) -> None:
    """No request sees another's text: its tokens are its own, up to the first near-tie."""
    together = twin(model)
    expected = [ask(together, number, logprobs=20) for number in range(THREADS * REQUESTS)]
    assert len({one.tokens for one in expected}) > 300  # a swap would be seen
    found = in_threads(lambda number: ask(together, number))
    for number, (one, other) in enumerate(zip(expected, found, strict=True)):
        assert one.prompt_tokens == other.prompt_tokens
        assert_same_or_near_tie(one, other)
        assert canary(number) not in other.text  # the prompt itself is no part of it either
    words = {canary(number) for number in range(THREADS * REQUESTS)}
    assert len(words) == THREADS * REQUESTS
    assert not words & {word for one in found for word in re.findall(r"canary\d{6}", one.text)}
    assert together.engine.load == (0, 0)


def test_cancelled_at_random_tokens(model: Model) -> None:
    generator = random.Random(20264)
    before = model.generate(QUESTION, max_tokens=8, temperature=1.0, seed=3)
    for count in range(200):
        cancel = threading.Event()
        stream = model.stream(canary(count), max_tokens=60, cancel=cancel, temperature=1.0, seed=count)
        after = generator.randrange(0, 20)
        for event in stream:
            if event.tokens >= after:
                break
        if count % 2:
            cancel.set()
            assert list(stream)[-1].finish_reason == "cancelled"
        else:
            stream.close()  # type: ignore[attr-defined]
        assert model.generate(QUESTION, max_tokens=8, temperature=1.0, seed=3).tokens == before.tokens, count
    assert model.engine.load == (0, 0)


# -- the error matrix ---------------------------------------------------------------------------------------------


def failure(call: Any) -> tuple[type[EdgeDistillError], str, str]:
    with pytest.raises(EdgeDistillError) as caught:
        call()
    return type(caught.value), caught.value.code, str(caught.value)


@pytest.mark.parametrize(
    ("prompt", "options", "error", "code", "message"),
    [
        (
            "a b " * 200,
            {"raw": True},
            InputError,
            "context-full",
            r"\d{3} tokens do not fit the context of 256",
        ),
        ("", {"raw": True}, InputError, "empty-prompt", "the prompt is empty"),
        ("ok \ud800", {"raw": True}, InputError, "bad-text", "lone surrogates.* position 3"),
        ("a", {"max_tokens": 0}, InputError, "bad-max-tokens", "max_tokens is 0"),
    ],
)
def test_prompts_that_cannot_be_answered(
    model: Model, prompt: str, options: Any, error: type, code: str, message: str
) -> None:
    found = failure(lambda: model.generate(prompt, **options))
    assert found[:2] == (error, code)
    assert re.search(message, found[2])
    assert model.generate(QUESTION, max_tokens=2).tokens


@pytest.mark.parametrize(
    "piece",
    ["a", " ", "\n", "7", "🙂", "\0", "ab ", "<|im_start|>", "<think>", "é", "\u0301", "</s>", "'s", "▁"],
)
def test_megabyte_prompts_are_refused_quickly(model: Model, piece: str) -> None:
    text = piece * (1_000_000 // len(piece.encode()))
    start = time.process_time()  # other tests run beside it
    found = failure(lambda: model.generate(text))
    assert time.process_time() - start < 2.0
    assert found[:2] == (InputError, "context-full")
    assert re.search(r"\d{3,} tokens do not fit the context of 256", found[2])


def test_context_that_fills_up(model: Model) -> None:
    result = model.generate(QUESTION, max_tokens=10_000, temperature=1.0, seed=1)
    assert result.finish_reason == "context"
    # the last token is not computed, so it needs no room
    assert result.prompt_tokens + len(result.tokens) == CONTEXT_LENGTH + 1


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_not_numbers(tmp_path: Path, kind: Any) -> None:
    random_model, tokenizer = random_checkpoint(variant_named("llama-tied-gqa"))
    with torch.no_grad():
        random_model.model.norm.weight[3] = float("nan")
    write_model(tmp_path / kind, Checkpoint(random_model, tokenizer, "tiny", {}), kind)
    write_manifest(tmp_path / kind, kind)
    with load(tmp_path / kind, threads=1) as model:
        for _ in range(2):
            found = failure(lambda: model.generate(QUESTION))
            assert found[:2] == (BackendError, "bad-logits")
            assert "NaN or infinity for 512 of 512 logits" in found[2]
        assert model.engine.load == (0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_use_after_close(bundles: dict[str, Path], kind: str) -> None:
    model = load(bundles[kind], threads=1)
    stream = model.stream(QUESTION, max_tokens=50)
    next(stream)
    model.close()
    model.close()
    for call in (
        lambda: model.generate(QUESTION),
        lambda: model.sample(QUESTION, 2),
        lambda: list(model.stream(QUESTION)),
        lambda: list(stream),
        lambda: model.cache_prefix(QUESTION),
    ):
        assert failure(call)[:2] == (BackendError, "closed")
    assert model.encode(QUESTION)  # the tokenizer is still there


def run_child(code: str, *arguments: object) -> str:
    """What a fresh process prints; it must end by itself."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment() | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr[-500:]}"
    return done.stdout.strip()


_FORK = """
import os, sys
from edge_distill_runtime import load
from edge_distill_runtime.errors import EdgeDistillError
model = load(sys.argv[1], threads=2)
before = model.generate("Anna", max_tokens=4).tokens
child = os.fork()
if not child:
    for call in (lambda: model.generate("Anna"), lambda: list(model.stream("Anna")), lambda: model.sample("Anna", 2)):
        try:
            call()
            os._exit(1)
        except EdgeDistillError as error:
            if (type(error).__name__, error.code) != ("BackendError", "forked") or str(os.getpid()) not in str(error):
                os._exit(2)
    model.close()
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), before == model.generate("Anna", max_tokens=4).tokens)
"""


@pytest.mark.parametrize("kind", KINDS)
def test_forked_processes(bundles: dict[str, Path], kind: str) -> None:
    assert run_child(_FORK, bundles[kind]) == "0 True"


_CHANGE = """
import os, sys
from pathlib import Path
from edge_distill_runtime import load
folder, how = Path(sys.argv[1]), sys.argv[2]
model = load(folder, threads=1)
before = model.generate("Anna", max_tokens=8).tokens
assert not any(str(folder) in line for line in open("/proc/self/maps")), "a file is mapped"
for path in list(folder.iterdir()):
    size = path.stat().st_size
    if how == "truncated":
        os.truncate(path, 0)
    elif how == "overwritten":
        with open(path, "r+b") as file:
            file.write(b"\\xff" * size)
    else:
        path.unlink()
        path.write_bytes(bytes(size))
print(before == model.generate("Anna", max_tokens=8).tokens)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("how", ["truncated", "overwritten", "replaced"])
@pytest.mark.parametrize("kind", KINDS)
def test_files_that_change_while_they_are_loaded(
    bundles: dict[str, Path], kind: str, how: str, tmp_path: Path
) -> None:
    """ONNX Runtime would map model.onnx.data, and die by SIGBUS."""
    folder = shutil.copytree(bundles[kind], tmp_path / "bundle")
    assert run_child(_CHANGE, folder, how) == "True"


_LIMIT = """
import resource, sys
from pathlib import Path
import edge_distill_runtime.engines.llama, edge_distill_runtime.engines.onnx, tokenizers
from edge_distill_runtime import load
from edge_distill_runtime.errors import EdgeDistillError
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (int(sys.argv[2]) << 20), -1))
try:
    with load(sys.argv[1], threads=1) as model:
        print("ok", len(model.generate("Anna", max_tokens=200).tokens))
except EdgeDistillError as error:
    print(type(error).__name__, error.code, error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")
@pytest.mark.parametrize("room", [4, 8, 16, 32, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_memory_limits_below_the_need(bundles: dict[str, Path], kind: str, room: int) -> None:
    """libllama would die where its work space cannot be had."""
    output = run_child(_LIMIT, bundles[kind], room)
    assert re.match(
        r"ResourceError memory tiny .* needs [67]\d MiB, this process may have \d+ MiB", output
    ) or (output == "ok 200" and room > 50)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")
@pytest.mark.parametrize("kind", KINDS)
def test_memory_limit_that_suffices(bundles: dict[str, Path], kind: str) -> None:
    assert run_child(_LIMIT, bundles[kind], 200) == "ok 200"


# -- isolate=True -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="isolation")
@pytest.mark.parametrize("what", ["gguf", "onnx", "gguf/model.gguf"])
def test_a_crash_is_survived_and_the_model_loads_again(bundles: dict[str, Path], what: str) -> None:
    kind, _, file = what.partition("/")
    path = bundles[kind] / file
    expected: Any = None
    for _ in range(3):
        with load(path, threads=1, isolate=True) as model:
            result = model.generate(QUESTION, max_tokens=8)
            expected = expected or result
            assert result.tokens == expected.tokens
            stream = model.stream(QUESTION, max_tokens=50)
            next(stream)
            assert isinstance(model.backend, IsolatedBackend)
            os.kill(model.backend._process.pid, signal.SIGKILL)
            calls: tuple[Callable[[], Any], ...] = (
                partial(list, stream),
                partial(model.generate, QUESTION),
                partial(model.sample, QUESTION, 2),
            )
            for call in calls:
                error, code, text = failure(call)
                assert (error, code) == (BackendCrashed, "crashed")
                assert "SIGKILL" in text or "9" in text
