"""Continuous batching over the step interface, without a thread of its own.

Whoever waits for something computes: one thread at a time leads, and runs a step for every sequence that is
active, its own or not; the others sleep until there is something for them. A single caller thus pays for no
hand-over, and nothing runs when nobody waits.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as SequenceOf
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edge_distill_runtime.engines.backend import Backend, Floats, Sequence
from edge_distill_runtime.errors import BackendError, Busy, EdgeDistillError, ResourceError
from edge_distill_runtime.generation.decoding import Decoding

if TYPE_CHECKING:
    from edge_distill_runtime.generation.prompt_cache import PromptCache

__all__ = ["Engine", "Job"]

_STRETCH = 512  # tokens of a prompt between two steps of the others


@dataclass(eq=False)
class Branch:
    """One sequence of a job."""

    decoding: Decoding
    sequence: Sequence


@dataclass(eq=False)
class Job:
    """A prompt and the sequences that continue it; they share its past."""

    prompt: list[int]
    waiting: deque[Decoding]
    """Not begun yet."""
    wakes: threading.Condition
    wants_news: bool
    """Whether every new token is of interest, or the end alone."""
    stays_open: bool = False
    """Whether more decodings may come: the prompt's sequence is kept until `Engine.close_job`."""
    active: list[Branch] = field(default_factory=list)
    root: Sequence | None = None
    """The prompt, computed up to `root.length`."""
    error: Exception | None = None
    cached_tokens: int = 0
    """How many tokens of the prompt came from the prompt cache."""
    prompt_seconds: float = 0.0
    """Time to compute the prompt."""
    cells: int = 0
    """Tokens of the cache that are reserved for it."""

    begun: int = 0
    """How many of its sequences have been begun."""

    @property
    def is_done(self) -> bool:
        if self.error is None and self.stays_open and not self.prompt_is_computed:
            return False
        return self.error is not None or not (self.waiting or self.active)

    @property
    def prompt_is_computed(self) -> bool:
        return self.root is not None and self.root.length == len(self.prompt)


