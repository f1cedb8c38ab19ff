"""Results as `bench` would have measured them."""

from __future__ import annotations

from typing import Any

from edge_distill_bench.results import (
    ArtifactResult,
    BenchResults,
    FidelityPart,
    FidelityResult,
    LatencyResult,
    Machine,
    MemoryFigures,
    Noise,
    Quantiles,
    Settings,
)

LATENCY = LatencyResult(
    load_s=(0.2, 0.3, 0.25),
    ttft=(0.10, 0.11, 0.12, 0.13, 0.60),
    ttft_tokens=300,
    prefill={"128": (900.0,) * 6, "512": (1000.0, 1100.0, 1200.0, 1300.0, 1400.0, 1500.0)},
    decode={"0": (100.0, 110.0, 120.0, 130.0, 140.0, 150.0), "1000": (80.0,) * 6},
    inter_token=Quantiles(0.008, 0.010, 0.015, 640),
    time_to_answer=(1.0, 2.0, 3.0),
    thread_sweep={"1": (60.0,), "2": (100.0,)},
    included="all",
)
MEMORY = (
    MemoryFigures(512, (200_000_000, 210_000_000), None, (30_000_000,) * 2, 250_000_000, 1000, 1000),
    MemoryFigures(2048, (290_000_000, 299_000_000), (280_000_000,) * 2, (30_000_000,) * 2, 350_000_000, 1, 1),
)
FIDELITY = FidelityResult(
    "student", 64, {"all": FidelityPart(1000, 0.04, 0.5, 0.9, 12.0, (0.03, 0.055))}, texts=8
)


def artifact(**changes: Any) -> ArtifactResult:
    fields: dict[str, Any] = {
        "name": "q4",
        "hash": "00",
        "format": "gguf",
        "precision": "q4_0",
        "role": "artifact",
        "size_bytes": 92_000_000,
        "bits_per_weight": 4.5,
        "latency": LATENCY,
        "memory": MEMORY,
        "fidelity": FIDELITY,
    }
    return ArtifactResult(**(fields | changes))


def results(*artifacts: ArtifactResult) -> BenchResults:
    return BenchResults(
        created="2026-01-01T00:00:00Z",
        command="bench",
        machine=Machine("cpu", 2, None, "linux", {}, 0.1),
        settings=Settings(
            ("sums",), 200, (64,), (1,), 0, 2, 512, 5, (512,), ("latency", "accuracy", "fidelity")
        ),
        noise=Noise("sum", (1.0, 1.0)),
        teacher=None,
        reference=None,
        artifacts=artifacts,
    )
