"""What `bench` writes and `report`, `compare` and the gate read: results.json, strict and versioned.

Raw samples are kept, in the order in which they were taken; means and deviations are derived. Keys of dicts are
strings, as JSON has them.
"""

from __future__ import annotations

import json
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from edge_distill_bench.statistics import Equivalence, Estimate
from edge_distill_runtime.bundles.files import read_bounded, strict_json
from edge_distill_runtime.bundles.typed_json import typed
from edge_distill_runtime.errors import EdgeDistillError, InputError, ResourceError

__all__ = [
    "BUSY",
    "RESULTS_NAME",
    "SCHEMA_VERSION",
    "AccuracyCell",
    "AccuracyResult",
    "ArtifactResult",
    "BenchResults",
    "Comparison",
    "EnergyResult",
    "FidelityPart",
    "FidelityResult",
    "Flips",
    "GateLine",
    "LatencyResult",
    "LengthBin",
    "Machine",
    "MemoryFigures",
    "Noise",
    "Quantiles",
    "Role",
    "Settings",
    "SpeedRatio",
    "mean_and_deviation",
    "read_results",
    "rows_path",
    "write_results",
]

RESULTS_NAME = "results.json"
SCHEMA_VERSION = 1
_MAX_BYTES = 64 << 20

Role = Literal["teacher", "student", "artifact"]
"""The student is the checkpoint in fp32 that the artifacts were made from."""


BUSY = 0.5
"""A load average of one minute above which times are not to be trusted."""


@dataclass(frozen=True)
class Machine:
    """Where it was measured."""

    cpu: str
    cpus: int
    """That the process may use."""
    memory: int | None
    """Bytes that the process may have."""
    system: str
    versions: dict[str, str]
    load: float
    """Load average of the minute before the start."""

    @property
    def is_busy(self) -> bool:
        """Whether something else was running."""
        return self.load > BUSY


@dataclass(frozen=True)
class Settings:
    """What was asked for: results of other settings are not continued."""

    tasks: tuple[str, ...]
    """Specs of `load_problems`."""
    items: int
    """Of all tasks together."""
    budgets: tuple[int, ...]
    """Most tokens of reasoning; one curve point each."""
    samples: tuple[int, ...]
    """1 is greedy, k is the majority of k."""
    seed: int
    threads: int
    max_tokens: int
    """Of one generation."""
    rounds: int
    """Of every latency."""
    contexts: tuple[int, ...]
    """Tokens at which memory is measured."""
    parts: tuple[str, ...]
    """What the last call measured, of latency (with energy), memory, accuracy, fidelity."""
    split: str = "test"
    """Of the problems."""
    items_hash: str = ""
    """SHA-256 of the problems: a file's may change."""


@dataclass(frozen=True)
class Noise:
    """A fixed computation, repeated through the run: what varies here is the machine."""

    what: str
    seconds: tuple[float, ...]

    @property
    def deviation(self) -> float:
        """Standard deviation as a share of the mean."""
        mean, deviation = mean_and_deviation(self.seconds)
        return deviation / mean if mean else 0.0


@dataclass(frozen=True)
class Quantiles:
    """Seconds."""

    p50: float
    p95: float
    p99: float
    count: int
    """Of the values that they were taken from."""


@dataclass(frozen=True)
class LatencyResult:
    """One value a round."""

    load_s: tuple[float, ...]
    """Seconds in a fresh process from `load` to the model."""
    ttft: tuple[float, ...]
    """Seconds from a text of `ttft_tokens` tokens to the first token."""
    ttft_tokens: int
    prefill: dict[str, tuple[float, ...]]
    """Tokens per second by the prompt's length: "128", "512"."""
    decode: dict[str, tuple[float, ...]]
    """Tokens per second of 128 new tokens by the number before them: "0", "1000"."""
    inter_token: Quantiles
    """Between two tokens of the deepest decoding."""
    time_to_answer: tuple[float, ...]
    """Seconds for whole problems, one at a time: prompt, reasoning and answer."""
    thread_sweep: dict[str, tuple[float, ...]]
    """Decode tokens per second at depth 0 by the number of threads."""
    included: str
    """What these times contain."""
    notes: tuple[str, ...] = ()
    """What was left out, and why."""


