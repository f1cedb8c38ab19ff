"""`bundle:DIR` and `gguf:FILE`: a student of an earlier day, or any GGUF file, run by our own runtime."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edge_distill.traces.teachers.markers import cut_at_stop, tidy
from edge_distill.traces.teachers.teacher import Request, Sampling, Written, check_requests
from edge_distill_runtime.errors import InputError, ResourceError

if TYPE_CHECKING:
    from edge_distill_runtime import Model
    from edge_distill_runtime.bundles.manifest import Manifest
    from edge_distill_runtime.generation.decoding import Decoding
    from edge_distill_runtime.generation.engine import Job

__all__ = ["RuntimeTeacher"]

_CACHE = 2048  # tokens for each request that runs; more of them begin when there is room


@dataclass(eq=False)
class _Asked:
    """Requests of one prompt under way, and their decodings."""

    job: Job
    decodings: dict[int, Decoding]
    """By the request's index; those that are not yet finished."""
    reasoning: dict[int, str]
    text: dict[int, str]
    continued: bool


class RuntimeTeacher:
    """A model of the runtime; see `open_teacher`.

    Requests share every step of the model, and those with the same prompt share its computation. A request's text
    depends on its seed alone when the engine is ONNX Runtime, or with `at_once` 1. libllama keeps values in 16 bits
    and sums them in an order that depends on what else lies in its cache: now and then a sample goes another way.
    """

    can_continue = True

    def __init__(self, kind: str, path: str, *, at_once: int = 8) -> None:
        """`kind` is bundle or gguf. Raises what `edge_distill_runtime.load` does."""
        from edge_distill_runtime import load
        from edge_distill_runtime.bundles.opening import find

        context = find(Path(path)).default_context
        cache = {"cache_tokens": max(context, at_once * min(context, _CACHE))}
        self._model: Model = load(path, context=context, backend_options=cache)
        # one slot is the prompt's while its samples begin
        self._at_once = min(at_once, self._model.backend.max_sequences - 1)
        manifest = self._model.manifest
        # a budget would close the reasoning by force, and the trace would not tell
        self._model.manifest = replace(manifest, reasoning_lengths=None)
        self.name = f"{kind}:{manifest.name}@{_short_hash(manifest, self._model.model_hash)}"

    def write(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Written]]:
        """See `Teacher.write`. A prompt that does not fit the context is that request's error."""
        check_requests(self, requests)
        return _Run(self._model, requests, sampling, self._at_once).results()

    def close(self) -> None:
        """Free the model; may be called twice."""
        self._model.close()


class _Run:
    """One call of `write`."""

    def __init__(self, model: Model, requests: Sequence[Request], sampling: Sampling, at_once: int) -> None:
        self._model = model
        self._requests = requests
        self._sampling = sampling
        self._at_once = at_once
        self._pending = deque(_by_prompt(requests))
        self._running: list[_Asked] = []

    def results(self) -> Iterator[tuple[int, Written]]:
        try:
            while self._pending or self._running:
                yield from self._begin()
                if self._running:
                    yield from self._step()
        finally:
            for asked in self._running:
                self._model.engine.close_job(asked.job)

    def _begin(self) -> Iterator[tuple[int, Written]]:
        """Start as many requests as may run together; yields those that cannot be asked."""
        while self._pending and (room := self._at_once - sum(len(a.decodings) for a in self._running)) > 0:
            indices, rest = self._pending[0][:room], self._pending[0][room:]
            self._pending.popleft()
            if rest:
                self._pending.appendleft(rest)
            tokens: list[int] = []
            decodings = {}
            for index in indices:
                try:
                    tokens, decodings[index] = self._decoding(self._requests[index])
                except InputError as exc:
                    yield index, Written("", "", "error", 0, str(exc))
            if decodings:
                job = self._model.engine.submit(tokens, list(decodings.values()), wants_news=True)
                empty = dict.fromkeys(decodings, "")
                continued = bool(self._requests[indices[0]].reasoning)
                self._running.append(_Asked(job, decodings, empty, empty.copy(), continued))

    def _decoding(self, request: Request) -> tuple[list[int], Decoding]:
        sampling = self._sampling
        # a base model continues a text
        text = "".join(f"{turn['content']}\n" for turn in request.turns)
        tokens, (decoding,) = self._model.prepare(
            text if self._model.chat is None else request.turns,
            1,
            {
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": 0,
                "min_p": 0.0,
                "repetition_penalty": 1.0,
                "max_tokens": sampling.max_tokens,
                "seed": request.seed,
            },
            begun=request.reasoning,
        )
        return tokens, decoding

    def _step(self) -> Iterator[tuple[int, Written]]:
        """Compute until a request is finished, and yield those that are."""
        finished: dict[int, Written] = {}
        with suppress(ResourceError):  # the cache has no room for one prompt and its answer
            self._model.engine.run_until(self._running[0].job, partial(self._collect, finished))
        self._collect(finished)
        for asked in list(self._running):
            error = asked.job.error
            if error is not None and not isinstance(error, ResourceError):
                raise error
            finished |= {index: Written("", "", "error", 0, str(error)) for index in asked.decodings if error}
            if error is not None or not asked.decodings:
                self._running.remove(asked)
                self._model.engine.close_job(asked.job)
        yield from finished.items()

    def _collect(self, finished: dict[int, Written]) -> bool:
        """Read what has come, and take out what has ended; called between two steps."""
        for asked in self._running:
            for index, decoding in list(asked.decodings.items()):
                for event in decoding.take_events():
                    part = asked.reasoning if event.kind == "reasoning" else asked.text
                    part[index] += event.text
                cut = cut_at_stop(asked.reasoning[index], asked.text[index], self._sampling.stop)
                if cut is not None:
                    decoding.abandon()
                elif decoding.finish_reason is None or asked.job.error is not None:
                    continue
                reason = "stop" if cut else str(decoding.finish_reason)
                parts = cut or (asked.reasoning[index], asked.text[index])
                finished[index] = Written(
                    *tidy(*parts, continued=asked.continued),
                    "length" if reason == "context" else reason,
                    len(decoding.tokens),
                )
                del asked.decodings[index]
        return bool(finished) or any(asked.job.error is not None for asked in self._running)


def _by_prompt(requests: Sequence[Request]) -> list[list[int]]:
    """Indices of the requests, those with the same prompt together."""
    groups: dict[str, list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(json.dumps([request.turns, request.reasoning]), []).append(index)
    return list(groups.values())


def _short_hash(manifest: Manifest, model_hash: str) -> str:
    """Of all that steers the text."""
    parts = [
        model_hash,
        manifest.chat and asdict(manifest.chat),
        manifest.reasoning and asdict(manifest.reasoning),
        manifest.stop_ids,
        manifest.bos_id,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]
