"""All problems through one model, several at once, item by item into a file: an interrupted run goes on."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from edge_distill_bench.grading import Grade, Verdict, grade
from edge_distill_bench.lines import append_lines, bad_line, cut_torn_line, read_lines
from edge_distill_bench.problem import Problem
from edge_distill_runtime import Generation, InputError, Model
from edge_distill_runtime.bundles.manifest import Manifest
from edge_distill_runtime.bundles.typed_json import typed
from edge_distill_runtime.generation.options import GenerationOptions
from edge_distill_runtime.reasoning.answers import parse_answer

__all__ = ["Row", "answer_items", "hash_of", "read_rows"]


@dataclass(frozen=True)
class Row:
    """One sample of one problem."""

    key: str
    """Hash of the model, the prompt, the right answer and the options."""
    id: str
    """The problem's."""
    budget: int | None
    """Most tokens of reasoning that it was asked with; None: as the model likes."""
    samples: int
    """Drawn together; a single one is greedy unless a temperature was given."""
    sample: int
    """Its number among them, from 0."""
    text: str
    """Everything generated, reasoning included."""
    answer: str
    """What was read from the text behind the reasoning; empty when nothing was."""
    verdict: Verdict
    reason: str
    """Why there is no verdict, when the grading failed."""
    finish_reason: str
    tokens: int
    reasoning_tokens: int
    prompt_tokens: int
    prompt_seconds: float
    seconds: float
    """To generate, the prompt not counted; steps are shared with the problems answered at the same time."""


def answer_items(
    model: Model,
    problems: Sequence[Problem],
    *,
    samples: int = 1,
    prompt: Callable[[Problem], str | list[dict[str, str]]] = lambda problem: problem.problem,
    model_hash: str | None = None,
    rows: Path | None = None,
    known: Mapping[str, Sequence[Row]] | None = None,
    at_once: int = 8,
    progress: Callable[[int], object] | None = None,
    **options: Unpack[GenerationOptions],
) -> list[Row]:
    """Ask and grade; the rows in the order of the problems, `samples` of each.

    `at_once` problems share every step of the model, as far as its cache has room: load it with
    `backend_options={"cache_tokens": ...}` for that many. One sample is greedy unless `temperature` is given;
    several draw with the manifest's temperature and seeds from `seed` (0) on. A generation that ended at a limit of
    tokens is "cut off", whatever it says.

    `rows` is a JSON lines file that every finished problem is appended to; problems that it holds already, of the
    same model, prompt and options, are not asked again. `model_hash` names the model there, by default the hashes of
    its bundle's files; a model without a manifest needs one. `known`, by problem, are rows that other options gave and
    these would give as well: they are taken over instead of asked. `progress` is called with the number of problems
    that have been done, at the start and after each.

    Raises `InputError` for bad options and for a prompt that does not fit, before anything is computed.
    """
    asked = _with_defaults(model.manifest, samples, options)
    if at_once < 1:
        raise InputError("bad-at-once", f"{at_once} problems at once", "it must be at least 1")
    if len({problem.id for problem in problems}) < len(problems):
        raise InputError("double-id", "two problems have the same id", "give every problem one of its own")
    identity = "" if rows is None else model_hash or hash_of(model.manifest)
    prompts = {problem.id: prompt(problem) for problem in problems}
    keys = {
        problem.id: _key(identity, prompts[problem.id], problem, samples, asked, model.backend.context_length)
        for problem in problems
    }
    budget = asked.get("thinking_budget")
    done = _finished(rows, keys, samples)

    def keep(name: str, found: list[Row]) -> None:
        if rows is not None:
            append_lines(rows, map(asdict, found))
        done[name] = found

    for name, same in (known or {}).items():
        if name not in done:
            keep(name, [replace(row, key=keys[name], budget=budget) for row in same])
    missing = [problem for problem in problems if problem.id not in done]
    for problem in missing:
        model.prepare(prompts[problem.id], samples, asked)
    told = progress or (lambda count: None)
    told(len(done))

    cancel = threading.Event()
    asked["cancel"] = cancel

    def ask(problem: Problem) -> list[Row]:
        generations = model.sample(prompts[problem.id], samples, **asked)
        key = keys[problem.id]
        return [
            _row(key, problem, budget, samples, index, generation)
            for index, generation in enumerate(generations)
        ]

    with ThreadPoolExecutor(at_once, "answering") as threads:
        futures = {threads.submit(ask, problem): problem for problem in missing}
        try:
            for future in as_completed(futures):
                keep(futures[future].id, future.result())
                told(len(done))
        finally:  # nothing is asked any more, and what runs ends within one token
            _stop(futures, cancel)
    return [row for problem in problems for row in done[problem.id]]


