"""`edge-distill bench`: latency, memory, energy, accuracy and fidelity of bundles against teacher and student."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from edge_distill.wide_table import print_wide
from edge_distill_bench.bench_options import (
    BUDGETS_HELP,
    CONTEXTS_HELP,
    GATE_HELP,
    ITEMS_HELP,
    PARTS,
    SAMPLES_HELP,
    SPLIT_HELP,
    TASKS_HELP,
)

if TYPE_CHECKING:
    from rich.console import Console

    from edge_distill_bench.results import BenchResults

__all__ = ["Benched", "bench"]

_CHECKPOINTS = "checkpoints"  # bundles of those that were given as checkpoints


@dataclass(frozen=True)
class Benched:
    """What was measured, and where results.json stands."""

    results: BenchResults
    folder: Path

    def to_dict(self) -> dict[str, Any]:
        return {"folder": str(self.folder), **self.results.to_dict()}

    def render(self, console: Console) -> None:
        from edge_distill_bench.bench import tell
        from edge_distill_bench.report.entries import entries_of
        from edge_distill_bench.report.tables import overview_table

        overview = overview_table(entries_of(self.results))
        print_wide(console, overview.header, overview.rows)
        console.print()
        tell(self.results, console.print)
        console.print(f"\n{self.folder}: `edge-distill report {self.folder}` makes a page of it")


def bench(
    bundles: Annotated[list[str], "Bundles, GGUF files, or checkpoints, which are measured in float32"],
    *,
    teacher: Annotated[str | None, "A bundle or checkpoint, measured as well"] = None,
    student: Annotated[str | None, "The checkpoint that the bundles were made from, measured as well"] = None,
    teacher_results: Annotated[
        Path | None, "Instead of both: the folder of another run, made on any machine, with their answers"
    ] = None,
    tasks: Annotated[str | None, TASKS_HELP] = None,
    items: Annotated[int | None, ITEMS_HELP] = None,
    budgets: Annotated[str | None, BUDGETS_HELP] = None,
    samples: Annotated[str | None, SAMPLES_HELP] = None,
    seed: Annotated[int | None, "Of problems and samples (0)"] = None,
    split: Annotated[str, SPLIT_HELP] = "test",
    threads: Annotated[int | None, "By default the CPUs that this process may use"] = None,
    rounds: Annotated[int, "Of every latency"] = 5,
    contexts: Annotated[str, CONTEXTS_HELP] = "512,2048",
    parts: Annotated[str, "Some of these"] = ",".join(PARTS),
    gate: Annotated[str | None, GATE_HELP] = None,
    out: Annotated[Path, "Folder of results.json and the rows; an interrupted run goes on there"] = Path(
        "bench"
    ),
    console: Console | None = None,
) -> Benched:
    """Measure bundles on the same problems as their teacher and student, and judge them by limits."""
    from edge_distill.checkpoints import as_bundle
    from edge_distill_bench.bench import bench as measure
    from edge_distill_bench.bench_options import Options, numbers, words
    from edge_distill_bench.gate import check_gate, parse_gate
    from edge_distill_export.progress import stage

    if gate:
        parse_gate(gate)  # before a checkpoint is exported
    options = Options(
        tasks=words("tasks", tasks),
        items=items,
        budgets=numbers("budgets", budgets),
        samples=numbers("samples", samples),
        seed=seed,
        split=split,  # type: ignore[arg-type]
        threads=threads,
        rounds=rounds,
        contexts=numbers("contexts", contexts) or (),
        parts=words("parts", parts) or (),
    )
    place = out / _CHECKPOINTS
    results = measure(
        [as_bundle(bundle, place) for bundle in bundles],
        out=out,
        teacher=as_bundle(teacher, place) if teacher else None,
        student=as_bundle(student, place) if student else None,
        teacher_results=teacher_results,
        options=options,
        gate=gate,
        command=shlex.join(["edge-distill", *sys.argv[1:]]),
        stage=stage,
    )
    benched = Benched(results, out)
    if console is not None and not all(line.passed for line in results.gate):
        benched.render(console)
    check_gate(results.gate)
    return benched
