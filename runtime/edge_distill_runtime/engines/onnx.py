"""ONNX Runtime behind the step interface, for graphs with GroupQueryAttention and a shared key-value buffer.

The only module that imports `onnxruntime`. Past and present of every layer are bound to the same memory:
a step writes one token's keys and values and copies nothing. No custom-operator library is ever loaded.
"""

from __future__ import annotations

import ctypes
import os
import re
import weakref
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
from edge_distill_runtime.engines.mapped_files import own_mapped_files
from edge_distill_runtime.engines.memory import tokens_that_fit
from edge_distill_runtime.engines.onnx_cache import KeyValueCache
from edge_distill_runtime.errors import BackendError, BundleError, InputError, MissingExtra, ResourceError

__all__ = ["FIRST_LOGIT", "OnnxBackend"]

FIRST_LOGIT = "first_logit"
"""Optional input of our graphs, int64 [1]: the token from which on logits are computed."""

_MOST_BETWEEN = 3  # slots without a token of their own that a batch may cover at a stretch
_LOGITS_BYTES = 1 << 24  # bounds the logits of one stretch of text
_STRETCH = 128  # tokens of a prompt at once: more are no faster, and attention takes memory with their number
_PAST = re.compile(r"past_key_values\.(\d+)\.(key|value)")
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}


_sessions: Any = None  # the open sessions of this process


def _library() -> Any:
    # since 1.29 it reports every session to its maker, from a thread that a forked child waits for at its exit
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as exc:
        raise MissingExtra(
            "missing-onnx",
            f"onnxruntime cannot be imported: {exc}",
            'pip install "edge-distill-runtime[onnx]"',
        ) from exc
    onnxruntime.disable_telemetry_events()  # in case that somebody imported it before
    return onnxruntime


def _leave_to_parent(session: Any) -> None:
    """Let no forked child free the session, not at its exit either: it would wait for threads that it has not."""
    global _sessions
    if _sessions is None:
        _sessions = weakref.WeakSet()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_keep_sessions)
    _sessions.add(session)


def _keep_sessions() -> None:
    for session in _sessions:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


