"""The parts of a run; each measures what results.json does not hold yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from edge_distill_bench.accuracy import ask_model, count_questions, measure_accuracy
from edge_distill_bench.answering import read_rows
from edge_distill_bench.energy import open_meter
from edge_distill_bench.fidelity import measure_fidelity
from edge_distill_bench.fidelity_cache import Reference, read_reference, write_reference
from edge_distill_bench.fidelity_texts import texts_of
from edge_distill_bench.items import Tasks
from edge_distill_bench.latency import Plan, energy_of, latency_of, measure_rounds, speed_ratios
from edge_distill_bench.latency_rows import LatencyRows
from edge_distill_bench.memory import compare_memory
from edge_distill_bench.outcomes import Answered
from edge_distill_bench.problem import Problem
from edge_distill_bench.results import Settings, rows_path
from edge_distill_bench.run import Run, Subject
from edge_distill_runtime import InputError, Model, load
from edge_distill_runtime.bundles.found import DEFAULT_CONTEXT
from edge_distill_runtime.bundles.manifest import Manifest
from edge_distill_runtime.bundles.opening import find
from edge_distill_runtime.engines.kv_cache import default_token_bytes
from edge_distill_runtime.engines.llama import CACHE_STEP
from edge_distill_runtime.engines.memory import tokens_that_fit
from edge_distill_runtime.progress import Advance

__all__ = ["measure_accuracies", "measure_fidelities", "measure_latencies", "measure_memories"]

_ALONE = 6  # problems that are answered one at a time, for the time to answer
_AT_ONCE = 16  # problems that share every step: more bring little on a CPU
_CHARACTERS = 2  # of a problem to a token, at the least
FIDELITY_NAME = "fidelity"
_TEXTS = 32  # for fidelity: some thousand tokens
_CHAT_FORM = 64  # tokens around a problem


# -- latency and memory ---------------------------------------------------------------------------------------


def measure_latencies(run: Run, tasks: Tasks) -> None:
    """All models in turn, unless all have been measured; the first problems are answered one at a time."""
    if all(run.artifact(subject).latency for subject in run.subjects):
        return
    settings, meter = run.settings, open_meter()
    plan = Plan(settings.threads, sweep=_sweep(settings.threads), answer_context=_room(tasks, settings))
    problems = list(islice((problem for task in tasks.values() for problem in task), _ALONE))
    hashes = {subject.name: run.artifact(subject).hash for subject in run.subjects}
    asked = [settings.rounds, settings.max_tokens, settings.budgets, [problem.id for problem in problems]]
    rows = LatencyRows(run.folder / "latency.jsonl", hashes, plan, asked)
    names = {subject.path: subject.name for subject in run.subjects}
    with run.stage(f"Latency of {len(names)} models in turn", settings.rounds * len(names)) as advance:
        measured = measure_rounds(
            list(names),
            plan,
            rounds=settings.rounds,
            meter=meter,
            answers=[partial(_answer, problem, settings) for problem in problems],
            known=rows.complete(),
            keep=lambda path, one: rows.append(names[path], one),
            advance=advance,
        )
    run.add_noise([one.noise for rounds in measured for one in rounds])
    for subject, rounds in zip(run.subjects, measured, strict=True):
        fitting, notes = plan.fitting(find(subject.path).manifest.context_length)
        run.put(subject.name, latency=latency_of(rounds, fitting, notes), energy=energy_of(rounds, meter))
    run.put_ratios(speed_ratios(dict(zip(names.values(), measured, strict=True))))
    rows.remove()


def _sweep(threads: int) -> tuple[int, ...]:
    """1, 2, 4 and so on, below the number that everything else is measured with."""
    return tuple(1 << power for power in range(threads.bit_length()) if 1 << power < threads)


def _answer(problem: Problem, settings: Settings, model: Model) -> None:
    """As `ask_model` asks, at the largest budget."""
    budget = max(settings.budgets) if model.manifest.reasoning else None
    model.generate(
        problem.problem,
        temperature=0.0,
        max_tokens=settings.max_tokens,
        thinking_budget=budget,
        thinking=None if budget is None else budget > 0,
    )


def measure_memories(run: Run) -> None:
    """A fresh process for every model and context that fits it."""
    missing = [subject for subject in run.subjects if not run.artifact(subject).memory]
    if not missing:
        return
    settings = run.settings
    if not Path("/proc/self/status").exists():
        for subject in missing:
            run.put(
                subject.name, notes=(*run.artifact(subject).notes, "memory: not measured: it takes Linux")
            )
        return
    with run.stage("Memory of fresh processes", len(missing) * len(settings.contexts)) as advance:
        for subject in missing:
            figures = []
            longest = find(subject.path).manifest.context_length
            for context in sorted({min(context, longest) for context in settings.contexts}):
                figures.append(
                    compare_memory(subject.path, context=context, threads=settings.threads).figures
                )
                advance()
            run.put(subject.name, memory=tuple(figures))


# -- accuracy -------------------------------------------------------------------------------------------------


def measure_accuracies(run: Run, tasks: Tasks, elsewhere: Sequence[Answered] = ()) -> None:
    """Ask every model the same problems, then compare; `elsewhere` are the answers of models of another run."""
    if all(run.artifact(subject).accuracy for subject in run.subjects):
        return
    answered = [_ask(run, subject, tasks, number) for number, subject in enumerate(run.subjects, 1)]
    references = [*elsewhere, *(one for one in answered if one.role != "artifact")]
    run.add_noise()
    for one in answered:
        accuracy = measure_accuracy(
            one,
            tasks,
            budgets=run.settings.budgets,
            samples=run.settings.samples,
            against=[other for other in references if other.name != one.name],
        )
        run.put(one.name, accuracy=accuracy)


def _ask(run: Run, subject: Subject, tasks: Tasks, number: int) -> Answered:
    settings = run.settings
    manifest = find(subject.path).manifest
    room = min(CACHE_STEP * -(-_room(tasks, settings) // CACHE_STEP), manifest.context_length)
    rows = rows_path(run.folder, subject.name)
    rows.parent.mkdir(parents=True, exist_ok=True)
    # the context need not be a multiple of the cache's step where the bundle's own is not
    cache = {"cache_tokens": _cache_tokens(manifest, room), "own_caches": room % CACHE_STEP == 0}
    name = f"Answers of {subject.name} ({number} of {len(run.subjects)})"
    with load(subject.path, context=room, threads=settings.threads, backend_options=cache) as model:
        total = count_questions(model, tasks, settings.budgets, settings.samples)
        with run.stage(name, total) as advance:
            return ask_model(
                model,
                tasks,
                name=subject.name,
                role=subject.role,
                budgets=settings.budgets,
                samples=settings.samples,
                max_tokens=settings.max_tokens,
                seed=settings.seed,
                rows=rows,
                at_once=_AT_ONCE,
                progress=_counting(advance),
            )


def _room(tasks: Tasks, settings: Settings) -> int:
    """Tokens that the longest problem and its answer take at the most."""
    longest = max((len(problem.problem) for task in tasks.values() for problem in task), default=0)
    return longest // _CHARACTERS + _CHAT_FORM + settings.max_tokens if longest else 0


def _cache_tokens(manifest: Manifest, room: int) -> int:
    """For as many whole sequences as share a step, but at most half of the memory that is left."""
    fitting = tokens_that_fit(default_token_bytes(manifest))
    return room * (_AT_ONCE if fitting is None else max(1, min(_AT_ONCE, fitting // 2 // room)))


# -- fidelity -------------------------------------------------------------------------------------------------


def measure_fidelities(run: Run, tasks: Tasks, elsewhere: Path | None = None) -> None:
    """Every artifact against the student, else the teacher; `elsewhere` is the folder of the run that holds it."""
    missing = [
        subject
        for subject in run.subjects
        if subject.role == "artifact" and not run.artifact(subject).fidelity
    ]
    if not missing:
        return
    reference = _reference(run, tasks, elsewhere)
    for number, subject in enumerate(missing, 1):
        if reference is None:
            run.note(subject.name, "fidelity: not measured: there is no teacher and no student")
            continue
        rows = run.folder / FIDELITY_NAME / rows_path(run.folder, subject.name).name
        rows.parent.mkdir(parents=True, exist_ok=True)
        name = f"Fidelity of {subject.name} ({number} of {len(missing)})"
        with _loaded(run, subject) as model, run.stage(name, len(reference.texts)) as advance:
            try:
                fidelity = measure_fidelity(model, reference, rows=rows, progress=_counting(advance))
            except InputError as error:  # another tokenizer
                run.note(subject.name, f"fidelity: not measured: {error.what}")
                continue
        run.put(subject.name, fidelity=fidelity)


def _reference(run: Run, tasks: Tasks, elsewhere: Path | None) -> Reference | None:
    """The cache of the student, else of the teacher: made here, or by the other run."""
    name = run.results.reference or run.results.teacher
    if name is None:
        return None
    known = run.results.artifact(name).hash[:8]  # a model that was made anew has a cache of its own
    folder = run.folder / FIDELITY_NAME / f"{rows_path(run.folder, name).stem}-{known}"
    subject = next((subject for subject in run.subjects if subject.name == name), None)
    if subject is None:
        assert elsewhere is not None
        return read_reference(elsewhere / FIDELITY_NAME / folder.name)
    problems = [problem for problems in tasks.values() for problem in problems]
    rows = rows_path(run.folder, name)
    with _loaded(run, subject) as model:
        texts = texts_of(model, problems, read_rows(rows) if rows.exists() else (), most=_TEXTS)
        with run.stage(f"Fidelity: distributions of {name}", len(texts)) as advance:
            return write_reference(model, texts, folder, name=name, progress=_counting(advance))


def _loaded(run: Run, subject: Subject) -> Model:
    context = min(find(subject.path).manifest.context_length, DEFAULT_CONTEXT)
    return load(subject.path, context=context, threads=run.settings.threads)


def _counting(advance: Advance) -> Callable[[int], None]:
    """From how many are done to how many more."""
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        advance(count - done)
        done = count

    return progress
