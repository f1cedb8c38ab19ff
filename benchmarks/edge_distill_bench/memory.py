"""Peak memory of a process that loads a bundle and fills its context, against file, key-value cache and 40 MB.

    python -m edge_distill_bench.memory BUNDLE... [--contexts 512 2048] [--rounds 1]

`peak` is the peak resident size (VmHWM) of a fresh process, `pss` the highest proportional size that was sampled,
`predicted` what `load` expects and refuses by, `before` what Python and numpy take before anything is loaded.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from edge_distill_bench.measure import check_counts, command_line, print_table, report
from edge_distill_bench.processes import run_module, watch
from edge_distill_bench.results import MemoryFigures
from edge_distill_runtime import BackendError
from edge_distill_runtime.bundles.opening import find
from edge_distill_runtime.engines.kv_cache import default_token_bytes
from edge_distill_runtime.engines.memory import cache_bytes, needed_memory

__all__ = ["MemoryResult", "compare_memory", "main"]

_ALLOWANCE = 40_000_000


@dataclass(frozen=True)
class MemoryResult:
    """Bytes; `peak` and `before` of every round."""

    bundle: str
    format: str
    context: int
    file: int
    cache: int
    predicted: int
    peak: tuple[int, ...]
    before: tuple[int, ...]
    pss: tuple[int, ...] | None
    """None where the system does not say."""

    @property
    def figures(self) -> MemoryFigures:
        """The same for results.json."""
        return MemoryFigures(
            context=self.context,
            peak_rss=self.peak,
            peak_pss=self.pss,
            before=self.before,
            predicted=self.predicted,
            kv_bytes=self.cache,
            file_bytes=self.file,
        )

    @property
    def aim(self) -> int:
        return self.file + self.cache + _ALLOWANCE

    @property
    def summary(self) -> dict[str, Any]:
        peak = median(self.peak)
        return {
            "aim": self.aim,
            "ratio": peak / self.aim,
            "ratio_above_before": (peak - median(self.before)) / self.aim,
            "ratio_to_predicted": peak / self.predicted,
        }


def compare_memory(bundle: Path | str, *, context: int, rounds: int = 1, threads: int) -> MemoryResult:
    """Load and fill a context of so many tokens in fresh processes."""
    check_counts(context=context, rounds=rounds)
    model = find(Path(bundle))
    manifest = model.manifest
    cache = cache_bytes(manifest.format, default_token_bytes(manifest), context)
    found = [_measure(Path(bundle), context, threads) for _ in range(rounds)]
    seen = [pss for _, pss in found if pss is not None]
    return MemoryResult(
        bundle=manifest.name,
        format=manifest.format,
        context=context,
        file=model.model_bytes,
        cache=cache,
        predicted=needed_memory(
            manifest.format,
            model_bytes=model.model_bytes,
            cache_bytes=cache,
            tokenizer_bytes=model.tokenizer_bytes,
            vocab_size=manifest.vocab_size,
        ),
        peak=tuple(one["peak"] for one, _ in found),
        before=tuple(one["before"] for one, _ in found),
        pss=tuple(seen) if len(seen) == rounds else None,
    )


def _measure(bundle: Path, context: int, threads: int) -> tuple[dict[str, int], int | None]:
    """What the process said, and its highest proportional size."""
    watched = watch(run_module("edge_distill_bench.memory_process", "fill", bundle, context, threads))
    found: dict[str, int] = json.loads(watched.output.splitlines()[-1])
    if found["tokens"] < context:
        raise BackendError("measure-failed", f"it ended after {found['tokens']} of {context} tokens")
    return found, watched.peak_pss


def _show(result: MemoryResult) -> None:
    numbers = {
        "file": result.file,
        "cache": result.cache,
        "aim": result.aim,
        "peak": median(result.peak),
        **({"pss": median(result.pss)} if result.pss else {}),
        "before": median(result.before),
        "predicted": result.predicted,
    }
    print_table(
        f"{result.bundle} {result.format}, context {result.context}: MB of 1,000,000 bytes",
        ["", *numbers],
        [
            ["MB", *(value / 1e6 for value in numbers.values())],
            ["share of aim", *(value / result.aim for value in numbers.values())],
        ],
    )


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `python -m edge_distill_bench.memory`."""
    parser = command_line("memory", __doc__, rounds=1)
    parser.add_argument(
        "--contexts", type=int, nargs="+", default=[512, 2048], help="tokens of prompt and answer (512 2048)"
    )
    options = parser.parse_args(arguments)

    def measure() -> list[MemoryResult]:
        return [
            compare_memory(bundle, context=context, rounds=options.rounds, threads=options.threads)
            for bundle in options.bundles
            for context in options.contexts
        ]

    return report("memory", options, measure, _show)


if __name__ == "__main__":
    sys.exit(main())