def _stop(futures: Mapping[Future[list[Row]], Problem], cancel: threading.Event) -> None:
    for future in futures:
        future.cancel()
    cancel.set()


def _with_defaults(manifest: Manifest, samples: int, options: GenerationOptions) -> GenerationOptions:
    unfit = sorted(options.keys() & {"answer_format", "cancel", "deadline", "logprobs"})
    if unfit:
        raise InputError(
            "bad-option",
            f"{unfit[0]} cannot be given here",
            "rows could not be told apart, or would not keep it",
        )
    asked: GenerationOptions = {"seed": 0, **options}
    if samples == 1 and asked.get("temperature") is None:
        asked["temperature"] = 0.0
    temperature = asked.get("temperature")
    if samples > 1 and not (manifest.sampling.temperature if temperature is None else temperature):
        raise InputError(
            "bad-temperature", f"{samples} samples at temperature 0 are all the same", "give a temperature"
        )
    return asked


def _row(
    key: str, problem: Problem, budget: int | None, samples: int, index: int, generation: Generation
) -> Row:
    if generation.finish_reason in ("length", "context"):
        result = Grade("cut off", parse_answer(generation.answer))
    else:
        result = grade(generation.answer, problem.answer)
    return Row(
        key=key,
        id=problem.id,
        budget=budget,
        samples=samples,
        sample=index,
        text=generation.text,
        answer=result.answer.display,
        verdict=result.verdict,
        reason=result.reason,
        finish_reason=generation.finish_reason,
        tokens=len(generation.tokens),
        reasoning_tokens=generation.reasoning_tokens,
        prompt_tokens=generation.prompt_tokens,
        prompt_seconds=generation.prompt_seconds,
        seconds=generation.seconds,
    )


# -- the file ------------------------------------------------------------------------------------------------


def hash_of(manifest: Manifest) -> str:
    """SHA-256 of a bundle's files and of all else that steers its text; `InputError` without a list of files."""
    if not manifest.files:
        raise InputError(
            "no-hash",
            f"{manifest.name} has no manifest that says what it is",
            "give model_hash, its file's SHA-256",
        )
    # all that steers the text, not what was measured
    parts = [
        sorted((entry.path, entry.sha256) for entry in manifest.files),
        manifest.chat and asdict(manifest.chat),
        manifest.reasoning and asdict(manifest.reasoning),
        asdict(manifest.sampling),
        manifest.stop_ids,
        manifest.bos_id,
        manifest.reasoning_lengths and asdict(manifest.reasoning_lengths),
    ]
    return _sha256(parts)


def _key(
    identity: str, prompt: Any, problem: Problem, samples: int, options: Mapping[str, Any], context: int
) -> str:
    return _sha256([identity, prompt, problem.id, problem.answer, samples, options, context])


def _sha256(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _finished(path: Path | None, keys: Mapping[str, str], samples: int) -> dict[str, list[Row]]:
    """The rows of the problems that have all their samples."""
    if path is None or not path.exists():
        return {}
    cut_torn_line(path)
    found: dict[str, dict[int, Row]] = {}
    for row in read_rows(path):
        if keys.get(row.id) == row.key:
            found.setdefault(row.id, {})[row.sample] = row
    return {
        name: [rows[index] for index in range(samples)]
        for name, rows in found.items()
        if set(range(samples)) <= rows.keys()
    }


def read_rows(path: Path) -> list[Row]:
    """All rows of a file, also of other models and options; `InputError` names a line that is none."""
    result = []
    for number, values in read_lines(path):
        try:
            result.append(typed(Row, values, "row"))
        except ValueError as exc:
            raise bad_line(path, number) from exc
    return result
