"""ONNX Runtime behind the step interface, for graphs with GroupQueryAttention and a shared key-value buffer.

The only module that imports `onnxruntime`. Past and present of every layer are bound to the same memory:
a step writes one token's keys and values and copies nothing. No custom-operator library is ever loaded.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from pathlib import Path
from typing import Any

import numpy as np

from edge_distill_runtime.backend import (
    Floats,
    Integers,
    Sequence,
    check_finite,
    check_room,
    check_step,
    check_tokens,
    most_sequences,
)
from edge_distill_runtime.errors import BackendError, BundleError, InputError, MissingExtra, ResourceError

__all__ = ["OnnxBackend"]

_LOGITS_BYTES = 1 << 24  # bounds the logits of one stretch of a prompt
_PAST = re.compile(r"past_key_values\.(\d+)\.(key|value)")
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def _library() -> Any:
    try:
        import onnxruntime
    except ImportError as exc:
        raise MissingExtra(
            "missing-onnx",
            f"onnxruntime cannot be imported: {exc}",
            'pip install "edge-distill-runtime[onnx]"',
        ) from exc
    return onnxruntime


class OnnxBackend:
    """A decoder graph in ONNX Runtime.

    Inputs: input_ids and attention_mask int64 [batch, ...], perhaps position_ids, and for every layer
    past_key_values.N.key and .value [batch, kv_heads, context, head_dim]. Outputs: logits
    [batch, tokens, vocab], present.N.key and .value. `head_dim` must be the graph's, which may leave it open.
    A fork copies its past.
    """

    def __init__(self, path: Path | str, *, context: int, threads: int, head_dim: int) -> None:
        runtime = _library()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # failures arrive as exceptions
        # a pattern is made for every new length: 3 % of a step and memory that only grows
        options.enable_mem_pattern = False
        # smaller pieces of work the fewer are left: 4 to 9 % of a step on two cores
        options.add_session_config_entry("session.dynamic_block_base", "4")
        self._lock = threading.Lock()
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as exc:  # ONNX Runtime's exceptions share no other base
            raise BundleError(
                "load-failed", f"ONNX Runtime cannot load {path}: {_first_line(exc)}", "export it again"
            ) from exc
        self.context_length = context
        self._read_signature(path, head_dim)
        self._chunk = max(16, min(512, _LOGITS_BYTES // (4 * self.vocab_size)))
        self.max_sequences = most_sequences(self.vocab_size)
        rows = max(self._chunk, self.max_sequences)
        self._rows: Floats = np.empty((rows, self.vocab_size), np.float32)
        self._ids = np.zeros(rows, np.int64)
        self._positions = np.zeros(rows, np.int64)
        self._ones = np.ones(context, np.int64)  # the mask of any single sequence
        self._ones_at: int = self._ones.ctypes.data
        self._mask = np.empty(0, np.int64)
        self._caches: list[Any] = []
        self._capacity = 0
        self._free = list(range(self.max_sequences))
        self._stepped: list[Sequence] = []  # whose logits point into `_rows`
        # by first slot and number of sequences; what ids and logits they are bound to
        self._bindings: dict[tuple[int, int], Any] = {}
        self._bound: dict[tuple[int, int], tuple[int, int]] = {}
        self._reserve(1)

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
        self.vocab_size: int = vocabulary
        self._dtype = _TYPES[first.type]
        self._cache_shape = (first.shape[1], self.context_length, head_dim)

    def _reserve(self, capacity: int) -> None:
        """Make room for `capacity` sequences; what is in use is copied over."""
        if capacity <= self._capacity:
            return
        try:
            caches = [np.zeros((capacity, *self._cache_shape), self._dtype) for _ in self._past]
        except MemoryError as exc:
            size = (
                capacity * len(self._past) * int(np.prod(self._cache_shape)) * np.dtype(self._dtype).itemsize
            )
            raise ResourceError(
                "memory", f"the cache of {capacity} sequences takes {size >> 20} MiB", "use a smaller context"
            ) from exc
        for new, old in zip(caches, self._caches, strict=False):
            new[: self._capacity] = old
        self._caches, self._capacity = caches, capacity
        self._bindings.clear()
        self._bound.clear()

    def _allocate(self, count: int) -> list[int]:
        """`count` free slots, side by side where possible: neighbours run in one batch."""
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
        self._reserve(slots[-1] + 1)
        del self._free[start : start + count]
        return slots

    def _binding(self, slot: int, count: int) -> Any:
        """An I/O binding whose past and present are the caches of `count` slots from `slot` on."""
        binding = self._bindings.get((slot, count))
        if binding is None:
            binding = self._session.io_binding()
            shape = (count, *self._cache_shape)
            for name, cache in zip(self._past, self._caches, strict=True):
                address = cache[slot].ctypes.data
                binding.bind_input(name, "cpu", 0, self._dtype, shape, address)
                binding.bind_output(self._present[name], "cpu", 0, self._dtype, shape, address)
            self._bindings[slot, count] = binding
        return binding

    def _run(self, slot: int, lengths: SequenceOf[int], tokens: int, row: int) -> None:
        """Compute the next `tokens` ids of the sequences in slots from `slot` on, whose past has `lengths`.

        Reads `_ids` and writes `_rows`, both from `row` on.
        """
        count = len(lengths)
        total = max(lengths) + tokens
        binding = self._binding(slot, count)
        if self._bound.get((slot, count)) != (tokens, row):  # as in the step before, mostly
            ids, rows = self._ids[row:], self._rows[row:]
            binding.bind_input("input_ids", "cpu", 0, np.int64, (count, tokens), ids.ctypes.data)
            shape = (count, tokens, self.vocab_size)
            binding.bind_output("logits", "cpu", 0, np.float32, shape, rows.ctypes.data)
            self._bound[slot, count] = (tokens, row)
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

    def prefill(self, tokens: SequenceOf[int]) -> Sequence:
        array = check_tokens(tokens, self.vocab_size)
        check_room(0, len(array), self.context_length)
        with self._lock:
            self._check_open()
            sequence = Sequence(self._allocate(1)[0])
            try:
                self._extend(sequence, array)
            except BaseException:
                self._release(sequence)
                raise
        return sequence

    def extend(self, sequence: Sequence, tokens: SequenceOf[int]) -> None:
        array = check_tokens(tokens, self.vocab_size)
        check_room(sequence.length, len(array), self.context_length)
        with self._lock:
            self._check_live(sequence)
            length = sequence.length
            try:
                self._extend(sequence, array)
            except BaseException:
                sequence.length, sequence._logits = length, None
                raise

    def _extend(self, sequence: Sequence, tokens: Integers) -> None:
        for start in range(0, len(tokens), self._chunk):
            rows = self._forward(sequence, tokens[start : start + self._chunk])
        check_finite(rows[-1])
        sequence._logits = rows[-1].copy()

    def _forward(self, sequence: Sequence, chunk: Integers) -> Floats:
        """Append one stretch; logits [tokens, vocab], a view."""
        self._forget_stepped()
        self._ids[: len(chunk)] = chunk
        self._run(sequence.slot, (sequence.length,), len(chunk), 0)
        sequence.length += len(chunk)
        return self._rows[: len(chunk)]

    def step(self, sequences: SequenceOf[Sequence], tokens: SequenceOf[int]) -> Floats:
        check_step(sequences, tokens, self)
        with self._lock:
            for sequence in sequences:
                self._check_live(sequence)
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
            self._stepped = list(sequences)
        check_finite(rows)
        return rows

    def _step_runs(self, sequences: SequenceOf[Sequence], tokens: SequenceOf[int]) -> Floats:
        """One batch for every run of neighbouring slots; rows in the order of `sequences`."""
        order = sorted(range(len(sequences)), key=lambda index: sequences[index].slot)
        slots = [sequences[index].slot for index in order]
        for row, index in enumerate(order):
            self._ids[row] = tokens[index]
        start = 0
        for end in range(1, len(order) + 1):
            if end == len(order) or slots[end] != slots[end - 1] + 1:
                lengths = [sequences[index].length for index in order[start:end]]
                self._run(slots[start], lengths, 1, start)
                start = end
        rows = self._rows[: len(order)]
        return rows if order == list(range(len(order))) else rows[np.argsort(order)]

    def _forget_stepped(self) -> None:
        for sequence in self._stepped:
            sequence._logits = None
        self._stepped = []

    def fork(self, sequence: Sequence, n: int) -> list[Sequence]:
        with self._lock:
            self._check_live(sequence)
            children = [Sequence(slot) for slot in self._allocate(n)] if n else []
            for child in children:
                child.length = sequence.length
                child._logits = None if sequence._logits is None else sequence._logits.copy()
            for cache in self._caches:
                past = cache[sequence.slot, :, : sequence.length]
                for child in children:
                    cache[child.slot, :, : sequence.length] = past
        return children

    def rewind(self, sequence: Sequence, length: int) -> None:
        with self._lock:
            self._check_live(sequence)
            if not 0 <= length <= sequence.length:
                raise InputError("bad-length", f"cannot rewind {sequence.length} tokens to {length}")
            sequence.length, sequence._logits = length, None

    def release(self, sequence: Sequence) -> None:
        with self._lock:
            self._release(sequence)

    def _release(self, sequence: Sequence) -> None:
        if sequence.slot >= 0:
            self._free.append(sequence.slot)
            sequence.slot, sequence.length, sequence._logits = -1, 0, None

    def _check_open(self) -> None:
        if self._session is None:
            raise BackendError("closed", "the model has been closed", "load it again")

    def _check_live(self, sequence: Sequence) -> None:
        self._check_open()
        if sequence.slot < 0:
            raise BackendError("released", "the sequence has been released", "prefill a new one")

    def teacher_force(self, tokens: SequenceOf[int], start: int = 0) -> Iterator[Floats]:
        array = check_tokens(tokens, self.vocab_size)
        check_room(0, len(array), self.context_length)
        with self._lock:
            self._check_open()
            sequence = Sequence(self._allocate(1)[0])
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
        with self._lock:
            self._forget_stepped()
            self._bindings.clear()
            self._bound.clear()
            self._caches, self._capacity = [], 0
            self._session = None


def _first_line(exc: Exception) -> str:
    return (str(exc).strip() or type(exc).__name__).splitlines()[0][:200]
