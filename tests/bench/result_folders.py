"""A results folder as `bench` writes it: simulated answers of six models, and every number that follows from them.

    python -m tests.bench.result_folders FOLDER

The answers, speeds and sizes are drawn around those of a 135M student; they are no measurement.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from edge_distill_bench.answering import Row
from edge_distill_bench.items import write_tasks
from edge_distill_bench.lines import append_lines
from edge_distill_bench.problem import Problem
from edge_distill_bench.results import (
    AccuracyCell,
    AccuracyResult,
    ArtifactResult,
    BenchResults,
    Comparison,
    EnergyResult,
    FidelityPart,
    FidelityResult,
    Flips,
    GateLine,
    LatencyResult,
    LengthBin,
    Machine,
    MemoryFigures,
    Noise,
    Quantiles,
    Role,
    Settings,
    SpeedRatio,
    rows_path,
    write_results,
)
from edge_distill_bench.statistics import (
    Estimate,
    Pairs,
    difference,
    equivalence,
    mcnemar,
    retention,
    wilson,
)

ITEMS = 200
BUDGETS = (0, 64, 256)
SAMPLES = (1, 8)
REFERENCE = "student-fp32"


@dataclass(frozen=True)
class Model:
    """What is drawn around."""

    name: str
    format: str
    precision: str
    role: Role
    megabytes: float
    bits: float
    skill: float
    """Share of right answers at the largest budget."""
    loss: float
    """Share of the student's answers that it changes."""
    decode: float
    """Tokens per second."""
    kl: float


MODELS = (
    Model("teacher-360m", "gguf", "q8_0", "teacher", 386.4, 8.5, 0.78, 0.30, 41, 0.31),
    Model(REFERENCE, "onnx", "fp32", "student", 538.1, 32.0, 0.62, 0.0, 36, 0.0),
    Model("gguf:q8_0", "gguf", "q8_0", "artifact", 144.8, 8.5, 0.62, 0.015, 92, 0.0008),
    Model("gguf:q4_k_m", "gguf", "q4_k_m", "artifact", 105.5, 6.2, 0.60, 0.05, 104, 0.0513),
    Model("gguf:q4_0", "gguf", "q4_0", "artifact", 91.7, 5.4, 0.60, 0.04, 128, 0.0491),
    Model("onnx:int8", "onnx", "int8", "artifact", 168.2, 9.0, 0.62, 0.02, 84, 0.0009),
    Model("onnx:int4", "onnx", "int4", "artifact", 112.9, 5.6, 0.52, 0.13, 117, 0.0489),
)


def write_folder(folder: Path, *, items: int = ITEMS, seed: int = 3, slower: float = 1.0) -> BenchResults:
    """Rows, problems and results; `slower` divides the artifacts' speeds, as a regression would."""
    draw = random.Random(seed)
    problems = [_problem(draw, number) for number in range(items)]
    folder.mkdir(parents=True, exist_ok=True)
    specs = dict.fromkeys(problem.task for problem in problems)
    write_tasks(folder, {spec: [one.as_problem() for one in problems if one.task == spec] for spec in specs})
    (folder / "rows").mkdir()
    base = {
        (problem.number, budget, samples): draw.random()
        for problem in problems
        for budget in BUDGETS
        for samples in SAMPLES
    }
    rows = {model.name: _rows(model, problems, base) for model in MODELS}
    for name, found in rows.items():
        append_lines(rows_path(folder, name), map(asdict, found))
    results = BenchResults(
        created="2026-11-24T11:40:00+00:00",
        command="edge-distill bench student-*/ --student student --teacher teacher-360m.gguf \\\n"
        "  --items 200 --budgets 0,64,256 --samples 1,8 --gate 'retention>=0.95,kl<=0.05' --out bench",
        machine=Machine(
            cpu="Simulated CPU @ 2.60GHz",
            cpus=2,
            memory=8_000_000_000,
            system="Linux-6.1-x86_64",
            versions={
                "python": "3.11.2",
                "numpy": "2.4.6",
                "onnxruntime": "1.32.0",
                "llama-cpp-python": "0.3.36",
            },
            load=0.12,
        ),
        settings=Settings(
            tasks=("task:chain_sum", "task:basic_arithmetic"),
            items=items,
            budgets=BUDGETS,
            samples=SAMPLES,
            seed=0,
            threads=2,
            max_tokens=512,
            rounds=5,
            contexts=(512, 2048),
            parts=("latency", "memory", "energy", "accuracy", "fidelity"),
        ),
        noise=Noise("a matrix product", tuple(0.2 * (1 + draw.gauss(0, 0.011)) for _ in range(24))),
        teacher="teacher-360m",
        reference=REFERENCE,
        artifacts=tuple(_artifact(model, rows, draw, slower) for model in MODELS),
        ratios=(
            SpeedRatio("decode/0", "gguf:q4_0", REFERENCE, Estimate(3.52, 3.41, 3.60)),
            SpeedRatio("decode/0", "gguf:q4_0", "onnx:int4", Estimate(1.09, 1.07, 1.12)),
        ),
    )
    results = BenchResults(**{**results.__dict__, "gate": _gate(results)})
    write_results(folder, results)
    return results


