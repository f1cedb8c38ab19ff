# /// script
# requires-python = ">=3.11"
# dependencies = []
# [tool.edge-distill-peers]
# opens = ["gguf", "onnx"]
# in_project = true
# ///
"""edge-distill's own line, by the functions of its `bench`; runs in the project's environment."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from protocol import OnToken, Peer, answer, line, peak_rss, run


class EdgeDistill(Peer):
    engine = "edge-distill"
    packages = ("edge-distill-runtime",)

    def __init__(self, options: argparse.Namespace, context: int) -> None:
        from edge_distill_runtime import load

        self.model = load(options.model, context=context, threads=options.threads)

    def size(self) -> int:
        raise NotImplementedError  # of the bundle, before it is loaded

    def generate(self, tokens: Sequence[int], count: int, on_token: OnToken) -> None:
        """By the step interface."""
        backend = self.model.backend
        sequence = backend.prefill(list(tokens))
        try:
            token = int(sequence.logits.argmax())
            while not on_token(token) and (count := count - 1):
                token = int(backend.step([sequence], [token])[0].argmax())
        finally:
            backend.release(sequence)

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        raise NotImplementedError  # measure_fidelity reads them


def speed(peer: type[Peer], options: argparse.Namespace, work: dict[str, Any]) -> dict[str, Any]:
    from edge_distill_bench.energy import open_meter
    from edge_distill_bench.latency import Plan, measure_model
    from edge_distill_bench.timers import seconds_of

    plan = Plan(
        threads=options.threads,
        prefill=(len(work["long"]),),
        depths=(len(work["decode"]),),
        new_tokens=work["new_tokens"],
        ttft_tokens=len(work["decode"]),
        ttft_repeats=len(work["first"]),
    )
    loaded: list[EdgeDistill] = []
    load_s = seconds_of(lambda: loaded.append(EdgeDistill(options, work["context"])))
    with loaded[0].model as model:
        speeds = measure_model(model, plan, open_meter())
        peak = peak_rss()
    return line(
        load_s=load_s,
        ttft_s=speeds.ttft,
        prefill_tps=list(speeds.prefill.values()),
        decode_tps=list(speeds.decode.values()),
        peak_rss=peak,
        **about(options.model),
    )


def quality(peer: type[Peer], options: argparse.Namespace, work: dict[str, Any]) -> dict[str, Any]:
    from edge_distill_bench.fidelity import measure_fidelity
    from edge_distill_bench.fidelity_cache import read_reference

    engine = EdgeDistill(options, work["context"])
    with engine.model as model:
        fidelity = measure_fidelity(model, read_reference(Path(work["reference"])))
        answers = [answer(engine, question, work) for question in work["questions"]]
    return line(kl=fidelity.parts["all"].mean_kl, answers=answers, **about(options.model))


def about(path: str) -> dict[str, Any]:
    from edge_distill_runtime.bundles.opening import find

    found = find(Path(path))
    return {"size_bytes": found.model_bytes, "precision": found.manifest.precision.target}


if __name__ == "__main__":
    run(EdgeDistill, {"speed": speed, "quality": quality})