@dataclass(frozen=True)
class MemoryFigures:
    """Bytes of fresh processes that load the bundle and fill `context`."""

    context: int
    peak_rss: tuple[int, ...]
    peak_pss: tuple[int, ...] | None
    """Highest of samples; None where the system does not say."""
    before: tuple[int, ...]
    """Resident before anything is loaded: Python and numpy."""
    predicted: int
    """What `load` expects and refuses by."""
    kv_bytes: int
    """Key-value cache at this context."""
    file_bytes: int


@dataclass(frozen=True)
class EnergyResult:
    """Of decoding, by RAPL; the whole package counts, idle share included."""

    joules_per_token: tuple[float, ...] | None
    reason: str
    """Why there is none; else which domains were read."""


# -- accuracy and fidelity: filled by accuracy.py and fidelity.py ----------------------------------------------


@dataclass(frozen=True)
class AccuracyCell:
    """One task at one budget with so many samples; with k samples the majority's verdict counts."""

    task: str
    """The spec, or "all"."""
    budget: int
    samples: int
    items: int
    right: int
    wrong: int
    unparsed: int
    cut_off: int
    accuracy: Estimate
    """With Wilson's interval."""
    seconds: float
    """Mean of an item, from its prompt to the end of its last sample, while others were answered beside it."""
    tokens: float
    """Mean of an item, over its samples."""


@dataclass(frozen=True)
class Flips:
    """Against the other model on the same items; "wrong" is everything that is not right."""

    right_to_wrong: int
    wrong_to_right: int
    wrong_to_other: int
    """Both wrong, with different answers or verdicts."""
    same: int


@dataclass(frozen=True)
class Comparison:
    """This model against another on the same items, at one budget with so many samples."""

    against: str
    """The other's name."""
    role: Role
    """The other's."""
    budget: int
    samples: int
    items: int
    retention: Estimate | None
    """Accuracy divided by the other's; None when the other got nothing right."""
    difference: Estimate
    mcnemar_p: float
    equivalence: Equivalence
    flips: Flips


@dataclass(frozen=True)
class LengthBin:
    """Items whose generation took `low` to below `high` tokens."""

    low: int
    high: int
    items: int
    right: int


@dataclass(frozen=True)
class AccuracyResult:
    """Curves are read from the cells: by budget, by samples, by seconds."""

    cells: tuple[AccuracyCell, ...]
    comparisons: tuple[Comparison, ...]
    lengths: tuple[LengthBin, ...]
    """Of the single samples at the largest budget."""
    takes_budgets: bool = True
    """False: no reasoning markers, so it was asked once, and the same answers stand at every budget."""


@dataclass(frozen=True)
class FidelityPart:
    """Tokens of one kind, teacher-forced, against the reference."""

    tokens: int
    mean_kl: float
    """Nats; a lower bound of the exact divergence, see `fidelity`."""
    p99_kl: float
    top1: float
    """Share of tokens whose likeliest next token is the same."""
    first_divergence: float | None
    """Median over the texts of such tokens before the first where that differs; None when it never does."""
    mean_kl_interval: tuple[float, float] | None = None
    """95 %, by a bootstrap over the texts; None for a single text."""


@dataclass(frozen=True)
class FidelityResult:
    """Against the named reference; KL over its `k` likeliest tokens and the rest as one."""

    against: str
    k: int
    parts: dict[str, FidelityPart]
    """"all", "reasoning", "answer", "numbers", "operators", those that occur."""
    texts: int = 0
    tail: float = 0.0
    """Mean probability that the reference gives to tokens beyond its k likeliest."""


# -- the whole -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ArtifactResult:
    """One model."""

    name: str
    """Unique in the results; names its files."""
    hash: str
    """SHA-256 over its bundle's files and all that steers its text."""
    format: str
    precision: str
    role: Role
    size_bytes: int
    """Of the model files."""
    bits_per_weight: float
    latency: LatencyResult | None = None
    memory: tuple[MemoryFigures, ...] = ()
    """One for each context."""
    energy: EnergyResult | None = None
    accuracy: AccuracyResult | None = None
    fidelity: FidelityResult | None = None
    notes: tuple[str, ...] = ()
    """What could not be measured, and why."""
    peer: bool = False
    """Made by another program: a bare file or folder without a manifest."""