# -- problems and answers ------------------------------------------------------------------------------------


class _Problem:
    def __init__(self, number: int, each: int, trays: int, sold: int) -> None:
        self.number = number
        self.id = f"rolls-{number:03d}"
        self.each, self.trays, self.sold = each, trays, sold
        self.problem = (
            f"A baker fills {trays} trays with {each} rolls each and sells {sold} of them. How many are left?"
        )
        self.answer = str(each * trays - sold)
        self.task = "task:chain_sum" if number % 2 else "task:basic_arithmetic"

    def as_problem(self) -> Problem:
        return Problem(self.id, self.task, self.problem, self.answer)


def _problem(draw: random.Random, number: int) -> _Problem:
    each, trays = draw.randint(12, 48), draw.randint(3, 19)
    return _Problem(number, each, trays, draw.randint(5, each * trays - 1))


def _says(problem: _Problem, budget: int, error: int, wordy: bool) -> str:
    """Reasoning of the budget's length; `error` is added to the product, as a slip would."""
    whole = problem.each * problem.trays
    tens, ones = divmod(problem.each, 10)
    steps = [
        f"The baker fills {problem.trays} trays with {problem.each} rolls each.",
        f"First I find how many rolls there are: {problem.trays} × {problem.each}.",
        f"{problem.trays} × {tens * 10} = {problem.trays * tens * 10} and {problem.trays} × {ones} = "
        f"{problem.trays * ones + error}, together {whole + error}.",
        f"Then {problem.sold} are sold: {whole + error} - {problem.sold} = {whole + error - problem.sold}.",
    ]
    if wordy:
        steps.insert(2, "Let me split this into tens and ones so that each product is easy.")
    if budget >= 256:
        steps.append(
            f"Let me check: {whole + error - problem.sold} + {problem.sold} = {whole + error}, as before."
        )
    thought = "" if budget == 0 else "<think>\n" + "\n".join(steps) + "\n</think>\n"
    return f"{thought}There are \\boxed{{{whole + error - problem.sold}}} rolls left."


