"""The process that edge_distill_bench.memory measures: load a bundle, fill its context, say the peak."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from edge_distill_runtime import Model, load


def resident_bytes(field: str) -> int:
    """VmRSS or VmHWM, its peak, of this process; Linux alone."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def main(bundle: str, context: int, threads: int) -> None:
    """Half of the context is a prompt, the other half is decoded."""
    before = resident_bytes("VmRSS")
    with load(bundle, context=context, threads=threads) as model:
        # no stop tokens: the context is to be full
        endless = Model(
            replace(model.manifest, stop_ids=()), model.backend, model.tokenizer, model.detokenizer
        )
        text = model.detokenizer.decode((model.encode(_TEXT, raw=True) * context)[: context // 2])
        result = endless.generate(text, raw=True, max_tokens=context, temperature=0.0)
        tokens = result.prompt_tokens + len(result.tokens)
    print(json.dumps({"before": before, "peak": resident_bytes("VmHWM"), "tokens": tokens}))


_TEXT = "Anna bakes 24 rolls every morning. On Monday she sells 17 of them and gives 3 to her neighbour. "

if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
