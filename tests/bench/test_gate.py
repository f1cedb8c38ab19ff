"""Gates: read, judged by hand, and simulated: how often an equal model fails, and a worse one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from edge_distill_bench.accuracy import measure_accuracy
from edge_distill_bench.gate import check_gate, check_limits, evaluate_gate, parse_gate
from edge_distill_bench.gate_metrics import METRICS
from edge_distill_bench.results import AccuracyResult, BenchResults, GateLine
from edge_distill_runtime import InputError
from edge_distill_runtime.errors import GateError
from tests.bench.answers import answered, problems
from tests.bench.measured import FIDELITY, LATENCY, artifact, results

RUNS = 200


def test_limits_are_read() -> None:
    limits = parse_gate("retention>=0.99, kl<=0.05,ttft_p95 <= 500ms,rss<=300MB")
    assert [(limit.metric, limit.value, limit.is_floor) for limit in limits] == [
        ("retention", 0.99, True),
        ("kl", 0.05, False),
        ("ttft_p95", 0.5, False),
        ("rss", 300_000_000, False),
    ]
    assert limits[2].text == "ttft_p95 <= 500ms"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("ttft_p95<=0.5", 0.5),
        ("ttft_p95<=0.5s", 0.5),
        ("retention>=99%", 0.99),
        ("rss<=300MiB", 314_572_800),
        ("rss<=0.3GiB", 322_122_547.2),
        ("size<=92000KB", 92e6),
        ("size<=90000000B", 9e7),
        ("kl<=5e-2", 0.05),
        ("decode>=100", 100),
    ],
)
def test_units(text: str, value: float) -> None:
    (limit,) = parse_gate(text)
    assert limit.value == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no limit"),
        ("retention", "is no limit"),
        ("retention>=0.99,", "is no limit"),
        ("retention>0.99", "is no limit"),
        ("kl<=-1", "is no limit"),
        ("kl<=inf", "is no limit"),
        ("kl<=1.2.3", "is no number"),
        ("retension>=0.99", "did you mean retention"),
        ("speed>=1", "it knows retention, accuracy, kl"),
        ("retention<=0.99", "more retention is better"),
        ("rss>=1MB", "less rss is better"),
        ("rss<=300", "has no unit"),
        ("rss<=300mb", "has the unit 'mb'"),
        ("kl<=5ms", "kl takes: none"),
        ("ttft_p95<=5%", "takes: s, ms"),
        ("kl<=0.1,kl<=0.2", "limits kl twice"),
        ("x" * 100_000, "is no limit"),
    ],
)
def test_bad_gates(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_gate(text)
    assert caught.value.code == "bad-gate"


def judge(gate: str, measured: BenchResults | None = None) -> tuple[GateLine, ...]:
    return evaluate_gate(measured or results(artifact()), parse_gate(gate))


@pytest.mark.parametrize(
    ("gate", "value", "passed", "verdict"),
    [
        # the interval of KL is 0.03 to 0.055
        ("kl<=0.06", 0.04, True, "kl<=0.06 passes"),
        ("kl<=0.05", 0.04, True, "passes, but is not proven"),
        ("kl<=0.035", 0.04, True, "passes, but is not proven"),
        ("kl<=0.02", 0.04, False, "fails"),
        # no interval
        ("kl_p99<=0.5", 0.5, True, "passes"),
        ("kl_p99<=0.49", 0.5, False, "fails"),
        ("top1>=91%", 0.9, False, "fails"),
        # the lower end is the fourth of five rounds
        ("ttft_p95<=0.5", 0.60, True, "passes, but is not proven"),
        ("ttft_p95<=0.12", 0.60, False, "fails"),
        ("ttft_p50<=115ms", 0.12, False, "fails"),  # five rounds give a median no interval
        ("load<=0.25", 0.25, True, "passes"),
        # six rounds do
        ("decode>=100", 125.0, True, "passes"),
        ("decode>=140", 125.0, True, "passes, but is not proven"),
        ("decode>=151", 125.0, False, "fails"),
        ("prefill>=1501", 1250.0, False, "fails"),
        ("inter_token_p95<=10ms", 0.010, True, "passes"),
        ("answer_p50<=1.9", 2.0, False, "fails"),
        # the highest round at the largest context
        ("rss<=300MB", 299e6, True, "passes"),
        ("rss<=285MiB", 299e6, False, "fails"),
        ("pss<=280MB", 280e6, True, "passes"),
        ("size<=91MB", 92e6, False, "fails"),
        ("bits<=4.5", 4.5, True, "passes"),
    ],
)
def test_lines_by_hand(gate: str, value: float, passed: bool, verdict: str) -> None:
    (line,) = judge(gate)
    assert (line.artifact, line.limit, line.passed) == ("q4", gate, passed)
    assert line.value == pytest.approx(value)
    assert line.text.endswith(verdict)


def test_a_line_says_what_was_found() -> None:
    (line,) = judge("kl<=0.02")
    assert line.text == "kl is 0.04 [0.03, 0.055] (against student on 1000 tokens): kl<=0.02 fails"
    assert line.interval == (0.03, 0.055)
    (line,) = judge("ttft_p95<=120ms")
    assert line.text == "ttft_p95 is 0.600 s [0.130 s, ?] (5 rounds): ttft_p95<=120ms fails"


def test_what_was_not_measured_fails() -> None:
    empty = artifact(latency=None, memory=(), fidelity=None)
    for name, metric in METRICS.items():
        if name in ("size", "bits"):
            continue
        unit = "MB" if metric.unit == "bytes" else ""
        (line,) = judge(f"{name}{'>=' if metric.higher_is_better else '<='}0{unit}", results(empty))
        assert (line.passed, line.value) == (False, None)
        assert "has no value" in line.text


def test_what_will_not_be_measured_is_told_before() -> None:
    empty = results(artifact(latency=None, memory=(), fidelity=None))
    compared = replace(empty, reference="student")
    accepted = {
        name: metric
        for name, metric in METRICS.items()
        if name not in ("rss", "pss")  # made without the part memory
    }
    gate = ",".join(f"{name}{'>=' if m.higher_is_better else '<='}1" for name, m in accepted.items())
    gate = gate.replace("size<=1", "size<=1MB")
    check_limits(compared, parse_gate(gate))
    for name in ("retention", "kl", "kl_p99", "top1"):
        with pytest.raises(InputError, match="give --teacher or --student"):
            check_limits(empty, parse_gate(f"{name}{'>=' if METRICS[name].higher_is_better else '<='}0.5"))
    with pytest.raises(InputError, match="add memory to --parts"):
        check_limits(compared, parse_gate("rss<=1MB"))
    check_limits(results(artifact()), parse_gate("kl<=0.1,rss<=1MB"))  # an earlier run measured them


def test_every_artifact_is_judged_and_nothing_else() -> None:
    other = artifact(name="q8", fidelity=replace(FIDELITY, parts={}))
    student = artifact(name="fp32", role="student")
    lines = judge("kl<=0.06,size<=1GB", results(student, artifact(), other))
    assert [(line.artifact, line.passed) for line in lines] == [
        ("q4", True),
        ("q4", True),
        ("q8", False),
        ("q8", True),
    ]
    with pytest.raises(InputError, match="no artifact to judge"):
        judge("kl<=0.06", results(student))


def test_a_gate_that_fails_has_an_exit_code_of_its_own() -> None:
    check_gate(judge("kl<=0.06,rss<=300MB"))
    with pytest.raises(GateError, match=r"q4: kl is 0.04 .* kl<=0.02 fails, and 1 more") as caught:
        check_gate(judge("kl<=0.02,rss<=300MB,size<=1MB"))
    assert caught.value.exit_code == 8
    assert caught.value.data == {"failed": [["q4", "kl<=0.02", 0.04], ["q4", "size<=1MB", 92_000_000]]}


# -- simulated -------------------------------------------------------------------------------------------------


def compared(rng: Any, items: int, cells: tuple[float, float, float, float]) -> AccuracyResult:
    """A run in which both, only the artifact, only the teacher or neither is right with these chances."""
    drawn = rng.choice(4, size=items, p=cells)
    ours = answered(["42" if cell in (0, 1) else "41" for cell in drawn])
    teacher = answered(["42" if cell in (0, 2) else "40" for cell in drawn], name="t", role="teacher")
    tasks = {"sums": problems(items)}
    return measure_accuracy(ours, tasks, budgets=(64,), samples=(1,), against=[teacher])


def failures(
    cells: tuple[float, float, float, float],
    gate: str = "retention>=0.99",
    items: int = 200,
    runs: int = RUNS,
) -> tuple[int, int]:
    """In how many runs the line fails, and in how many its value alone would."""
    rng = np.random.default_rng(20)
    (limit,) = parse_gate(gate)
    lines = [
        evaluate_gate(results(artifact(accuracy=compared(rng, items, cells))), [limit])[0]
        for _ in range(runs)
    ]
    by_value = sum(line.value is not None and line.value < limit.value for line in lines)
    return sum(not line.passed for line in lines), by_value


def most_false_alarms(rate: float) -> int:
    """What a gate of this rate exceeds in one of 1,000 tests."""
    return int(stats.binom.ppf(0.999, RUNS, rate))


@pytest.mark.parametrize(
    ("items", "disagree"),
    [
        (200, 0.05),  # a good quantization
        (200, 0.20),  # sampled answers
        (50, 0.10),
    ],
)
def test_an_equal_artifact_passes(items: int, disagree: float) -> None:
    """Both are right in 70 %; by the value alone a third of these runs and more would fail."""
    half = disagree / 2
    cells = (0.7 - half, half, half, 0.3 - half)
    failed, by_value = failures(cells, items=items)
    assert failed <= most_false_alarms(0.025)
    assert by_value > 50


def test_an_artifact_at_the_limit_fails_at_the_nominal_rate() -> None:
    # retention 0.63 / 0.70 = 0.9
    assert failures((0.60, 0.03, 0.10, 0.27), "retention>=0.9")[0] <= most_false_alarms(0.025)


def test_a_worse_artifact_fails() -> None:
    assert failures((0.42, 0.03, 0.28, 0.27), runs=50)[0] == 50  # retention 0.64
    assert failures((0.56, 0.02, 0.14, 0.28), runs=50)[0] > 45  # retention 0.83


@pytest.mark.parametrize("rounds", [5, 20, 100])
def test_latency_at_the_limit_fails_at_the_nominal_rate(rounds: int) -> None:
    rng = np.random.default_rng(22)
    limit = float(stats.lognorm.ppf(0.95, 0.3))
    limits = parse_gate(f"ttft_p95<={limit:.12f}")
    failed = slower = 0
    for _ in range(RUNS):
        times = rng.lognormal(0, 0.3, rounds)
        for factor in (1, 3):
            latency = replace(LATENCY, ttft=tuple(map(float, factor * times)))
            (line,) = evaluate_gate(results(artifact(latency=latency)), limits)
            failed += factor == 1 and not line.passed
            slower += factor == 3 and not line.passed
    assert failed <= most_false_alarms(0.025)
    assert slower > 0.95 * RUNS
