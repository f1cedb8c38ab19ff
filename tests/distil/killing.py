"""Training runs in processes that are killed: forked from one that has imported everything, so each starts at once."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from edge_distill.distil.distill import distill

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "edge_distill.distil.expert_iteration",
        "edge_distill.distil.following",
        "edge_distill.distil.modes",
        "edge_distill_export.checkpoint",
        "transformers.models.llama.modeling_llama",
        "transformers.generation.utils",
    ]
)


def kill_when(recipe: Path, reached: Callable[[], bool]) -> None:
    """Run `distill` on a recipe in another process, and kill it when `reached` is true, before its end."""
    process = start(recipe)
    deadline = time.monotonic() + 120
    try:
        while not reached():
            assert process.is_alive(), "the run ended before it was killed"
            assert time.monotonic() < deadline, "the run did not come that far"
            time.sleep(0.005)
    finally:
        process.kill()
        process.join()
        process.close()


def start(recipe: Path) -> BaseProcess:
    process = _CONTEXT.Process(target=distill, args=(recipe,))
    process.start()
    return process


def has_step(metrics: Path, step: int) -> bool:
    """Whether a run has logged a step."""
    return metrics.exists() and f'"step": {step},' in metrics.read_text("utf-8")
