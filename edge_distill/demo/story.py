"""`edge-distill demo`: the whole way on tiny models, from a teacher's traces to an int4 student beside its teacher."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from edge_distill.demo.files import TASK, TEACHER, recipe
from edge_distill_bench.results import ArtifactResult, BenchResults, Comparison, Role
from edge_distill_bench.statistics import Estimate

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["FULL", "Row", "Scale", "Story", "demo", "rows_of"]

TARGETS = ("gguf:q8_0", "gguf:q4_0", "onnx:int8", "onnx:int4")
QUESTION = "State the final answer to the following arithmetic problem: 7 + 5 - 9 + 8 ="
_BUDGET = 96  # tokens of reasoning; the longest solution takes about 40
_AT_ONCE = 128
_MADE = (
    "traces",
    "fresh",
    "logits",
    "distilled",
    "bundles",
    "bench",
)  # what an earlier demo left is replaced


@dataclass(frozen=True)
class Scale:
    """How much of everything; the tests tell the story with less."""

    problems: int = 4000
    samples: int = 4
    """Of each problem, which vote."""
    steps: int | None = None
    """Of training; by default the recipe's."""
    items: int = 300
    """Test problems."""
    rounds: int = 3
    """Of every latency."""


FULL = Scale()


@dataclass(frozen=True)
class Row:
    """One model, measured."""

    name: str
    target: str
    role: Role
    bytes: int
    accuracy: Estimate
    of_teacher: Estimate | None
    """Accuracy divided by the teacher's; None for the teacher itself."""
    of_student: Estimate | None
    """Accuracy divided by that of the student in float32; None for that and for the teacher."""
    tokens_per_second: float
    """One generation alone, the median of the rounds."""


@dataclass(frozen=True)
class Story:
    """What the demo made and measured."""

    rows: tuple[Row, ...]
    traces: dict[str, Any]
    """As `edge-distill traces` reports them."""
    teacher_parameters: int
    student_parameters: int
    training_seconds: float
    question: str
    answers: dict[str, str]
    """By target: what a loaded bundle writes to the question, its reasoning included."""
    folder: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def render(self, console: Console) -> None:
        from rich.table import Table

        from edge_distill_bench.report.numbers import NONE, interval, megabytes, speed

        traces, times = self.traces, self.teacher_parameters / self.student_parameters
        console.print(
            f"\nThe teacher solved {traces['kept']:,} of {traces['problems']:,} problems in {traces['samples']:,} "
            f"samples; it has {self.teacher_parameters / 1e6:.2f}M parameters, the student "
            f"{self.student_parameters / 1e6:.2f}M, {times:.1f} times fewer\n"
        )
        console.print(f"{self.question}\n")
        for target, answer in self.answers.items():
            console.print(f"{target}:\n{answer.strip()}\n")
        table = Table(box=None, pad_edge=False)
        for title in ("model", "MB", "right", "of the teacher", "of the student", "tokens/s"):
            table.add_column(title, justify="left" if title == "model" else "right")
        for row in self.rows:
            kept = [interval(part) if part else NONE for part in (row.of_teacher, row.of_student)]
            table.add_row(
                f"{'teacher' if row.role == 'teacher' else 'student'} {row.target}",
                megabytes(row.bytes),
                interval(row.accuracy),
                *kept,
                speed(row.tokens_per_second),
            )
        console.print(table)
        console.print(f"[95 % intervals]; {self.seconds:.0f} s; everything is in {self.folder}")


def demo(
    *,
    out: Annotated[
        Path, "The folder for all that is made; what an earlier demo left there is replaced"
    ] = Path("demo"),
    scale: Scale = FULL,
) -> Story:
    """Let a tiny teacher write traces, distil a smaller student from them, export and run it, and compare the two.

    Each stage is a verb of its own: traces, init-student, distill, export, run, bench.
    """
    from edge_distill.bench import bench
    from edge_distill.distil.distill import train
    from edge_distill.distil.init_student import init_student
    from edge_distill.traces.writing import traces
    from edge_distill_export.export import ExportResult, export

    started = time.monotonic()
    _clear(out)
    teacher = str(TEACHER)
    written = traces(
        [TASK],
        teacher=f"hf:{teacher}",
        out=out / "traces.jsonl",
        count=scale.problems,
        samples=scale.samples,
        max_tokens=_BUDGET + 32,
        at_once=_AT_ONCE,
    )
    fresh = init_student(teacher, out=out / "fresh", fresh=True, layers=3, hidden=64, ffn=96)
    distilled = train(
        recipe(
            "student",
            student=fresh.path,
            out=out / "distilled",
            traces=[out / "traces.jsonl"],
            teacher={"checkpoint": teacher, "cache": out / "logits"},
            training={}
            if scale.steps is None
            else {"steps": scale.steps, "batch_size": 8, "micro_batch_size": 8},
        )
    )
    # the student was trained on the grid: rounding gives exactly the integers that it was trained with
    exported = export(distilled.path, to=list(TARGETS), out=out / "bundles", method="rtn")
    assert isinstance(exported, ExportResult)  # a Plan only with dry_run
    benched = bench(
        [bundle.path for bundle in exported.bundles],
        teacher=teacher,
        student=distilled.path,
        tasks=TASK,
        items=scale.items,
        budgets=str(_BUDGET),
        samples="1",
        rounds=scale.rounds,
        parts="latency,accuracy",
        out=out / "bench",
    )
    return Story(
        rows=rows_of(benched.results),
        traces=written.to_dict(),
        teacher_parameters=fresh.teacher_parameters,
        student_parameters=fresh.parameters,
        training_seconds=distilled.seconds,
        question=QUESTION,
        answers={bundle.target: _ask(bundle.path) for bundle in exported.bundles if "4" in bundle.target},
        folder=str(out),
        seconds=time.monotonic() - started,
    )


def rows_of(results: BenchResults) -> tuple[Row, ...]:
    """The table's rows: teacher, student, artifacts."""
    return tuple(_row(artifact) for artifact in results.artifacts)


def _row(artifact: ArtifactResult) -> Row:
    from statistics import median

    assert artifact.accuracy is not None  # both parts were asked for
    assert artifact.latency is not None
    (cell,) = [cell for cell in artifact.accuracy.cells if cell.task in ("all", TASK)][:1]
    return Row(
        name=artifact.name,
        target=f"{artifact.format}:{artifact.precision}",
        role=artifact.role,
        bytes=artifact.size_bytes,
        accuracy=cell.accuracy,
        of_teacher=_kept(artifact.accuracy.comparisons, "teacher"),
        of_student=_kept(artifact.accuracy.comparisons, "student"),
        tokens_per_second=median(artifact.latency.decode["0"]),
    )


def _kept(comparisons: Sequence[Comparison], role: Role) -> Estimate | None:
    return next((one.retention for one in comparisons if one.role == role), None)


def _ask(bundle: str) -> str:
    """What a device does."""
    from edge_distill_runtime import load

    with load(bundle) as model:
        return model.generate(QUESTION, max_tokens=_BUDGET + 32, temperature=0.0).text


def _clear(out: Path) -> None:
    for name in _MADE:
        shutil.rmtree(out / name, ignore_errors=True)
        for file in out.glob(f"{name}*.jsonl"):
            file.unlink()