def _rows(model: Model, problems: list[_Problem], base: dict[tuple[int, int, int], float]) -> list[Row]:
    draw = random.Random(model.name)
    rows = []
    for problem in problems:
        for budget in BUDGETS:
            for samples in SAMPLES:
                level = base[problem.number, budget, samples]
                if draw.random() < model.loss:
                    level = draw.random()
                factor = {0: 0.42, 64: 0.84, 256: 1.0}[budget] * (1.1 if samples > 1 else 1.0)
                right = level < model.skill * factor
                cut = not right and draw.random() < 0.08
                unparsed = not right and not cut and draw.random() < 0.07
                verdict = "right" if right else "cut off" if cut else "unparsed" if unparsed else "wrong"
                error = 0 if right else random.Random(problem.number).choice((-20, -10, -2, 2, 10))
                text = _says(problem, budget, error, wordy=draw.random() < 0.25)
                tokens = round(len(text) / 2.6) + draw.randint(0, 40)
                for sample in range(samples):
                    rows.append(
                        Row(
                            key=f"{model.name}/{budget}/{samples}",
                            id=problem.id,
                            budget=budget,
                            samples=samples,
                            sample=sample,
                            text=text[: len(text) * 2 // 3] if cut else text,
                            answer="" if cut or unparsed else str(int(problem.answer) + error),
                            verdict=verdict,  # type: ignore[arg-type]
                            reason="",
                            finish_reason="length" if cut else "stop",
                            tokens=tokens,
                            reasoning_tokens=max(0, tokens - 14) if budget else 0,
                            prompt_tokens=48,
                            prompt_seconds=0.18,
                            seconds=tokens / model.decode * 2.4,
                        )
                    )
    return rows


# -- what follows from them ----------------------------------------------------------------------------------


def _first(rows: list[Row], budget: int, samples: int) -> dict[str, Row]:
    return {row.id: row for row in rows if (row.budget, row.samples, row.sample) == (budget, samples, 0)}


def _cell(rows: list[Row], budget: int, samples: int) -> AccuracyCell:
    found = list(_first(rows, budget, samples).values())
    counts = {
        verdict: sum(row.verdict == verdict for row in found)
        for verdict in ("right", "wrong", "unparsed", "cut off")
    }
    return AccuracyCell(
        task="all",
        budget=budget,
        samples=samples,
        items=len(found),
        right=counts["right"],
        wrong=counts["wrong"],
        unparsed=counts["unparsed"],
        cut_off=counts["cut off"],
        accuracy=wilson(counts["right"], len(found)),
        seconds=sum(row.seconds for row in found) / len(found) * (1 + 0.5 * (samples - 1)),
        tokens=sum(row.tokens for row in found) / len(found),
    )


def _comparison(
    rows: list[Row], other: list[Row], name: str, role: Role, budget: int, samples: int
) -> Comparison:
    one, two = _first(rows, budget, samples), _first(other, budget, samples)
    pairs = Pairs.of(
        [one[key].verdict == "right" for key in one], [two[key].verdict == "right" for key in one]
    )
    changed = sum(
        one[key].verdict != "right" != two[key].verdict and one[key].answer != two[key].answer for key in one
    )
    return Comparison(
        against=name,
        role=role,
        budget=budget,
        samples=samples,
        items=len(one),
        retention=retention(pairs, resamples=2000) if pairs.second_right else None,
        difference=difference(pairs),
        mcnemar_p=mcnemar(pairs),
        equivalence=equivalence(pairs, 0.05),
        flips=Flips(pairs.only_second, pairs.only_first, changed, pairs.both + pairs.neither - changed),
    )


def _accuracy(model: Model, rows: dict[str, list[Row]]) -> AccuracyResult:
    own = rows[model.name]
    others = [(one.name, one.role) for one in MODELS if one.role != "artifact" and one.name != model.name]
    if model.role == "teacher":
        others = []
    grid = [(budget, samples) for budget in BUDGETS for samples in SAMPLES]
    longest = list(_first(own, BUDGETS[-1], 1).values())
    edges = (0, 140, 150, 160, 300)
    lengths = [
        LengthBin(low, high, len(fit), sum(row.verdict == "right" for row in fit))
        for low, high in itertools.pairwise(edges)
        for fit in [[row for row in longest if low <= row.tokens < high]]
    ]
    return AccuracyResult(
        cells=tuple(_cell(own, budget, samples) for budget, samples in grid),
        comparisons=tuple(
            _comparison(own, rows[name], name, role, budget, samples)
            for name, role in others
            for budget, samples in grid
        ),
        lengths=tuple(lengths),
    )


def _artifact(model: Model, rows: dict[str, list[Row]], draw: random.Random, slower: float) -> ArtifactResult:
    def rounds(value: float) -> tuple[float, ...]:
        return tuple(value * (1 + draw.gauss(0, 0.02)) for _ in range(5))

    speed = model.decode / (slower if model.role == "artifact" else 1)
    size = round(model.megabytes * 1e6)
    fidelity = None
    if model.role == "artifact":
        shares = {"all": 1.0, "reasoning": 1.04, "answer": 0.7, "numbers": 0.55, "operators": 0.4}
        parts = {
            name: FidelityPart(
                tokens=tokens,
                mean_kl=model.kl * share,
                p99_kl=model.kl * share * 11,
                top1=max(0.5, 1 - 1.8 * model.kl * share),
                first_divergence=None if model.kl * share < 0.0005 else 3 / (model.kl * share),
                mean_kl_interval=(model.kl * share * 0.9, model.kl * share * 1.12),
            )
            for (name, share), tokens in zip(shares.items(), (2348, 1990, 358, 612, 240), strict=True)
        }
        fidelity = FidelityResult(REFERENCE, 64, parts, texts=24, tail=0.004)
    return ArtifactResult(
        name=model.name,
        hash=hashlib.sha256(model.name.encode()).hexdigest(),
        format=model.format,
        precision=model.precision,
        role=model.role,
        size_bytes=size,
        bits_per_weight=model.bits,
        latency=LatencyResult(
            load_s=rounds(size / 6e8),
            ttft=rounds(0.9 * 36 / speed),
            ttft_tokens=128,
            prefill={"128": rounds(3.1 * speed), "512": rounds(3.4 * speed)},
            decode={"0": rounds(speed), "1000": rounds(0.78 * speed)},
            inter_token=Quantiles(1 / speed, 1.09 / speed, 1.42 / speed, 635),
            time_to_answer=tuple(abs(draw.gauss(190, 30)) / speed + 0.3 for _ in range(20)),
            thread_sweep={"1": rounds(0.61 * speed), "2": rounds(speed)},
            included="Tokenization, sampling and detokenization are included; loading is not.",
        ),
        memory=tuple(
            MemoryFigures(
                context=context,
                peak_rss=tuple(round(size + 46_080 * context + draw.uniform(34e6, 36e6)) for _ in range(3)),
                peak_pss=tuple(round(size + 46_080 * context + draw.uniform(31e6, 33e6)) for _ in range(3)),
                before=(31_000_000,),
                predicted=size + 46_080 * context + 40_000_000,
                kv_bytes=46_080 * context,
                file_bytes=size,
            )
            for context in (512, 2048)
        ),
        energy=EnergyResult(None, "not measured: RAPL cannot be read here"),
        accuracy=_accuracy(model, rows),
        fidelity=fidelity,
    )


def _gate(results: BenchResults) -> tuple[GateLine, ...]:
    lines = []
    for artifact in results.artifacts:
        if artifact.role != "artifact" or not artifact.accuracy or not artifact.fidelity:
            continue
        kept = next(
            one.retention
            for one in artifact.accuracy.comparisons
            if (one.role, one.budget, one.samples) == ("student", BUDGETS[-1], 1)
        )
        assert kept
        lines.append(
            GateLine(
                "retention>=0.95",
                artifact.name,
                kept.value,
                kept.high >= 0.95,
                f"retention is {kept.value:.3f} [{kept.low:.3f}, {kept.high:.3f}]",
                (kept.low, kept.high),
            )
        )
        kl = artifact.fidelity.parts["all"].mean_kl
        lines.append(GateLine("kl<=0.05", artifact.name, kl, kl <= 0.05, f"mean KL is {kl:.4f}"))
    return tuple(lines)


if __name__ == "__main__":
    written = write_folder(Path(sys.argv[1]))
    print(json.dumps([artifact.name for artifact in written.artifacts]))
