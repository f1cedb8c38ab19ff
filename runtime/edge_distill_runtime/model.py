"""A bundle, loaded: text in, text out, over either engine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from edge_distill_runtime.backend import Backend, Sequence, check_room
from edge_distill_runtime.chat import Piece, ReasoningParser, render
from edge_distill_runtime.detokenizer import Detokenizer, encode, load_tokenizer
from edge_distill_runtime.errors import BundleError, InputError, ResourceError
from edge_distill_runtime.machine import memory_limit, usable_cpus
from edge_distill_runtime.manifest import Manifest, read_manifest, verify_files
from edge_distill_runtime.memory import cache_bytes, needed_memory
from edge_distill_runtime.sampling import SamplingOptions, make_sampler

__all__ = ["Event", "Generation", "Model", "load"]

Prompt = str | SequenceOf[Mapping[str, str]]
FinishReason = Literal["stop", "length", "context"]


@dataclass(frozen=True)
class Event:
    """A stretch of generated text."""

    kind: Literal["reasoning", "answer"]
    text: str
    tokens: int
    """Tokens generated so far."""
    seconds: float
    """Since the prompt was computed."""
    finish_reason: FinishReason | None = None
    """Only on the last event: `stop` (a stop token), `length` (max_tokens) or `context` (it is full)."""


@dataclass(frozen=True)
class Generation:
    """A finished generation."""

    text: str
    """Everything that was generated, reasoning markers included."""
    reasoning: str
    answer: str
    tokens: tuple[int, ...]
    """Token ids, without the stop token."""
    finish_reason: FinishReason
    prompt_tokens: int
    prompt_seconds: float
    """Time to compute the prompt."""
    seconds: float
    """Time to generate, the prompt not counted."""

    @property
    def tokens_per_second(self) -> float:
        return len(self.tokens) / self.seconds if self.seconds > 0 else 0.0


def load(path: Path | str, *, context: int | None = None, threads: int | None = None) -> Model:
    """Load a bundle: its hashes are checked, and its model file before an engine may see it.

    `context` is the most tokens of prompt and answer together, by default what the bundle was made for;
    `threads` defaults to the CPUs that this process may use.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise InputError(
            "no-bundle", f"{directory} is no bundle directory", "give a folder made by edge-distill export"
        )
    manifest = read_manifest(directory)
    context = manifest.context_length if context is None else context
    if not 1 <= context <= manifest.context_length:
        raise InputError(
            "bad-context",
            f"context {context} was asked for, {manifest.name} was made for {manifest.context_length} tokens",
            f"ask for 1 to {manifest.context_length}, or export with a larger --context",
        )
    if threads is not None and not 1 <= threads <= 1024:
        raise InputError("bad-threads", f"{threads} threads were asked for", "ask for 1 to 1024")
    verify_files(directory, manifest)
    _check_memory(manifest, context)
    markers = manifest.reasoning
    keep = (markers.open, markers.close) if markers else ()
    tokenizer, detokenizer = load_tokenizer(directory / "tokenizer.json", keep)
    backend = _open_backend(directory, manifest, context, threads or usable_cpus())
    if backend.vocab_size != manifest.vocab_size:
        backend.close()
        raise BundleError(
            "wrong-vocabulary",
            f"the model computes {backend.vocab_size} logits, the manifest says {manifest.vocab_size}",
            "export the bundle again",
        )
    return Model(manifest, backend, tokenizer, detokenizer)


def _open_backend(directory: Path, manifest: Manifest, context: int, threads: int) -> Backend:
    path = directory / manifest.model_file
    if manifest.format == "gguf":
        from edge_distill_runtime.gguf_check import kv_layout, validate_gguf
        from edge_distill_runtime.llama import LlamaBackend

        if (layout := kv_layout(validate_gguf(path))) != manifest.kv:
            raise BundleError(
                "wrong-cache",
                f"the model's cache is {layout}, the manifest says {manifest.kv}",
                "export it again",
            )
        return LlamaBackend(path, context=context, threads=threads)
    from edge_distill_runtime.onnx import OnnxBackend

    return OnnxBackend(path, context=context, threads=threads, head_dim=manifest.kv.head_dim)


def _check_memory(manifest: Manifest, context: int) -> None:
    sizes = {entry.path: entry.size for entry in manifest.files}
    need = needed_memory(
        manifest.format,
        model_bytes=sum(size for path, size in sizes.items() if path.startswith(manifest.model_file)),
        cache_bytes=cache_bytes(manifest.format, manifest.kv.bytes_per_token, context),
        tokenizer_bytes=sizes["tokenizer.json"],
        vocab_size=manifest.vocab_size,
    )
    limit = memory_limit()
    if limit is not None and need > limit:
        need, have = need >> 20, limit >> 20
        raise ResourceError(
            "memory",
            f"{manifest.name} with a context of {context} needs {need} MiB, this process may have {have} MiB",
            f"load with a smaller context: a token takes {manifest.kv.bytes_per_token} bytes",
        )


