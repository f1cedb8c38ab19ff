"""Many requests on one model: batches, turns, room, and every way to end early."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from edge_distill_runtime import BackendError, Busy, Model, ResourceError
from edge_distill_runtime.engines.backend import Backend
from edge_distill_runtime.generation.decoding import Decoding
from edge_distill_runtime.generation.engine import Engine
from tests.random_models import CONTEXT_LENGTH

PROMPTS = [f"Anna has {number} apples and eats {number // 2}. How many are left?" for number in range(2, 18)]
CLOSE = 0.05  # log-probabilities nearer than this may swap when a batch rounds differently


def twin(model: Model, **options: Any) -> Model:
    """The same loaded model under another engine."""
    return Model(model.manifest, model.backend, model.tokenizer, model.detokenizer, **options)


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))


def assert_same_or_near_tie(expected: Any, found: Any) -> None:
    """Equal tokens, or a first difference between two tokens that were almost equally likely."""
    for index, (one, other) in enumerate(zip(expected.tokens, found.tokens, strict=False)):
        if one != other:
            alternatives = {entry[0]: entry[2] for entry in expected.logprobs[index].top}
            assert abs(alternatives[one] - alternatives[other]) < CLOSE
            return
    assert len(expected.tokens) == len(found.tokens)


def test_taking_turns_changes_nothing(model: Model) -> None:
    alone = twin(model, batching=False)
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 1.0}
    expected = [alone.generate(prompt, seed=seed, **options).tokens for seed, prompt in enumerate(PROMPTS)]

    def work(index: int) -> list[Any]:
        order = [(index + turn) % len(PROMPTS) for turn in range(4)]
        return [(seed, alone.generate(PROMPTS[seed], seed=seed, **options).tokens) for seed in order]

    for seed, tokens in (pair for pairs in in_threads(16, work) for pair in pairs):
        assert tokens == expected[seed]
    assert alone.engine.load == (0, 0)


def test_batches_round_differently_at_most(model: Model) -> None:
    together = twin(model)
    options: dict[str, Any] = {"max_tokens": 12, "logprobs": 20}
    expected = [together.generate(prompt, **options) for prompt in PROMPTS]
    found = in_threads(16, lambda index: together.generate(PROMPTS[index], **options))
    for one, other in zip(expected, found, strict=True):
        assert_same_or_near_tie(one, other)
    assert together.engine.load == (0, 0)


def test_samples_share_a_prompt(model: Model) -> None:
    options: dict[str, Any] = {"max_tokens": 10, "temperature": 1.0, "logprobs": 20}
    together = model.sample(PROMPTS[0], 5, seed=7, **options)
    assert len({generation.tokens for generation in together}) == 5
    for index, generation in enumerate(together):
        assert_same_or_near_tie(model.generate(PROMPTS[0], seed=7 + index, **options), generation)


def test_streamed_samples(model: Model) -> None:
    options: dict[str, Any] = {"max_tokens": 10, "temperature": 1.0, "seed": 7}
    whole = model.sample(PROMPTS[0], 3, **options)
    texts, ends = ["", "", ""], [0, 0, 0]
    for event in model.stream(PROMPTS[0], samples=3, **options):
        assert not ends[event.index]
        texts[event.index] += event.text
        ends[event.index] += event.finish_reason is not None
    assert texts == [generation.text for generation in whole]
    assert ends == [1, 1, 1]


def test_cancel_deadline_and_dropped_streams_leave_no_trace(model: Model) -> None:
    before = model.generate(PROMPTS[1], max_tokens=16).tokens
    for count in range(1, 8):
        cancel = threading.Event()
        stream = model.stream(PROMPTS[0], max_tokens=100, cancel=cancel, temperature=1.0, seed=count)
        events = [next(stream) for _ in range(count)]
        cancel.set()
        rest = list(stream)
        assert rest[-1].finish_reason == "cancelled"
        assert rest[-1].tokens <= events[-1].tokens + 1
        dropped = model.stream(PROMPTS[0], max_tokens=100, temperature=1.0, seed=count)
        next(dropped)
        dropped.close()  # type: ignore[attr-defined]
    late = model.generate(PROMPTS[0], max_tokens=100, deadline=1e-9)
    assert (late.finish_reason, late.tokens) == ("deadline", ())
    cancelled = threading.Event()
    cancelled.set()
    assert model.generate(PROMPTS[0], cancel=cancelled).finish_reason == "cancelled"
    assert model.engine.load == (0, 0)
    assert model.generate(PROMPTS[1], max_tokens=16).tokens == before


def test_cancel_from_another_thread(model: Model) -> None:
    cancel = threading.Event()
    threading.Timer(0.05, cancel.set).start()
    results = in_threads(
        4,
        lambda index: model.generate(
            PROMPTS[index], max_tokens=10_000, cancel=cancel, temperature=1.0, seed=1
        ),
    )
    assert {result.finish_reason for result in results} <= {"cancelled", "context", "stop"}
    assert model.engine.load == (0, 0)


def test_a_full_queue(model: Model) -> None:
    busy = Engine(model.backend, most_waiting=1)
    prompt, decodings = model.prepare(PROMPTS[0], 1, {})
    busy.submit(prompt, decodings)
    with pytest.raises(Busy, match="1 requests wait already"):
        busy.submit(prompt, decodings)


def test_more_samples_than_room(model: Model) -> None:
    """They wait for each other when the cache cannot hold all of them."""
    tokens = 100
    results = model.sample(PROMPTS[0], 12, max_tokens=tokens, temperature=1.0, seed=1)
    assert 12 * tokens > CONTEXT_LENGTH
    assert all(len(result.tokens) == tokens or result.finish_reason == "stop" for result in results)


def test_an_error_is_only_its_own_requests(model: Model) -> None:
    def work(index: int) -> Any:
        prompt, decodings = model.prepare(PROMPTS[index], 1, {"max_tokens": 20})
        if index == 1:

            def fail(logits: Any) -> None:
                raise ResourceError("test", "this request fails")

            decodings[0].next = fail  # type: ignore[method-assign]
        job = model.engine.submit(prompt, decodings)
        try:
            model.engine.run_until(job, lambda: False)
        except ResourceError as exc:
            return str(exc)
        finally:
            model.engine.close_job(job)
        return len(decodings[0].tokens)

    assert in_threads(3, work) == [20, "this request fails", 20]
    assert model.engine.load == (0, 0)


def test_an_interrupt_ends_every_request_of_its_step(model: Model) -> None:
    prompt, decodings = model.prepare(PROMPTS[0], 2, {"max_tokens": 20})
    calls = 0

    def interrupt(decoding: Decoding, logits: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        Decoding.next(decoding, logits)

    decodings[0].next = lambda logits: interrupt(decodings[0], logits)  # type: ignore[method-assign]
    job = model.engine.submit(prompt, decodings)
    other = model.engine.submit(*model.prepare(PROMPTS[1], 1, {"max_tokens": 20}))
    with pytest.raises(KeyboardInterrupt):
        model.engine.run_until(job, lambda: False)
    model.engine.close_job(job)
    with pytest.raises(BackendError, match="another thread was interrupted"):
        model.engine.run_until(other, lambda: False)
    assert model.engine.load == (0, 0)
    assert model.generate(PROMPTS[0], max_tokens=5).finish_reason == "length"


def test_every_sequence_is_given_back(model: Model, backend: Backend) -> None:
    in_threads(8, lambda index: model.sample(PROMPTS[index], 3, max_tokens=5, temperature=1.0, seed=1))
    # all of them are free again
    root = backend.prefill([1, 2, 3])
    forks = backend.fork(root, backend.max_sequences - 1)
    assert len({sequence.slot for sequence in [root, *forks]}) == backend.max_sequences
    for sequence in [root, *forks]:
        backend.release(sequence)


def test_close_while_others_compute(model: Model) -> None:
    """Only the engine: the backend belongs to other tests too."""
    streams = [model.stream(prompt, max_tokens=50) for prompt in PROMPTS[:3]]
    for stream in streams:
        next(stream)
    streams[0].close()  # type: ignore[attr-defined]
    assert sum(1 for _ in streams[1]) > 1
    assert list(streams[2])[-1].finish_reason is not None


def test_prompt_lookup_is_exact(model: Model) -> None:
    text = "Anna has 7 apples. Ben has 9 apples. Anna has 7 apples. Ben has 9"
    for prompt in (text, "ab ab ab ab ab ab", *PROMPTS[:4]):
        plain = model.generate(prompt, max_tokens=60, logprobs=20, prompt_lookup=False)
        assert_same_or_near_tie(plain, model.generate(prompt, max_tokens=60, prompt_lookup=True))
    # sampling draws the same numbers with drafts asked for or not: they are for greedy decoding alone
    sampled = model.generate(text, max_tokens=20, temperature=1.0, seed=1, prompt_lookup=True)
    assert sampled.tokens == model.generate(text, max_tokens=20, temperature=1.0, seed=1).tokens
