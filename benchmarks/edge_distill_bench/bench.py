"""Latency, memory, energy, accuracy and fidelity of bundles against their teacher, in one results.json.

    python -m edge_distill_bench.bench BUNDLE... [--teacher-results DIR] [--gate retention>=0.99,rss<=300MB] [--out DIR]

The same as `edge-distill bench` where only the runtime and this part are installed: teacher and student are bundles
too, or come as the folder of a run on another machine. An interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from edge_distill_bench.bench_options import (
    BUDGETS_HELP,
    CONTEXTS_HELP,
    GATE_HELP,
    ITEMS_HELP,
    PARTS,
    SAMPLES_HELP,
    SPLIT_HELP,
    TASKS_HELP,
    Options,
    numbers,
    words,
)
from edge_distill_bench.gate import check_gate, check_limits, evaluate_gate, parse_gate
from edge_distill_bench.items import Tasks, hash_tasks, load_tasks, read_tasks, write_tasks
from edge_distill_bench.measure import print_table
from edge_distill_bench.outcomes import Answered, read_answered
from edge_distill_bench.parts import (
    measure_accuracies,
    measure_fidelities,
    measure_latencies,
    measure_memories,
)
from edge_distill_bench.report.entries import entries_of
from edge_distill_bench.report.tables import overview_table
from edge_distill_bench.results import (
    ArtifactResult,
    BenchResults,
    read_results,
    rows_path,
    write_results,
)
from edge_distill_bench.run import Stage, open_run, subjects_of
from edge_distill_runtime.errors import EdgeDistillError
from edge_distill_runtime.progress import lines

__all__ = ["bench", "main", "tell"]

_NOISY = 0.05  # deviation of the fixed computation


def bench(
    bundles: Sequence[Path],
    *,
    out: Path,
    teacher: Path | None = None,
    student: Path | None = None,
    teacher_results: Path | None = None,
    options: Options | None = None,
    gate: str | None = None,
    command: str = "",
    stage: Stage = lines,
) -> BenchResults:
    """Measure what `out` does not hold yet, and judge; results.json is written after every part.

    `teacher` and `student` (the checkpoint in fp32) are bundles, which are measured as well; `teacher_results` is the
    folder of another run that holds their answers to the same problems. With a gate, the last thing is a `GateError`
    when a limit does not hold.
    """
    limits = parse_gate(gate) if gate else ()
    other = read_results(teacher_results) if teacher_results else None
    options = options or Options()
    settings = options.settings(other.settings if other else None)
    tasks: Tasks = {}
    if {"accuracy", "fidelity"} & set(settings.parts):
        tasks = (
            read_tasks(teacher_results)
            if teacher_results
            else load_tasks(settings.tasks, settings.items, split=options.split, seed=settings.seed)
        )
        settings = replace(settings, items_hash=hash_tasks(tasks))
    run = open_run(
        out,
        subjects_of(bundles, teacher, student),
        settings,
        command=command,
        stage=stage,
        elsewhere=_references(other) if other else (),
    )
    check_limits(run.results, limits)
    if tasks:
        write_tasks(out, tasks)
    if "latency" in settings.parts:
        measure_latencies(run, tasks)
    if "memory" in settings.parts:
        measure_memories(run)
    if "accuracy" in settings.parts:
        elsewhere = _copied_answers(teacher_results, out, run.results, tasks) if teacher_results else []
        measure_accuracies(run, tasks, elsewhere)
    if "fidelity" in settings.parts:
        measure_fidelities(run, tasks, teacher_results)
    results = replace(run.results, gate=evaluate_gate(run.results, limits) if limits else ())
    write_results(out, results)
    return results


def _references(other: BenchResults) -> list[ArtifactResult]:
    """Teacher and student of another run, without what depends on its machine."""
    return [
        replace(
            one,
            latency=None,
            memory=(),
            energy=None,
            notes=(*one.notes, f"answered on another machine: {other.machine.cpu}"),
        )
        for one in other.artifacts
        if one.role != "artifact"
    ]


def _copied_answers(source: Path, out: Path, results: BenchResults, tasks: Tasks) -> list[Answered]:
    """The rows of the other run's teacher and student, which are kept beside ours."""
    ids = [problem.id for problems in tasks.values() for problem in problems]
    answered = []
    for one in _references(read_results(source)):
        if one.name not in (results.teacher, results.reference):
            continue
        theirs, ours = rows_path(source, one.name), rows_path(out, one.name)
        answered.append(
            read_answered(theirs, ids, name=one.name, role=one.role, budgets=results.settings.budgets)
        )
        ours.parent.mkdir(parents=True, exist_ok=True)
        if theirs.resolve() != ours.resolve():
            shutil.copyfile(theirs, ours)
    return answered