class Model:
    """A loaded bundle; close it, or use it in a `with` statement."""

    def __init__(
        self, manifest: Manifest, backend: Backend, tokenizer: Any, detokenizer: Detokenizer
    ) -> None:
        self.manifest = manifest
        self.backend = backend
        self.tokenizer = tokenizer
        """A `tokenizers.Tokenizer`."""
        self.detokenizer = detokenizer
        self.chat = manifest.chat

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the model; every later call raises `BackendError`."""
        self.backend.close()

    def encode(self, prompt: Prompt, *, raw: bool = False) -> list[int]:
        """Token ids of messages, or of a user's text, in the chat form; with `raw`, of the text as it is."""
        return self._encode(prompt, raw)[0]

    def _encode(self, prompt: Prompt, raw: bool) -> tuple[list[int], bool]:
        """Token ids, and whether the prompt ends inside the reasoning."""
        if isinstance(prompt, str) and (raw or self.chat is None):
            text = prompt
            tokens = encode(self.tokenizer, text)
            bos = self.manifest.bos_id
            if bos is not None and tokens[:1] != [bos]:
                tokens.insert(0, bos)
        else:
            if self.chat is None or raw:
                raise InputError(
                    "no-chat", f"{self.manifest.name} has no chat form", "give the prompt as one string"
                )
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            text = render(self.chat, messages)
            tokens = encode(self.tokenizer, text)
        markers = self.manifest.reasoning
        return tokens, markers is not None and text.rstrip().endswith(markers.open)

    def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 512,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int | None = None,
        raw: bool = False,
    ) -> Generation:
        """Answer a prompt; sampling options left out come from the manifest (by default greedy)."""
        options = self._options(temperature, top_k, top_p, min_p, seed)
        run = _Run(self, prompt, max_tokens, options, raw)
        seconds = run.complete()
        # the text is made at the end: between two steps every line of Python waits for a cold cache
        text = self.detokenizer.decode(run.tokens)
        pieces = run.pieces(text)
        return Generation(
            text=text,
            reasoning="".join(piece.text for piece in pieces if piece.kind == "reasoning"),
            answer="".join(piece.text for piece in pieces if piece.kind == "answer"),
            tokens=tuple(run.tokens),
            finish_reason=run.finish_reason,
            prompt_tokens=len(run.prompt),
            prompt_seconds=run.prompt_seconds,
            seconds=seconds,
        )

    def stream(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 512,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int | None = None,
        raw: bool = False,
    ) -> Iterator[Event]:
        """The same as `generate`, as events while they happen; dropping the iterator stops the model."""
        options = self._options(temperature, top_k, top_p, min_p, seed)
        return _Run(self, prompt, max_tokens, options, raw).events()

    def _options(
        self,
        temperature: float | None,
        top_k: int | None,
        top_p: float | None,
        min_p: float | None,
        seed: int | None,
    ) -> SamplingOptions:
        default = self.manifest.sampling
        return SamplingOptions(
            default.temperature if temperature is None else temperature,
            default.top_k if top_k is None else top_k,
            default.top_p if top_p is None else top_p,
            default.min_p if min_p is None else min_p,
            seed,
        )


class _Run:
    """One generation: the prompt is checked at once, computed with the first event."""

    def __init__(
        self, model: Model, prompt: Prompt, max_tokens: int, options: SamplingOptions, raw: bool
    ) -> None:
        if max_tokens < 1:
            raise InputError("bad-max-tokens", f"max_tokens is {max_tokens}", "ask for at least 1")
        self._model = model
        self._max_tokens = max_tokens
        self._sample = make_sampler(options)
        self.prompt, inside = model._encode(prompt, raw)
        if not self.prompt:
            raise InputError("empty-prompt", "the prompt is empty", "give at least one character")
        # one token has to fit behind the prompt
        check_room(len(self.prompt), 1, model.backend.context_length)
        self._parser = ReasoningParser(model.manifest.reasoning, inside=inside)
        self.tokens: list[int] = []
        self.finish_reason: FinishReason = "stop"
        self.prompt_seconds = self._started = 0.0

    def complete(self) -> float:
        """Generate to the end; returns the seconds behind the prompt."""
        with self._prompted() as sequence:
            for _ in self._generate(sequence):
                pass
            return time.perf_counter() - self._started

    def pieces(self, text: str) -> list[Piece]:
        """Reasoning and answer in the whole text."""
        return [*self._parser.feed(text), *self._parser.finish()]

    def events(self) -> Iterator[Event]:
        text = self._model.detokenizer.stream()
        with self._prompted() as sequence:
            for token in self._generate(sequence):
                for piece in self._parser.feed(text.feed(token)):
                    yield self._event(piece)
        for piece in self.pieces(text.finish()):
            yield self._event(piece)
        yield self._event(Piece(self._parser.kind, ""), self.finish_reason)

    @contextmanager
    def _prompted(self) -> Iterator[Sequence]:
        """The computed prompt; released at the end, also of a stream that is dropped."""
        backend = self._model.backend
        before = time.perf_counter()
        sequence = backend.prefill(self.prompt)
        self._started = time.perf_counter()
        self.prompt_seconds = self._started - before
        try:
            yield sequence
        finally:
            backend.release(sequence)

    def _generate(self, sequence: Sequence) -> Iterator[int]:
        """Token ids, each one also appended to `tokens`; sets `finish_reason`."""
        step, sample, tokens = self._model.backend.step, self._sample, self.tokens
        stops = frozenset(self._model.manifest.stop_ids)
        context = self._model.backend.context_length
        token = sample(sequence.logits)
        while token not in stops:
            tokens.append(token)
            yield token
            if len(tokens) >= self._max_tokens:
                self.finish_reason = "length"
                return
            if sequence.length >= context:
                self.finish_reason = "context"
                return
            token = sample(step((sequence,), (token,))[0])

    def _event(self, piece: Piece, finish_reason: FinishReason | None = None) -> Event:
        seconds = time.perf_counter() - self._started
        return Event(piece.kind, piece.text, len(self.tokens), seconds, finish_reason)
