"""A fresh process that loads a bundle and fills its context, or only loads it, and says what that took."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from edge_distill_runtime import load


def resident_bytes(field: str) -> int:
    """VmRSS or VmHWM, its peak, of this process; Linux alone."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def fill(bundle: str, context: int, threads: int) -> dict[str, int]:
    """Half of the context is a prompt, the other half is decoded; bytes, and the tokens that there were."""
    from edge_distill_bench.measure import endless, text_of  # after the first reading
    from edge_distill_bench.prompts import TRACE

    before = resident_bytes("VmRSS")
    with load(bundle, context=context, threads=threads) as model:
        text = text_of(model, TRACE, context // 2)
        # no stop tokens: the context is to be full
        result = endless(model).generate(text, raw=True, max_tokens=context, temperature=0.0)
        tokens = result.prompt_tokens + len(result.tokens)
    return {"before": before, "peak": resident_bytes("VmHWM"), "tokens": tokens}


def load_only(bundle: str, context: int, threads: int) -> dict[str, float]:
    """Seconds of `load`: the engine's import, the files' hashes, the weights."""
    start = time.perf_counter()
    with load(bundle, context=context, threads=threads):
        return {"load_seconds": time.perf_counter() - start}


if __name__ == "__main__":
    work = {"fill": fill, "load": load_only}[sys.argv[1]]
    print(json.dumps(work(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