class OnnxBackend(LocalBackend):
    """A decoder graph in ONNX Runtime.

    Inputs: input_ids and attention_mask int64 [batch, ...], perhaps position_ids, and for every layer
    past_key_values.N.key and .value [batch, kv_heads, context, head_dim]. Outputs: logits
    [batch, tokens, vocab], present.N.key and .value. `head_dim` must be the graph's, which may leave it open.
    Where the graph has the optional input first_logit int64 [1], no logits are computed before that token.
    A fork copies its past. All sequences together hold at most `cache_tokens` tokens, by default what fits in
    memory.
    """

    shares_prefix = False

    def __init__(
        self,
        path: Path | str,
        *,
        context: int,
        threads: int,
        head_dim: int,
        cache_tokens: int | None = None,
    ) -> None:
        runtime = _library()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # failures arrive as exceptions
        # a pattern is made for every new length: 3 % of a step and memory that only grows
        options.enable_mem_pattern = False
        # smaller pieces of work the fewer are left: 4 to 9 % of a step on two cores
        options.add_session_config_entry("session.dynamic_block_base", "4")
        # on ARM these int4 kernels were measured at ten times the KL divergence of ONNX Runtime's own
        options.add_session_config_entry("mlas.disable_kleidiai", "1")
        self._lock = EngineLock()
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as exc:  # ONNX Runtime's exceptions share no other base
            raise BundleError(
                "load-failed", f"ONNX Runtime cannot load {path}: {_first_line(exc)}", "export it again"
            ) from exc
        _leave_to_parent(self._session)
        own_mapped_files(Path(path).parent)  # ONNX Runtime maps the weights that it does not rearrange
        self.context_length = context
        self._read_signature(path, head_dim)
        self._chunk = max(16, min(512, _LOGITS_BYTES // (4 * self.vocab_size)))
        self.max_sequences = most_sequences(self.vocab_size)
        rows = max(self._chunk, self.max_sequences)
        self._rows: Floats = np.empty((rows, self.vocab_size), np.float32)
        self._first_logit = np.zeros(1, np.int64)
        self._stretch = _STRETCH if self._skips_logits else self._chunk
        self._ids = np.zeros(max(rows, self._stretch), np.int64)
        self._positions = np.zeros(len(self._ids), np.int64)
        self._ones = np.ones(context, np.int64)  # the mask of any single sequence
        self._ones_at: int = self._ones.ctypes.data
        self._mask = np.empty(0, np.int64)
        self._sequences: dict[int, Sequence] = {}  # in use, by slot
        self._held = 0  # tokens in all of them
        self._free = list(range(self.max_sequences))
        self._stepped: list[Sequence] = []  # whose logits point into `_rows`
        # by first slot and number of sequences; what ids and logits they are bound to
        self._bindings: dict[tuple[int, int], Any] = {}
        self._bound: dict[tuple[int, int], tuple[int, int, int]] = {}
        self.cache_tokens = self._most_tokens() if cache_tokens is None else max(context, cache_tokens)
        self._cache.reserve(1, {})

    def _most_tokens(self) -> int:
        """As many tokens as all sequences may have, or as fit in memory beside what the process holds now."""
        most = self.max_sequences * self.context_length
        fitting = tokens_that_fit(self._cache.bytes_per_token)
        return most if fitting is None else max(self.context_length, min(most, fitting))

    def _read_signature(self, path: Path | str, head_dim: int) -> None:
        """Names, layers, heads and types from the graph itself."""
        inputs = {value.name: value for value in self._session.get_inputs()}
        outputs = {value.name: value for value in self._session.get_outputs()}
        self._past = sorted(name for name in inputs if _PAST.fullmatch(name))
        known = {"input_ids", "attention_mask", "position_ids", *self._past}
        present = {name: name.replace("past_key_values", "present") for name in self._past}
        problem = ""
        if unknown := sorted(inputs.keys() - known):
            problem = f"the input {unknown[0][:60]!r} is unknown"
        elif not self._past or not {"input_ids", "attention_mask"} <= inputs.keys():
            problem = "it lacks input_ids, attention_mask or past_key_values.N.key"
        elif missing := sorted(({"logits"} | set(present.values())) - outputs.keys()):
            problem = f"it lacks the output {missing[0]}"
        else:
            logits, first = outputs["logits"], inputs[self._past[0]]
            vocabulary = logits.shape[-1]
            if logits.type != "tensor(float)" or len(logits.shape) != 3 or not isinstance(vocabulary, int):
                problem = (
                    f"its logits are {logits.type} {logits.shape}, expected float [batch, tokens, vocab]"
                )
            elif first.type not in _TYPES or len(first.shape) != 4 or not isinstance(first.shape[1], int):
                problem = (
                    f"its cache is {first.type} {first.shape}, expected [batch, kv_heads, past, head_dim]"
                )
            elif isinstance(first.shape[3], int) and first.shape[3] != head_dim:
                problem = f"its heads are {first.shape[3]} wide, the manifest says {head_dim}"
        if problem:
            raise BundleError("bad-graph", f"{path} is no decoder graph: {problem}", "export it again")
        self._present = present
        self._has_positions = "position_ids" in inputs
        optional = {value.name for value in self._session.get_overridable_initializers()}
        self._skips_logits = FIRST_LOGIT in optional
        self.vocab_size: int = vocabulary
        layers, heads, dtype = len(self._past), first.shape[1], _TYPES[first.type]
        self._cache = KeyValueCache(layers, (heads, self.context_length, head_dim), dtype)
        self._layout = StateLayout("onnx", layers, heads, head_dim, np.dtype(dtype).itemsize)

    @property
    def _is_open(self) -> bool:
        return self._session is not None

    def _new_sequence(self) -> Sequence:
        return self._allocate(1)[0]

    def _allocate(self, count: int) -> list[Sequence]:
        """`count` new sequences, side by side where possible: neighbours run in one batch."""
        self._check_open()
        if count > len(self._free):
            raise ResourceError(
                "too-many-sequences",
                f"{count} sequences asked for, {len(self._free)} of {self.max_sequences} are free",
                "release some",
            )
        self._free.sort()
        starts = range(len(self._free) - count + 1)
        start = next((at for at in starts if self._free[at + count - 1] - self._free[at] == count - 1), 0)
        slots = self._free[start : start + count]
        if slots[-1] >= self._cache.slots:
            wider = min(self.max_sequences, max(slots[-1] + 1, 2 * self._cache.slots))
            self._bindings.clear()
            self._bound.clear()
            lengths = {slot: sequence.length for slot, sequence in self._sequences.items()}
            self._cache.reserve(wider, lengths)
        del self._free[start : start + count]
        sequences = [Sequence(slot) for slot in slots]
        self._sequences.update(zip(slots, sequences, strict=True))
        return sequences

    def _check_cache(self, more: int) -> None:
        if self._held + more > self.cache_tokens:
            raise ResourceError(
                "cache-full",
                f"{more} tokens do not fit the cache of {self.cache_tokens}: "
                f"{self._held} are in it, {len(self._sequences)} sequences share it",
                "release sequences or load with more cache_tokens",
            )

    def _cut(self, sequence: Sequence, length: int) -> None:
        """Set its length, also to a larger one; what lies behind it in the cache counts for nothing."""
        self._held += length - sequence.length
        sequence.length = length

    def _binding(self, slot: int, count: int) -> Any:
        """An I/O binding whose past and present are the caches of `count` slots from `slot` on."""
        binding = self._bindings.get((slot, count))
        if binding is None:
            binding = self._session.io_binding()
            shape, dtype = (count, *self._cache.shape), self._cache.dtype
            for name, array in zip(self._past, self._cache.arrays, strict=True):
                address = array[slot].ctypes.data
                binding.bind_input(name, "cpu", 0, dtype, shape, address)
                binding.bind_output(self._present[name], "cpu", 0, dtype, shape, address)
            if self._skips_logits:
                address = self._first_logit.ctypes.data
                binding.bind_input(FIRST_LOGIT, "cpu", 0, np.int64, (1,), address)
            self._bindings[slot, count] = binding
        return binding

    def _run(
        self, slot: int, lengths: SequenceOf[int], tokens: int, row: int, *, last_alone: bool = False
    ) -> None:
        """Compute the next `tokens` ids of the sequences in slots from `slot` on, whose past has `lengths`.

        Reads `_ids` and writes `_rows`, both from `row` on: logits of all these tokens, or of the last ones alone.
        """
        count = len(lengths)
        total = max(lengths) + tokens
        binding = self._binding(slot, count)
        wanted = 1 if last_alone else tokens
        self._first_logit[0] = tokens - wanted
        if self._bound.get((slot, count)) != (tokens, wanted, row):  # as in the step before, mostly
            ids, rows = self._ids[row:], self._rows[row:]
            binding.bind_input("input_ids", "cpu", 0, np.int64, (count, tokens), ids.ctypes.data)
            shape = (count, wanted, self.vocab_size)
            binding.bind_output("logits", "cpu", 0, np.float32, shape, rows.ctypes.data)
            self._bound[slot, count] = (tokens, wanted, row)
        mask = self._ones_at if count == 1 else self._padded_mask(lengths, tokens, total).ctypes.data
        binding.bind_input("attention_mask", "cpu", 0, np.int64, (count, total), mask)
        if self._has_positions:
            positions = self._positions[row:]
            for index, length in enumerate(lengths):
                positions[index * tokens : (index + 1) * tokens] = np.arange(length, length + tokens)
            binding.bind_input("position_ids", "cpu", 0, np.int64, (count, tokens), positions.ctypes.data)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as exc:  # ONNX Runtime's exceptions share no other base
            raise BackendError(
                "run-failed", f"ONNX Runtime failed: {_first_line(exc)}", "export it again"
            ) from exc

    def _padded_mask(self, lengths: SequenceOf[int], tokens: int, total: int) -> Any:
        """int64 [n, total]: ones for each sequence's past and new tokens, zeros behind."""
        size = len(lengths) * total
        if self._mask.size < size:
            self._mask = np.empty(self.max_sequences * self.context_length, np.int64)
        mask = self._mask[:size].reshape(len(lengths), total)
        np.less(np.arange(total), np.asarray(lengths)[:, None] + tokens, out=mask, casting="unsafe")
        return mask

    def _extend(self, sequence: Sequence, tokens: Integers) -> None:
        self._check_cache(len(tokens))
        for start in range(0, len(tokens), self._stretch):
            stretch = tokens[start : start + self._stretch]
            rows = self._forward(sequence, stretch, last_alone=self._skips_logits)
        check_finite(rows[-1])
        sequence._logits = rows[-1].copy()

    def _forward(self, sequence: Sequence, stretch: Integers, *, last_alone: bool = False) -> Floats:
        """Append one stretch; logits [tokens, vocab] or [1, vocab], a view."""
        self._forget_stepped()
        count = len(stretch)
        self._ids[:count] = stretch
        self._run(sequence.slot, (sequence.length,), count, 0, last_alone=last_alone)
        self._cut(sequence, sequence.length + count)
        return self._rows[: 1 if last_alone else count]

    def step(self, sequences: SequenceOf[Sequence], tokens: SequenceOf[int]) -> Floats:
        check_step(sequences, tokens, self)
        with self._lock:
            for sequence in sequences:
                self._check_live(sequence)
            self._check_cache(len(sequences))
            self._forget_stepped()
            if len(sequences) == 1:
                self._ids[0] = tokens[0]
                self._run(sequences[0].slot, (sequences[0].length,), 1, 0)
                rows = self._rows[:1]
            else:
                rows = self._step_runs(sequences, tokens)
            for index, sequence in enumerate(sequences):
                sequence.length += 1
                sequence._logits = rows[index]
            self._held += len(sequences)
            self._stepped = list(sequences)
        check_finite(rows)
        return rows

    def _step_runs(self, sequences: SequenceOf[Sequence], tokens: SequenceOf[int]) -> Floats:
        """One batch for every stretch of slots that lie close together; rows in the order of `sequences`."""
        wanted = {sequence.slot: token for sequence, token in zip(sequences, tokens, strict=True)}
        row, row_of = 0, {}
        for first, last in self._stretches(sorted(wanted)):
            slots = range(first, last + 1)
            lengths = [self._length_of(slot) for slot in slots]
            for index, slot in enumerate(slots):
                self._ids[row + index] = wanted.get(slot, 0)
                row_of[slot] = row + index
            self._run(first, lengths, 1, row)
            row += len(slots)
        rows = [row_of[sequence.slot] for sequence in sequences]
        return self._rows[: len(rows)] if rows == list(range(len(rows))) else self._rows[rows]

    def _stretches(self, slots: SequenceOf[int]) -> list[tuple[int, int]]:
        """First and last slot of every batch that covers `slots`, which are sorted.

        A few slots between two others are computed too: another pass over the weights would take longer. The token
        that they are given goes behind what they hold, and nobody reads it.
        """
        stretches = [(slots[0], slots[0])]
        for slot in slots[1:]:
            first, last = stretches[-1]
            between = range(last + 1, slot)
            if len(between) <= _MOST_BETWEEN and all(
                self._length_of(other) < self.context_length for other in between
            ):
                stretches[-1] = (first, slot)
            else:
                stretches.append((slot, slot))
        return stretches

    def _length_of(self, slot: int) -> int:
        sequence = self._sequences.get(slot)
        return 0 if sequence is None else sequence.length

    def fork(self, sequence: Sequence, n: int) -> list[Sequence]:
        with self._lock:
            self._check_live(sequence)
            self._check_cache(n * sequence.length)
            children = self._allocate(n) if n else []
            self._cache.copy(sequence.slot, sequence.length, (child.slot for child in children))
            for child in children:
                self._cut(child, sequence.length)
                child._logits = None if sequence._logits is None else sequence._logits.copy()
        return children

    def _verify(self, sequence: Sequence, tokens: Integers) -> Floats:
        self._check_cache(len(tokens))
        return self._forward(sequence, tokens)

    def save(self, sequence: Sequence) -> bytes:
        with self._lock:
            self._check_live(sequence)
            parts = self._cache.read(sequence.slot, sequence.length)
            return b"".join((self._layout.header(sequence.length), *parts))

    def _restore(self, sequence: Sequence, payload: Any, length: int) -> None:
        if len(payload) != length * self._cache.bytes_per_token:
            raise InputError(
                "bad-state",
                f"the saved state has {len(payload)} bytes, "
                f"{length} tokens take {length * self._cache.bytes_per_token}",
                "compute the prompt again",
            )
        self._check_cache(length)
        self._cache.write(sequence.slot, length, payload)
        self._cut(sequence, length)

    def _release(self, sequence: Sequence) -> None:
        if sequence.slot < 0:
            return
        self._cut(sequence, 0)
        del self._sequences[sequence.slot]
        self._free.append(sequence.slot)
        if sequence.slot and self._session is not None:  # the first slot's pages are used again at once
            self._cache.give_back(sequence.slot)
        sequence.slot, sequence._logits = -1, None

    def teacher_force(self, tokens: SequenceOf[int], start: int = 0) -> Iterator[Floats]:
        array = check_tokens(tokens, self.vocab_size)
        check_room(0, len(array), self.context_length)
        with self._lock:
            self._check_cache(len(array))
            sequence = self._allocate(1)[0]
        try:
            for at in range(0, len(array), self._chunk):
                with self._lock:
                    self._check_live(sequence)
                    rows = self._forward(sequence, array[at : at + self._chunk])
                check_finite(rows)
                if at + len(rows) > start:
                    yield rows[max(0, start - at) :]
        finally:
            self.release(sequence)

    def close(self) -> None:
        if self._lock.forked:  # freeing the session would wait for threads that are not here
            return
        with self._lock:
            self._forget_stepped()
            self._bindings.clear()
            self._bound.clear()
            self._cache.close()
            self._session = None


def _first_line(exc: Exception) -> str:
    return (str(exc).strip() or type(exc).__name__).splitlines()[0][:200]
