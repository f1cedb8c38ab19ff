# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy==2.4.6"]
# [tool.edge-distill-peers]
# opens = ["gguf"]
# programs = ["llama-bench", "llama-perplexity"]
# ///
"""llama.cpp's own programs: llama-bench for speed, llama-perplexity for KL; built by build_llama_bench.sh.

llama-bench decodes random tokens and does not sample; it gives neither a time to first token nor answers.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from protocol import OnToken, Peer, line, run


class LlamaBench(Peer):
    """Measured by its programs, not through this class."""

    engine = "llama.cpp"

    def __init__(self, options: argparse.Namespace, context: int) -> None:
        raise NotImplementedError

    def size(self) -> int:
        raise NotImplementedError

    def generate(self, tokens: Sequence[int], count: int, on_token: OnToken) -> None:
        raise NotImplementedError

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        raise NotImplementedError


def speed(peer: type[Peer], options: argparse.Namespace, work: dict[str, Any]) -> dict[str, Any]:
    program = [str(Path(options.programs) / "llama-bench"), "-m", options.model, "-o", "json", "-r", "1"]
    program += ["-t", str(options.threads)]
    depth = str(len(work["decode"]))
    prefill, _ = call([*program, "-p", str(len(work["long"])), "-n", "0"])
    decode, peak = call([*program, "-p", "0", "-n", str(work["new_tokens"]), "-d", depth])
    (prompt,), (generation,) = json.loads(prefill), json.loads(decode)
    return line(
        prefill_tps=[prompt["avg_ts"]],
        decode_tps=[generation["avg_ts"]],
        peak_rss=peak,
        size_bytes=os.path.getsize(options.model),
        versions={"llama.cpp": f"{generation['build_number']} ({generation['build_commit']})"},
        notes=["random tokens, no sampling"],
    )


def quality(peer: type[Peer], options: argparse.Namespace, work: dict[str, Any]) -> dict[str, Any]:
    """KL on the same tokens: llama-perplexity scores the second half of every window of a text."""
    base = Path(options.folder) / "reference.kld"
    text = Path(options.folder) / "text.txt"
    text.write_text(work["text"])
    program = [str(Path(options.programs) / "llama-perplexity"), "-t", str(options.threads)]
    program += ["-f", str(text), "-c", str(work["window"]), "-b", str(work["window"])]
    program += ["--kl-divergence-base", str(base)]
    try:
        call([*program, "-m", work["reference_gguf"]])
        said, _ = call([*program, "-m", options.model, "--kl-divergence"])
    finally:
        base.unlink(missing_ok=True)
    return line(kl=mean_kl(said), size_bytes=os.path.getsize(options.model))


def mean_kl(said: str) -> float:
    """From what llama-perplexity prints."""
    found = re.search(r"Mean\s+KLD:\s+(-?[\d.]+)", said)
    if found is None:
        raise RuntimeError(f"llama-perplexity gave no mean KL: {said[-300:]}")
    return float(found[1])


def call(command: Sequence[str]) -> tuple[str, int]:
    """Its output and its peak resident size in bytes."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sys.stderr, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}: {output[-300:]}")
    return output, usage.ru_maxrss * 1024


if __name__ == "__main__":
    run(LlamaBench, {"speed": speed, "quality": quality})