class Engine:
    """Runs jobs on one backend, in the order in which they came, together as far as the cache has room.

    With `batching`, all active sequences share every step. Without, a job begins when the one before has ended, and
    what it computes does not depend on the others in the least: libllama rounds attention differently when other
    sequences lie in its cache, both engines when more rows are multiplied at once.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        batching: bool = True,
        most_waiting: int = 256,
        cache: PromptCache | None = None,
    ) -> None:
        self._backend = backend
        self._batching = batching
        self._most_waiting = most_waiting
        self._cache = cache
        self._lock = threading.Lock()
        self._is_led = False
        self._queue: deque[Job] = deque()  # nothing computed yet
        self._running: list[Job] = []
        self._sleepers: list[Job] = []

    @property
    def load(self) -> tuple[int, int]:
        """Active sequences, and jobs that wait for their turn."""
        with self._lock:
            return sum(len(job.active) for job in self._running), len(self._queue)

    def submit(
        self,
        prompt: SequenceOf[int],
        decodings: SequenceOf[Decoding],
        *,
        wants_news: bool = False,
        stays_open: bool = False,
    ) -> Job:
        """Queue a job; `Busy` when too many wait already."""
        job = Job(list(prompt), deque(decodings), threading.Condition(self._lock), wants_news, stays_open)
        with self._lock:
            if len(self._queue) >= self._most_waiting:
                raise Busy("queue-full", f"{len(self._queue)} requests wait already", "try again in a moment")
            self._queue.append(job)
        return job

    def add(self, job: Job, decodings: SequenceOf[Decoding]) -> None:
        """More sequences for a job that stays open."""
        with self._lock:
            job.waiting.extend(decodings)

    def run_until(self, job: Job, ready: Callable[[], bool]) -> None:
        """Compute, or wait while another thread does, until `ready()` or the job is done; raises its error."""
        with self._lock:
            try:
                while not (ready() or job.is_done):
                    if self._is_led:
                        self._sleep(job)
                    else:
                        self._lead(job, ready)
            finally:
                if not self._is_led and self._sleepers:
                    self._sleepers[0].wakes.notify()  # somebody else leads now
        if job.error is not None:
            raise job.error

    def _sleep(self, job: Job) -> None:
        self._sleepers.append(job)
        try:
            job.wakes.wait()
        finally:
            self._sleepers.remove(job)

    def _lead(self, job: Job, ready: Callable[[], bool]) -> None:
        """Compute steps for all until there is something for `job`; holds the lock between them only."""
        self._is_led = True
        try:
            while not (ready() or job.is_done):
                self._lock.release()
                try:
                    self._step()
                finally:
                    self._lock.acquire()
                for sleeper in self._sleepers:
                    if sleeper.wants_news or sleeper.is_done:
                        sleeper.wakes.notify_all()
        finally:
            self._is_led = False
            for other in [*self._queue, *self._running]:
                self._sweep(other)

    def close_job(self, job: Job) -> None:
        """End what is left of a job and give its cache back; it may be called at any time."""
        with self._lock:
            job.stays_open = False
            for decoding in [*job.waiting, *(branch.decoding for branch in job.active)]:
                decoding.abandon()
            if not self._is_led:  # else the leader sweeps
                self._sweep(job)

    # -- the leader's work: one thread at a time, without the lock but where queues change --------------------

    def _step(self) -> None:
        """One stretch of a prompt and one token for every active sequence."""
        if self._step_alone():
            return
        with self._lock:
            for job in [*self._queue, *self._running]:
                self._sweep(job)
            self._admit()
            jobs = list(self._running)
        with self._failing(jobs):
            if unread := next((job for job in jobs if not (job.begun or job.prompt_is_computed)), None):
                self._prefill(unread)
            for job in jobs:
                self._begin(job)
            self._decode([(job, branch) for job in jobs for branch in job.active])
        with self._lock:
            for job in jobs:
                self._sweep(job)

    def _step_alone(self) -> bool:
        """The same for the one sequence that there is, with as little between two steps as can be."""
        if self._queue or len(self._running) != 1:
            return False
        job = self._running[0]
        if job.waiting or len(job.active) != 1 or job.error is not None:
            return False
        branch = job.active[0]
        decoding, sequence = branch.decoding, branch.sequence
        count = len(decoding.tokens)
        if decoding.lookup is not None or decoding.is_finished or decoding.kept < count - 1:
            return False
        if sequence.length != len(job.prompt) + count - 1:
            return False
        with self._failing([job]):
            decoding.kept = count
            decoding.next(self._backend.step((sequence,), decoding.tokens[-1:])[0])
        if decoding.is_finished or job.error is not None:
            with self._lock:
                self._sweep(job)
        return True

    @contextmanager
    def _failing(self, jobs: SequenceOf[Job]) -> Iterator[None]:
        """What is raised inside is the error of `jobs`."""
        try:
            yield
        except Exception as exc:
            self._fail(jobs, exc)
        except BaseException:  # Ctrl-C in the thread that leads
            interrupted = BackendError("interrupted", "another thread was interrupted while it computed", "")
            self._fail(jobs, interrupted)
            raise

    def _sweep(self, job: Job) -> None:
        """Release what has ended."""
        for decoding in [decoding for decoding in job.waiting if decoding.interrupted()]:
            job.waiting.remove(decoding)
        for branch in [branch for branch in job.active if branch.decoding.interrupted()]:
            job.active.remove(branch)
            job.cells -= self._cells(job, branch.decoding)
            self._release(branch.sequence)
        if job.is_done and (job.error is not None or not job.stays_open):
            if job.root is not None:
                self._release(job.root)
            job.root, job.cells = None, 0
            for queue in (self._queue, self._running):
                if job in queue:
                    queue.remove(job)

    def _release(self, sequence: Sequence) -> None:
        with suppress(EdgeDistillError):  # an engine that is gone has nothing to release
            self._backend.release(sequence)

    def _fail(self, jobs: Iterable[Job], error: Exception) -> None:
        for job in jobs:
            job.error = job.error or error
            for decoding in [*job.waiting, *(branch.decoding for branch in job.active)]:
                decoding.abandon()

    # -- room -----------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Move jobs from the queue to the running ones while each has room for its first sequence."""
        while self._queue:
            job = self._queue[0]
            cells = len(job.prompt) + (self._cells(job, job.waiting[0]) if job.waiting else 0)
            sequences = 1 if len(job.waiting) == 1 and not job.stays_open else 2
            if self._running and not (self._batching and self._has_room(cells, sequences=sequences)):
                return
            job.cells = cells
            self._running.append(self._queue.popleft())

    def _cells(self, job: Job, decoding: Decoding) -> int:
        """Tokens of the cache that a sequence may need beside the prompt's; the last token is never computed."""
        return decoding.limit - 1 + (0 if self._backend.shares_prefix else len(job.prompt))

    def _has_room(self, cells: int, *, sequences: int) -> bool:
        used = sum(job.cells for job in self._running)
        slots = sum(len(job.active) + (not job.begun or job.root is not None) for job in self._running)
        backend = self._backend
        return used + cells <= backend.cache_tokens and slots + sequences <= backend.max_sequences

    # -- computing ------------------------------------------------------------------------------------------

    def _prefill(self, job: Job) -> None:
        """Compute a stretch of the prompt; all of it when nobody else waits."""
        before = time.perf_counter()
        with self._failing([job]):
            self._extend_root(job)
        job.prompt_seconds += time.perf_counter() - before

    def _extend_root(self, job: Job) -> None:
        prompt, backend = job.prompt, self._backend
        if job.root is None and self._cache is not None and (found := self._cache.lookup(prompt)):
            length, state = found
            with suppress(EdgeDistillError):  # then all of it is computed
                job.root = backend.restore(state, length)
                job.cached_tokens = length
        done = 0 if job.root is None else job.root.length
        if job.root is not None and done == len(prompt):
            done -= 1  # all of it came from the cache: the last token again, for its logits
            backend.rewind(job.root, done)
        stretch = prompt[done:] if len(self._running) == 1 else prompt[done : done + _STRETCH]
        if job.root is None:
            job.root = backend.prefill(stretch)
        else:
            backend.extend(job.root, stretch)

    def _begin(self, job: Job) -> None:
        """Fork the sequences that have room."""
        while job.waiting and job.prompt_is_computed and job.error is None:
            assert job.root is not None
            decoding = job.waiting[0]
            cells = self._cells(job, decoding)
            if job.begun:  # the first one's room was reserved with the prompt's
                if not self._has_room(cells, sequences=1):
                    if not any(other.active for other in self._running):
                        self._fail([job], self._no_room(job, cells))
                    return
                job.cells += cells
            job.waiting.popleft()
            job.begun += 1
            logits = job.root.logits
            if job.waiting or job.stays_open:
                sequence = self._backend.fork(job.root, 1)[0]
            else:
                sequence, job.root = job.root, None
            job.active.append(Branch(decoding, sequence))
            decoding.started = time.perf_counter()
            self._next(job, decoding, logits)

    def _no_room(self, job: Job, cells: int) -> ResourceError:
        backend = self._backend
        return ResourceError(
            "cache-full",
            f"a prompt of {len(job.prompt)} tokens and {cells} more do not fit a cache of {backend.cache_tokens}"
            f" tokens and {backend.max_sequences} sequences",
            'ask for fewer tokens, or load with backend_options={"cache_tokens": ...}',
        )

    def _decode(self, work: SequenceOf[tuple[Job, Branch]]) -> None:
        """One token, or a draft that proves right, for every sequence."""
        ready = [
            (job, branch)
            for job, branch in work
            if not branch.decoding.is_finished and job.error is None and self._synchronize(job, branch)
        ]
        if len(ready) == 1 and self._check_draft(*ready[0]):
            return
        ready.sort(key=lambda pair: pair[1].sequence.slot)  # rows in the cache's order need no copies
        most = self._backend.max_sequences
        for start in range(0, len(ready), most):
            group = ready[start : start + most]
            rows = self._backend.step(
                [branch.sequence for _, branch in group],
                [branch.decoding.tokens[-1] for _, branch in group],
            )
            for (job, branch), row in zip(group, rows, strict=True):
                self._next(job, branch.decoding, row)

    def _next(self, job: Job, decoding: Decoding, logits: Floats) -> None:
        with self._failing([job]):  # one request's trouble is nobody else's
            decoding.next(logits)

    def _synchronize(self, job: Job, branch: Branch) -> bool:
        """Make the cache hold all tokens but the last."""
        decoding, sequence, start = branch.decoding, branch.sequence, len(job.prompt)
        with self._failing([job]):
            if start + decoding.kept < sequence.length:
                self._backend.rewind(sequence, start + decoding.kept)
            if before_last := decoding.tokens[sequence.length - start : -1]:
                self._backend.extend(sequence, before_last)
            decoding.kept = len(decoding.tokens)
        return job.error is None

    def _check_draft(self, job: Job, branch: Branch) -> bool:
        """Compute the last token and a draft of the following ones together; keep what the model says itself."""
        decoding, sequence, lookup = branch.decoding, branch.sequence, branch.decoding.lookup
        if lookup is None:
            return False
        count = len(decoding.tokens)
        room = min(decoding.limit - count, self._backend.context_length - sequence.length) - 1
        draft = lookup.draft()[: min(room, self._backend.max_sequences - 1)] if room > 0 else []
        if not draft:
            return False
        rows = self._backend.verify(sequence, [decoding.tokens[-1], *draft])
        accepted = 0
        for row, drafted in zip(rows, [*draft, -1], strict=True):
            self._next(job, decoding, row)
            if decoding.is_finished or job.error or decoding.tokens[count + accepted :] != [drafted]:
                break
            accepted += 1
        decoding.kept = min(decoding.kept, count + accepted)
        lookup.report(len(draft), accepted)
        return True
