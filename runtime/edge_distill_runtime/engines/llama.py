"""libllama behind the step interface, through llama-cpp-python's low-level bindings.

The only module that imports `llama_cpp`. Its high-level `Llama` class is not used: it takes half of the CPUs,
has no forks and drops characters.
"""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from pathlib import Path
from typing import Any

import numpy as np

from edge_distill_runtime.engines.backend import (
    EngineLock,
    Floats,
    Integers,
    Sequence,
    StateLayout,
    check_finite,
    check_room,
    check_step,
    check_tokens,
    most_sequences,
)
from edge_distill_runtime.engines.local import LocalBackend
from edge_distill_runtime.errors import BackendError, BundleError, InputError, MissingExtra, ResourceError

__all__ = ["CACHE_STEP", "LlamaBackend", "library"]

CACHE_STEP = 256
"""Tokens: caches of sequences' own have a multiple of them."""

_BATCH = 512
_MOST_BETWEEN = 3  # free caches between two others that run in one batch with them
_LOG_ERROR = 4  # GGML_LOG_LEVEL_ERROR
_LOG: deque[str] = deque(maxlen=8)  # libllama's last errors, for messages
_library: Any = None
_library_lock = threading.Lock()
_log_callback: Any = None


def library() -> Any:
    """The module `llama_cpp.llama_cpp`, its log silenced; `MissingExtra` when it is not installed."""
    global _library, _log_callback
    with _library_lock:
        if _library is None:
            try:
                from llama_cpp import llama_cpp
            except ImportError as exc:
                raise MissingExtra(
                    "missing-gguf",
                    f"llama-cpp-python cannot be imported: {exc}",
                    'pip install "edge-distill-runtime[gguf]"',
                ) from exc
            _log_callback = llama_cpp.llama_log_callback(_log)
            llama_cpp.llama_log_set(_log_callback, ctypes.c_void_p(0))
            llama_cpp.llama_backend_init()
            _library = llama_cpp
    return _library


def _log(level: int, text: bytes, _: Any) -> None:
    if level == _LOG_ERROR:
        _LOG.append(text.decode("utf-8", "replace").strip())


def _has_amx(system_info: bytes) -> bool:
    """Whether libllama was built with AMX: `runtime/without_amx.h` says what is wrong with that."""
    return b"AMX_INT8 = 1" in system_info


def _last_error() -> str:
    return _LOG[-1][:200] if _LOG else "it gave no reason"


