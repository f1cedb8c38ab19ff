"""Which targets of an export are repaired: uniform int4 and every mix of a budget, each once for both formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edge_distill_export.artifact import Source
from edge_distill_export.grid import QuantizedTensor
from edge_distill_export.repair import Repaired, Stages, repair_tensors
from edge_distill_export.repair_text import RepairText
from edge_distill_export.targets import Budget, Target
from edge_distill_runtime.errors import InputError


def check_repair(steps: int, targets: Sequence[Target], method: str) -> None:
    """Raise `InputError` where there is nothing to repair, or not by so many steps."""
    if steps < 0:
        raise InputError("bad-repair", f"--repair is {steps}", "give a number of steps, such as 160")
    if method != "gptq":
        raise InputError(
            "repair-without-gptq", f"--repair goes on from gptq, the method is {method}", "use --method gptq"
        )
    if not any(map(_is_repaired, targets)):
        raise InputError(
            "nothing-to-repair",
            f"none of {', '.join(map(str, targets))} has 4-bit integers of the shared grid",
            "repair gguf:q4_0, onnx:int4, gguf:auto or onnx:auto",
        )


def _is_repaired(target: Target) -> bool:
    return target.bits == 4 or target.budget is not None


def repaired_targets(
    source: Source,
    tensors: Mapping[Target, Mapping[str, QuantizedTensor]],
    text: RepairText,
    steps: int,
    stages: Stages,
    out: Path,
) -> dict[Target, Repaired]:
    """What the 4-bit targets among `tensors` have learned; those that share their tensors share this too."""
    done: dict[Budget | None, Repaired] = {}
    found: dict[Target, Repaired] = {}
    checkpoint = source.checkpoint
    for target in filter(_is_repaired, tensors):
        if target.budget not in done:
            done[target.budget] = repair_tensors(
                checkpoint.model,
                tensors[target],
                text,
                checkpoint.tokenizer,
                steps=steps,
                stages=stages,
                folder=out,
            )
        found[target] = done[target.budget]
    return found