@dataclass(frozen=True)
class SpeedRatio:
    """Median over the rounds of one artifact's speed divided by another's, measured in turn."""

    metric: str
    """"decode/0", "prefill/512", "ttft", "load"; above 1 the first is faster."""
    first: str
    second: str
    ratio: Estimate


@dataclass(frozen=True)
class GateLine:
    """One limit and one model."""

    limit: str
    """As it was given: "retention>=0.99"."""
    artifact: str
    value: float | None
    """None when it was not measured, which fails."""
    passed: bool
    text: str
    """What was found and why it passes or fails, as a sentence."""
    interval: tuple[float | None, float | None] | None = None
    """95 %, an end None where too few rounds give it none; None where the value alone decides."""


@dataclass(frozen=True)
class BenchResults:
    """All of a run."""

    created: str
    """ISO 8601, UTC."""
    command: str
    machine: Machine
    settings: Settings
    noise: Noise
    teacher: str | None
    """Name of the artifact that is the teacher."""
    reference: str | None
    """Name of the fp32 student."""
    artifacts: tuple[ArtifactResult, ...]
    ratios: tuple[SpeedRatio, ...] = ()
    gate: tuple[GateLine, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def artifact(self, name: str) -> ArtifactResult:
        """By its name; `InputError` names those that there are."""
        for artifact in self.artifacts:
            if artifact.name == name:
                return artifact
        names = ", ".join(artifact.name for artifact in self.artifacts)
        raise InputError("no-artifact", f"the results hold no {name!r}", f"they hold: {names}")

    def to_dict(self) -> dict[str, Any]:
        """JSON's types, but for tuples."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], where: str = RESULTS_NAME) -> BenchResults:
        """Strict: `InputError` with code "bad-results" names the place of an unknown, missing or wrong value."""
        version = value.get("schema_version") if isinstance(value, Mapping) else None
        if version != SCHEMA_VERSION:
            raise InputError(
                "bad-results",
                f"{where} has schema_version {version!r}, this version reads {SCHEMA_VERSION}",
                "measure again, or use the version that wrote it",
            )
        try:
            results = typed(cls, dict(value), "results")
            _check(results)
        except (ValueError, EdgeDistillError) as exc:
            raise InputError("bad-results", f"{where}: {exc}", "measure again") from exc
        return results


def _check(results: BenchResults) -> None:
    names = [artifact.name for artifact in results.artifacts]
    if len(set(names)) < len(names):
        raise ValueError("two artifacts have the same name")
    for role in (results.teacher, results.reference):
        if role is not None and role not in names:
            raise ValueError(f"there is no artifact {role[:80]!r}")


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; 0 for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def rows_path(folder: Path, name: str) -> Path:
    """Where the rows of a model lie: rows/NAME.jsonl, with what file systems dislike replaced."""
    return folder / "rows" / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}.jsonl"


def read_results(path: Path) -> BenchResults:
    """From results.json, or from the folder that holds it; `InputError` when it is none."""
    file = path / RESULTS_NAME if path.is_dir() else path
    try:
        value = strict_json(read_bounded(file, _MAX_BYTES, allow_links=True))
    except ValueError as exc:
        raise InputError("bad-results", f"{file} is no JSON: {exc}", "measure again") from exc
    return BenchResults.from_dict(value, str(file))


def write_results(folder: Path, results: BenchResults) -> Path:
    """Write results.json whole or not at all; `ResourceError` when the folder cannot be written."""
    file = folder / RESULTS_NAME
    data = json.dumps(results.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
    temporary = folder / f".{RESULTS_NAME}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(data + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except OSError as exc:
        temporary.unlink(missing_ok=True)
        raise ResourceError(
            "unwritable", f"{file} cannot be written: {exc.strerror}", "give another --out"
        ) from exc
    return file