class LlamaBackend(LocalBackend):
    """A GGUF file in libllama. The file must have passed `validate_gguf`: libllama dies on hostile headers.

    All sequences share one cache of `cache_tokens` tokens, by default `context`; forks share the tokens that
    they have in common. With `own_caches` there are as many sequences as `cache_tokens` holds whole contexts, each with
    a cache of its own, and forks copy: attention then passes over no other sequence's tokens.
    `kv_cache` is the precision of keys and values: f16, q8_0 or q4_0.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        context: int,
        threads: int,
        cache_tokens: int | None = None,
        kv_cache: str = "f16",
        own_caches: bool = False,
    ) -> None:
        self._llama = llama = library()
        self._lock = EngineLock()
        self._context: Any = None
        self._model: Any = None
        self._stepped: list[Sequence] = []  # whose logits point into libllama's buffer
        self._rows_at: int = 0
        _LOG.clear()
        parameters = llama.llama_model_default_params()
        parameters.n_gpu_layers = 0
        # read, not mapped: repacked weights would lie in memory twice, and a file cut short later kills a mapping
        parameters.load_mode = llama.LLAMA_LOAD_MODE_NONE
        parameters.use_extra_bufts = not _has_amx(llama.llama_print_system_info())
        self._model = llama.llama_model_load_from_file(str(path).encode(), parameters)
        if not self._model:
            raise BundleError(
                "load-failed", f"libllama cannot load {path}: {_last_error()}", "export it again"
            )
        try:
            self._open_context(context, max(context, cache_tokens or 0), threads, kv_cache, own_caches)
        except BaseException:
            self.close()
            raise

    def _open_context(self, context: int, cells: int, threads: int, kv_cache: str, own_caches: bool) -> None:
        llama = self._llama
        self.vocab_size: int = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))
        self._most_rows = most_sequences(self.vocab_size)
        self.shares_prefix = not own_caches
        self.max_sequences = _caches(context, cells, self._most_rows) if own_caches else self._most_rows
        if own_caches:
            cells = self.max_sequences * context
        parameters = llama.llama_context_default_params()
        parameters.n_ctx = cells
        parameters.n_batch = parameters.n_ubatch = min(_BATCH, max(context, self._most_rows))
        # libllama reserves logits for as many outputs as a call may have, 512 by default
        parameters.n_outputs_max = parameters.n_outputs_max_per_seq = self._most_rows
        parameters.n_seq_max = self.max_sequences
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.kv_unified = self.shares_prefix  # forks share the cells of their common past
        parameters.swa_full = True  # else rewinding past the sliding window is impossible
        parameters.no_perf = True
        parameters.type_k = parameters.type_v = getattr(llama, f"GGML_TYPE_{kv_cache.upper()}")
        if kv_cache != "f16":  # only flash attention reads quantized values
            parameters.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self._context = llama.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise ResourceError(
                "no-context",
                f"libllama cannot make a cache of {cells} tokens: {_last_error()}",
                "load with a smaller context",
            )
        self._memory = llama.llama_get_memory(self._context)
        # libllama rounds n_ctx up to a multiple of 256, or down: what was asked for is the limit
        self.cache_tokens: int = llama.llama_n_ctx(self._context)
        self.context_length = min(context, self.cache_tokens)
        shape = (llama.llama_model_n_layer, llama.llama_model_n_head_kv, llama.llama_model_n_embd)
        self._layout = StateLayout(
            "libllama", *(size(self._model) for size in shape), self._long_frequencies(), parameters.type_k
        )
        self._free = list(range(self.max_sequences))
        self._make_batch(int(parameters.n_batch))

    def _long_frequencies(self) -> bool:
        """Whether LongRoPE's other frequencies are in use: libllama chooses by the cache, not by a sequence."""
        if self._metadata("rope.scaling.type") != "longrope":
            return False
        original = int(self._metadata("rope.scaling.original_context_length") or 0)
        size = self.cache_tokens if self.shares_prefix else self.context_length
        if self.context_length <= original < size:
            raise InputError(
                "cache-too-large",
                f"a cache of {size} tokens changes the positions of this model, made for {original}",
                f"load with cache_tokens of at most {original}",
            )
        return size > original

    def _metadata(self, key: str) -> str:
        """The model's text under a key that starts with the architecture; empty when there is none."""
        text = ctypes.create_string_buffer(64)
        read = self._llama.llama_model_meta_val_str
        read(self._model, b"general.architecture", text, len(text))
        name = text.value + b"." + key.encode()
        return text.value.decode() if read(self._model, name, text, len(text)) >= 0 else ""

    def _make_batch(self, size: int) -> None:
        """One llama_batch for all calls, with numpy views of its arrays for filling it quickly."""
        self._batch_size = size
        self._tokens = (ctypes.c_int32 * size)()
        self._positions = (ctypes.c_int32 * size)()
        self._slots = (ctypes.c_int32 * size)()
        self._wanted = (ctypes.c_int8 * size)()
        pointers = (ctypes.POINTER(ctypes.c_int32) * size)()
        start = ctypes.addressof(self._slots)
        for index in range(size):
            pointers[index] = ctypes.cast(start + 4 * index, ctypes.POINTER(ctypes.c_int32))
        self._batch = self._llama.llama_batch(
            n_tokens=0,
            token=self._tokens,
            embd=None,
            pos=self._positions,
            n_seq_id=(ctypes.c_int32 * size)(*([1] * size)),
            seq_id=pointers,
            logits=self._wanted,
        )
        self._views = tuple(
            np.ctypeslib.as_array(array)
            for array in (self._tokens, self._positions, self._slots, self._wanted)
        )

    def _extend(self, sequence: Sequence, tokens: Integers) -> None:
        for start in range(0, len(tokens), self._batch_size):
            chunk = tokens[start : start + self._batch_size]
            last = start + len(chunk) == len(tokens)
            self._fill(sequence, chunk, len(chunk) - 1 if last else len(chunk))
            self._decode(len(chunk))
            sequence.length += len(chunk)
        logits = self._rows(1)[0]
        check_finite(logits)
        sequence._logits = logits.copy()

    def _fill(self, sequence: Sequence, tokens: Integers, first_wanted: int) -> None:
        """Put one stretch of a sequence into the batch; logits are wanted from index `first_wanted` on."""
        count = len(tokens)
        token, position, slot, wanted = self._views
        token[:count] = tokens
        position[:count] = np.arange(sequence.length, sequence.length + count)
        slot[:count] = sequence.slot
        wanted[:count] = 0
        wanted[first_wanted:count] = 1

    def step(self, sequences: SequenceOf[Sequence], tokens: SequenceOf[int]) -> Floats:
        check_step(sequences, tokens, self)
        with self._lock:
            between: list[int] = []
            count, last = 0, -1
            for sequence, token in zip(sequences, tokens, strict=True):
                if self._context is None or sequence.slot < 0:
                    self._check_live(sequence)
                if not self.shares_prefix and count:
                    between += (free := self._free_between(last, sequence.slot))
                    for slot in free:
                        self._put(count, 0, 0, slot, False)
                        count += 1
                last = sequence.slot
                self._put(count, token, sequence.length, last, True)
                count += 1
            try:
                self._decode(count)
            finally:
                for slot in between:
                    self._llama.llama_memory_seq_rm(self._memory, slot, -1, -1)
            rows = self._rows(len(sequences))
            for index, sequence in enumerate(sequences):
                sequence.length += 1
                sequence._logits = rows[index]
            self._stepped = list(sequences)
        check_finite(rows)
        return rows

    def _put(self, index: int, token: int, position: int, slot: int, wanted: bool) -> None:
        self._tokens[index] = token
        self._positions[index] = position
        self._slots[index] = slot
        self._wanted[index] = wanted

    def _free_between(self, slot: int, other: int) -> range:
        """What lies between two slots, when it is little and free: it is computed too, and forgotten.

        libllama runs caches of their own in one batch only where their numbers follow each other; another pass over
        the weights would take longer.
        """
        slots = range(slot + 1, other)
        return slots if len(slots) <= _MOST_BETWEEN and all(one in self._free for one in slots) else range(0)

    def _decode(self, count: int) -> None:
        """Run the batch's first `count` tokens."""
        self._check_open()
        self._batch.n_tokens = count
        status = self._llama.llama_decode(self._context, self._batch)
        if status == 1:  # found before anything was changed, the logits of the last step included
            raise self._cache_full()
        self._forget_stepped()
        if status:
            raise BackendError("decode-failed", f"llama_decode returned {status}: {_last_error()}")

    def _cache_full(self) -> ResourceError:
        users = self.max_sequences - len(self._free)
        return ResourceError(
            "cache-full",
            f"the cache of {self.cache_tokens} tokens is full, {users} sequences share it",
            "release sequences or load with more cache_tokens",
        )

    def _rows(self, count: int) -> Floats:
        """View of the first `count` rows of logits in libllama's buffer."""
        pointer = self._llama.llama_get_logits(self._context)
        if not pointer:
            raise BackendError("decode-failed", f"libllama returned no logits: {_last_error()}")
        address = ctypes.addressof(pointer.contents)
        if address != self._rows_at:
            memory = (ctypes.c_float * (self._most_rows * self.vocab_size)).from_address(address)
            self._all_rows: Floats = np.ctypeslib.as_array(memory).reshape(self._most_rows, self.vocab_size)
            self._rows_at = address
        return self._all_rows[:count]

    def fork(self, sequence: Sequence, n: int) -> list[Sequence]:
        with self._lock:
            self._check_live(sequence)
            if n > len(self._free):
                raise ResourceError(
                    "too-many-sequences",
                    f"{n} forks asked for, {len(self._free)} of {self.max_sequences} sequences are free",
                    "release some",
                )
            children = []
            for _ in range(n):
                child = self._new_sequence()
                self._llama.llama_memory_seq_cp(self._memory, sequence.slot, child.slot, -1, -1)
                child.length = sequence.length
                child._logits = None if sequence._logits is None else sequence._logits.copy()
                children.append(child)
        return children

    def _verify(self, sequence: Sequence, tokens: Integers) -> Floats:
        self._fill(sequence, tokens, 0)
        self._decode(len(tokens))
        sequence.length += len(tokens)
        return self._rows(len(tokens))

    def save(self, sequence: Sequence) -> bytes:
        llama = self._llama
        with self._lock:
            self._check_live(sequence)
            header = self._layout.header(sequence.length)
            size = llama.llama_state_seq_get_size(self._context, sequence.slot)
            state = np.empty(len(header) + size, np.uint8)
            state[: len(header)] = np.frombuffer(header, np.uint8)
            written = llama.llama_state_seq_get_data(
                self._context, _pointer(state[len(header) :]), size, sequence.slot
            )
        if written != size:
            raise BackendError("save-failed", f"libllama wrote {written} of {size} bytes: {_last_error()}")
        return state.tobytes()

    def _restore(self, sequence: Sequence, payload: Any, length: int) -> None:
        llama, slot = self._llama, sequence.slot
        _LOG.clear()
        read = llama.llama_state_seq_set_data(self._context, _pointer(payload), len(payload), slot)
        if not read and any("available cells" in line for line in _LOG):
            raise self._cache_full()
        ends = llama.llama_memory_seq_pos_min, llama.llama_memory_seq_pos_max
        first, last = (end(self._memory, slot) for end in ends)
        if read != len(payload) or (first, last) != (0, length - 1):
            raise BackendError(
                "restore-failed",
                f"libllama read {read} of {len(payload)} bytes, positions {first} to {last} of {length}: "
                + _last_error(),
                "compute the prompt again",
            )
        sequence.length = length

    def _cut(self, sequence: Sequence, length: int) -> None:
        if not self._llama.llama_memory_seq_rm(self._memory, sequence.slot, length, -1):
            raise BackendError("rewind-failed", f"libllama cannot rewind to {length} tokens")
        sequence.length = length

    def _release(self, sequence: Sequence) -> None:
        if sequence.slot < 0:
            return
        if self._context is not None:
            self._llama.llama_memory_seq_rm(self._memory, sequence.slot, -1, -1)
        self._free.append(sequence.slot)
        sequence.slot, sequence.length, sequence._logits = -1, 0, None

    @property
    def _is_open(self) -> bool:
        return self._context is not None

    def _new_sequence(self) -> Sequence:
        self._check_open()
        if not self._free:
            raise ResourceError(
                "too-many-sequences", f"all of {self.max_sequences} sequences are in use", "release some"
            )
        slot = min(self._free)  # side by side where possible
        self._free.remove(slot)
        return Sequence(slot)

    def teacher_force(self, tokens: SequenceOf[int], start: int = 0) -> Iterator[Floats]:
        array = check_tokens(tokens, self.vocab_size)
        check_room(0, len(array), self.context_length)
        with self._lock:
            sequence = self._new_sequence()
        try:
            at = 0
            while at < len(array):
                # without logits up to `start`, in full batches; then as many as the buffer of logits holds
                stop = min(at + self._batch_size, start) if at < start else at + self._most_rows
                chunk = array[at:stop]
                with self._lock:
                    self._check_live(sequence)
                    self._fill(sequence, chunk, len(chunk) if at < start else 0)
                    self._decode(len(chunk))
                    sequence.length += len(chunk)
                    rows = self._rows(len(chunk))
                if at >= start:
                    check_finite(rows)
                    yield rows
                at += len(chunk)
        finally:
            self.release(sequence)

    def close(self) -> None:
        if self._lock.forked:  # the memory is the parent's to free, and the threads are not here
            return
        with self._lock:
            self._forget_stepped()  # their logits point into memory that is freed now
            self._rows_at = 0
            context, self._context = self._context, None
            model, self._model = self._model, None
            if context:
                self._llama.llama_free(context)
            if model:
                self._llama.llama_model_free(model)


def _caches(context: int, cells: int, most: int) -> int:
    """How many sequences get a cache of their own, each of a multiple of 256 tokens as libllama makes them."""
    if context % CACHE_STEP or cells < context:
        raise InputError(
            "bad-own-caches",
            f"{cells} tokens of cache hold no whole contexts of {context} tokens in steps of {CACHE_STEP}",
            f"ask for a context that is a multiple of {CACHE_STEP}, and cache_tokens for several of them",
        )
    return min(cells // context, most)


def _pointer(array: np.ndarray[Any, np.dtype[np.uint8]]) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(ctypes.c_uint8))
