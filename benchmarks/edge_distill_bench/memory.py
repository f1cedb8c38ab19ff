"""Peak memory of a process that loads a bundle and fills its context, against file, key-value cache and 40 MB.

    python -m edge_distill_bench.memory BUNDLE... [--contexts 512 2048] [--rounds 1]

Every number is the peak resident size (VmHWM) of a fresh process. `predicted` is what `load` expects and refuses by;
`before` is what Python and numpy take before anything is loaded.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from edge_distill_bench.measure import check_counts, command_line, print_table, report
from edge_distill_runtime import BackendError
from edge_distill_runtime.bundles.manifest import read_manifest
from edge_distill_runtime.engines.memory import cache_bytes, needed_memory

__all__ = ["MemoryResult", "compare_memory", "main"]

_ALLOWANCE = 40_000_000
_MODEL_FILES = (".gguf", ".onnx", ".onnx.data")


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
    manifest = read_manifest(Path(bundle))
    sizes = {entry.path: entry.size for entry in manifest.files}
    file = sum(size for path, size in sizes.items() if path.endswith(_MODEL_FILES))
    cache = cache_bytes(manifest.format, manifest.kv.bytes_per_token, context)
    found = [_measure(Path(bundle), context, threads) for _ in range(rounds)]
    return MemoryResult(
        bundle=manifest.name,
        format=manifest.format,
        context=context,
        file=file,
        cache=cache,
        predicted=needed_memory(
            manifest.format,
            model_bytes=file,
            cache_bytes=cache,
            tokenizer_bytes=sizes["tokenizer.json"],
            vocab_size=manifest.vocab_size,
        ),
        peak=tuple(one["peak"] for one in found),
        before=tuple(one["before"] for one in found),
    )


def _measure(bundle: Path, context: int, threads: int) -> dict[str, int]:
    command = [sys.executable, "-m", "edge_distill_bench.memory_process", bundle, context, threads]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise BackendError("measure-failed", f"the measured process failed: {done.stderr[-300:]}")
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    if found["tokens"] < context:
        raise BackendError("measure-failed", f"it ended after {found['tokens']} of {context} tokens")
    return found


def _show(result: MemoryResult) -> None:
    numbers = {
        "file": result.file,
        "cache": result.cache,
        "aim": result.aim,
        "peak": median(result.peak),
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