# -- the command line ----------------------------------------------------------------------------------------


def tell(results: BenchResults, show: Callable[[str], object]) -> None:
    """Below the table: what was wrong with the machine, what is missing, and the gate's lines."""
    noise = results.noise.deviation
    show(f"The machine's noise: {noise:.1%} ({results.noise.what}, {len(results.noise.seconds)} times)")
    if noise > _NOISY or results.machine.is_busy:
        show(
            f"The machine was busy (noise {noise:.0%}, load before the start {results.machine.load:.1f}): "
            "do not trust these times"
        )
    for artifact in results.artifacts:
        notes = [*artifact.notes, *(artifact.latency.notes if artifact.latency else ())]
        for note in notes:
            show(f"{artifact.name}: {note}")
    if energies := {
        one.energy.reason for one in results.artifacts if one.energy and not one.energy.joules_per_token
    }:
        show(f"Energy: {'; '.join(sorted(energies))}")
    for line in results.gate:
        show(f"{'ok  ' if line.passed else 'FAIL'} {line.artifact}: {line.text}")


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `python -m edge_distill_bench.bench`; 8 when the gate fails."""
    arguments = sys.argv[1:] if arguments is None else arguments
    given = _parser().parse_args(arguments)
    try:
        results = bench(
            given.bundles,
            out=given.out,
            teacher=given.teacher,
            student=given.student,
            teacher_results=given.teacher_results,
            options=Options(
                tasks=words("tasks", given.tasks),
                items=given.items,
                budgets=numbers("budgets", given.budgets),
                samples=numbers("samples", given.samples),
                seed=given.seed,
                split=given.split,
                threads=given.threads,
                rounds=given.rounds,
                contexts=numbers("contexts", given.contexts) or (),
                parts=words("parts", given.parts) or (),
            ),
            gate=given.gate,
            command=shlex.join(["python", "-m", "edge_distill_bench.bench", *arguments]),
        )
        if given.json:
            print(json.dumps(results.to_dict()))
        else:
            table = overview_table(entries_of(results))
            print_table(str(given.out), table.header, table.rows)
            tell(results, print)
        check_gate(results.gate)
    except EdgeDistillError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m edge_distill_bench.bench", description=summary)
    parser.add_argument("bundles", metavar="BUNDLE", nargs="+", type=Path)
    parser.add_argument("--teacher", type=Path, help="its bundle, to be measured here")
    parser.add_argument("--student", type=Path, help="the bundle of the fp32 student, to be measured here")
    parser.add_argument("--teacher-results", type=Path, help="the folder of a run that holds their answers")
    parser.add_argument("--tasks", help=TASKS_HELP)
    parser.add_argument("--items", type=int, help=ITEMS_HELP)
    parser.add_argument("--budgets", help=BUDGETS_HELP)
    parser.add_argument("--samples", help=SAMPLES_HELP)
    parser.add_argument("--seed", type=int, help="of problems and samples (0)")
    parser.add_argument("--split", default="test", help=SPLIT_HELP)
    parser.add_argument("--threads", type=int, help="by default the CPUs that the process may use")
    parser.add_argument("--rounds", type=int, default=5, help="of every latency (5)")
    parser.add_argument("--contexts", default="512,2048", help=CONTEXTS_HELP)
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--gate", help=GATE_HELP)
    parser.add_argument("--out", type=Path, default=Path("bench"), help="the folder of the results (bench)")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
