"""A bundle, loaded: text in, text out, over either engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Unpack

from edge_distill_runtime.bundles.manifest import Manifest
from edge_distill_runtime.bundles.opening import open_model
from edge_distill_runtime.engines.backend import Backend, check_room
from edge_distill_runtime.errors import InputError
from edge_distill_runtime.generation.decoding import Decoding, Event, Language
from edge_distill_runtime.generation.engine import Engine
from edge_distill_runtime.generation.options import GenerationOptions, Settings, resolve
from edge_distill_runtime.generation.prompt_cache import PromptCache, default_directory
from edge_distill_runtime.generation.result import Generation, finished
from edge_distill_runtime.text.chat import Prompt, render
from edge_distill_runtime.text.detokenizer import Detokenizer, encode

if TYPE_CHECKING:
    from edge_distill_runtime.generation.constraint import Constraint, ConstraintCompiler
    from edge_distill_runtime.reasoning.reason import Reasoning

__all__ = ["Event", "Generation", "Model", "load"]

_CHARACTERS = 16  # of text with more for each token than this, all is tokenized


def load(
    path: Path | str,
    *,
    context: int | None = None,
    threads: int | None = None,
    batching: bool = True,
    backend_options: Mapping[str, Any] | None = None,
    isolate: bool = False,
    kv_cache: str | None = None,
) -> Model:
    """Load a bundle folder, a bare GGUF file, or a folder made for onnxruntime-genai.

    Files are checked before an engine may see them: a bundle's hashes, a GGUF file's header. `context` is the most
    tokens of prompt and answer together, by default what a bundle was made for, else at most 4,096; `threads`
    defaults to the CPUs that this process may use.

    With `batching`, requests of several threads share every step, which may round differently in the last bits;
    without, they are computed one after the other, and the same seed always gives the same tokens.
    `backend_options` may hold `cache_tokens`, the size of the key-value cache in tokens over all sequences together
    (default: `context` for GGUF, as needed for ONNX), and `own_caches`: for GGUF, each sequence gets its part of them
    for itself, which is faster where many different prompts share a step, and forks are copies. With `isolate`, the
    engine runs in a child process with limits: when it dies, calls raise `BackendCrashed`, and the model can be loaded
    again.

    `kv_cache` is the precision of the keys and values: f16, q8_0 or q4_0 for GGUF, by default the manifest's or f16.
    An ONNX graph has its own, and any other raises `InputError`.
    """
    opened = open_model(
        path,
        context=context,
        threads=threads,
        backend_options=backend_options,
        isolate=isolate,
        kv_cache=kv_cache,
    )
    # what a child process says is not trusted: no state of its making may outlive it
    directory = None if isolate else default_directory()
    return Model(
        opened.manifest,
        opened.backend,
        opened.tokenizer,
        opened.detokenizer,
        batching=batching,
        cache=PromptCache(
            opened.model_hash,
            format=opened.manifest.format,
            directory=directory,
            precision=opened.kv_cache,
        ),
        notes=opened.notes,
        model_hash=opened.model_hash,
    )


class Model:
    """A loaded bundle; close it, or use it in a `with` statement. Threads may share it."""

    def __init__(
        self,
        manifest: Manifest,
        backend: Backend,
        tokenizer: Any,
        detokenizer: Detokenizer,
        *,
        batching: bool = True,
        cache: PromptCache | None = None,
        notes: tuple[str, ...] = (),
        model_hash: str = "",
    ) -> None:
        self.manifest = manifest
        self.backend = backend
        self.tokenizer = tokenizer
        """A `tokenizers.Tokenizer`."""
        self.detokenizer = detokenizer
        self.chat = manifest.chat
        self.model_hash = model_hash
        """SHA-256 of the model's files, in lower-case hexadecimal."""
        self.notes = notes
        """What a person should know of a model that came without a manifest."""
        self.engine = Engine(backend, batching=batching, cache=cache)
        self._cache = cache
        self._language = Language(
            detokenizer, self._encode_fragment, frozenset(manifest.stop_ids), manifest.reasoning
        )

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the model; every later call raises `BackendError`."""
        self.backend.close()

    # -- prompts --------------------------------------------------------------------------------------------

    def encode(self, prompt: Prompt, *, raw: bool = False) -> list[int]:
        """Token ids of messages, or of a user's text, in the chat form; with `raw`, of the text as it is."""
        return self._tokenize(*self._prompt_text(prompt, raw))

    def _prompt_text(self, prompt: Prompt, raw: bool, *, complete: bool = True) -> tuple[str, bool]:
        """The prompt as one string, and whether it is raw; `complete` invites the assistant to speak."""
        if isinstance(prompt, str) and (raw or self.chat is None):
            return prompt, True
        if self.chat is None or raw:
            raise InputError(
                "no-chat", f"{self.manifest.name} has no chat form", "give the prompt as one string"
            )
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return render(self.chat, messages, complete), False

    def _tokenize(self, text: str, raw: bool) -> list[int]:
        tokens = encode(self.tokenizer, text)
        bos = self.manifest.bos_id
        if raw and bos is not None and tokens[:1] != [bos]:
            tokens.insert(0, bos)
        return tokens

    def _refuse_far_too_long(self, text: str) -> None:
        """By its beginning: a megabyte takes seconds to tokenize."""
        most = _CHARACTERS * self.backend.context_length
        if len(text) > most:  # a token may be cut in two at its end
            check_room(len(encode(self.tokenizer, text[:most])[:-64]), 1, self.backend.context_length)

    def _encode_fragment(self, text: str) -> list[int]:
        """Token ids of text in the middle of a sequence: SentencePiece would put a space before it."""
        before, whole = encode(self.tokenizer, "\n"), encode(self.tokenizer, "\n" + text)
        return whole[len(before) :] if whole[: len(before)] == before else encode(self.tokenizer, text)

    def _steer(self, text: str, settings: Settings) -> tuple[str, bool]:
        """The prompt with the reasoning opened or closed as asked, and whether it ends inside the reasoning."""
        markers = self.manifest.reasoning
        if markers is None:
            return text, False
        inside = text.rstrip().endswith(markers.open)
        if settings.raw:  # the caller may have begun the reasoning
            inside = text.rfind(markers.open) > text.rfind(markers.close)
        wanted = settings.thinking
        if wanted is None and settings.answer_format is not None:
            wanted = True  # else the model could not reason: the format would hold from the first token on
        if wanted and not inside:
            return f"{text}{markers.open}\n", True
        if wanted is False:
            opening = "" if inside else f"{markers.open}\n"
            return f"{text}{opening}\n{markers.close}\n\n", False
        return text, inside

    def _begin(self, text: str, inside: bool, reasoning: str) -> tuple[str, bool]:
        """The prompt with the beginning of the reasoning, and whether it ends inside of it."""
        markers = self.manifest.reasoning
        if markers is not None and not inside:
            text += markers.open
        if markers is not None and not text.endswith("\n"):
            text += "\n"
        return text + reasoning, markers is not None

    # -- generating -----------------------------------------------------------------------------------------

    def generate(self, prompt: Prompt, **options: Unpack[GenerationOptions]) -> Generation:
        """Answer a prompt: one question, or messages `{"role": ..., "content": ...}`."""
        return self.sample(prompt, 1, **options)[0]

    def sample(self, prompt: Prompt, n: int, **options: Unpack[GenerationOptions]) -> list[Generation]:
        """`n` answers to one prompt, which is computed once; the i-th one draws with seed + i."""
        tokens, decodings = self.prepare(prompt, n, options)
        job = self.engine.submit(tokens, decodings)
        try:
            self.engine.run_until(job, lambda: False)
        finally:
            self.engine.close_job(job)
        return [finished(decoding, job) for decoding in decodings]

    def stream(
        self, prompt: Prompt, *, samples: int = 1, **options: Unpack[GenerationOptions]
    ) -> Iterator[Event]:
        """The same as `sample`, as events while they happen; closing or dropping the iterator stops the model.

        The prompt is checked at once and computed with the first event.
        """
        return self._events(*self.prepare(prompt, samples, options))

    def _events(self, tokens: list[int], decodings: list[Decoding]) -> Iterator[Event]:
        job = self.engine.submit(tokens, decodings, wants_news=True)
        try:
            speaking = list(decodings)
            while speaking:
                seen = sum(len(decoding.tokens) for decoding in speaking)
                yield from chain.from_iterable(decoding.take_events() for decoding in speaking)
                speaking = [decoding for decoding in speaking if not decoding.has_told_all]
                if speaking:
                    self.engine.run_until(job, partial(_have_news, speaking, seen))
        finally:
            self.engine.close_job(job)

    def prepare(
        self, prompt: Prompt, n: int, options: GenerationOptions, *, first: int = 0, begun: str = ""
    ) -> tuple[list[int], list[Decoding]]:
        """Token ids of the prompt and `n` decodings for the engine, numbered from `first` on.

        `begun` is a reasoning that the model goes on with; without markers it just follows the prompt.
        """
        settings = resolve(options, self.manifest)
        most = self.backend.max_sequences - 1  # the prompt itself is a sequence while others begin
        if not 1 <= n <= most:
            raise InputError("bad-samples", f"{n} samples were asked for", f"ask for 1 to {most}")
        text, raw = self._prompt_text(prompt, settings.raw)
        text, inside = self._steer(text, settings)
        if begun:
            text, inside = self._begin(text, inside, begun)
        self._refuse_far_too_long(text)
        tokens = self._tokenize(text, raw)
        if not tokens:
            raise InputError("empty-prompt", "the prompt is empty", "give at least one character")
        # one token has to fit behind the prompt
        check_room(len(tokens), 1, self.backend.context_length)
        room = self.backend.context_length - len(tokens) + 1
        decodings = [
            Decoding(
                self._language,
                settings.for_sample(index),
                tokens,
                inside=inside,
                room=room,
                constraint=self._constraint(settings),
                index=index,
            )
            for index in range(first, first + n)
        ]
        return tokens, decodings

    def _constraint(self, settings: Settings) -> Constraint | None:
        if settings.answer_format is None:
            return None
        return self._compiler.compile(settings.answer_format)

    @cached_property
    def _compiler(self) -> ConstraintCompiler:
        from edge_distill_runtime.generation.constraint import ConstraintCompiler

        markers = self.manifest.reasoning
        marks = [self._encode_fragment(text) for text in (markers.open, markers.close)] if markers else []
        return ConstraintCompiler(
            self.detokenizer.bytes_of,
            self._encode_fragment,
            vocab_size=self.manifest.vocab_size,
            stop_ids=self.manifest.stop_ids,
            special_ids=[tokens[0] for tokens in marks if len(tokens) == 1],
        )

    def reason(
        self,
        problem: Prompt,
        *,
        samples: int = 8,
        stop_when: float | None = 0.95,
        verify: bool = False,
        tools: SequenceOf[Callable[..., Any]] = (),
        **options: Unpack[GenerationOptions],
    ) -> Reasoning:
        """Solve a problem by self-consistency; see `edge_distill_runtime.reasoning.reason`."""
        from edge_distill_runtime.reasoning.reason import reason

        return reason(
            self, problem, samples=samples, stop_when=stop_when, verify=verify, tools=tools, options=options
        )

    def cache_prefix(self, prompt: Prompt, *, raw: bool = False, disk: bool = False) -> int:
        """Compute the beginning that later prompts share once, and keep its state; returns its tokens.

        For messages that is all up to where the next message begins. With `disk`, the state is kept in the
        user's cache directory as well, for later processes.
        """
        if self._cache is None:
            raise InputError(
                "no-cache", "this model was loaded without a prompt cache", "load it with load()"
            )
        text, is_raw = self._prompt_text(prompt, raw, complete=False)
        tokens = self._tokenize(text, is_raw)
        check_room(len(tokens), 1, self.backend.context_length)
        job = self.engine.submit(tokens, (), stays_open=True)
        try:
            self.engine.run_until(job, lambda: job.prompt_is_computed)
            assert job.root is not None
            self._cache.store(tokens, self.backend.save(job.root), disk=disk)
        finally:
            self.engine.close_job(job)
        return len(tokens)


def _have_news(decodings: SequenceOf[Decoding], seen: int) -> bool:
    """Whether any of them ended, or has more tokens than `seen` altogether."""
    if any(decoding.is_finished for decoding in decodings):
        return True
    return sum(len(decoding.tokens) for decoding in decodings) != seen
