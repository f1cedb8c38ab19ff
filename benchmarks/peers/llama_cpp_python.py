# /// script
# requires-python = ">=3.11"
# dependencies = ["llama-cpp-python==0.3.36", "numpy==2.4.6"]
# [tool.edge-distill-peers]
# opens = ["gguf"]
# ///
"""llama-cpp-python's Llama.generate."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

import numpy as np
from protocol import OnToken, Peer, run


class LlamaCppPython(Peer):
    engine = "llama-cpp-python"
    packages = ("llama-cpp-python",)

    def __init__(self, options: argparse.Namespace, context: int) -> None:
        from llama_cpp import Llama

        self.path = options.model
        self.model = Llama(
            model_path=options.model,
            n_ctx=context,
            n_threads=options.threads,
            n_threads_batch=options.threads,
            logits_all=options.part == "quality",
            verbose=False,
        )

    def size(self) -> int:
        return os.path.getsize(self.path)

    def generate(self, tokens: Sequence[int], count: int, on_token: OnToken) -> None:
        from llama_cpp import llama_perf_context_reset

        self.model.reset()  # nothing of the last prompt
        llama_perf_context_reset(self.model.ctx)
        for token in self.model.generate(list(tokens), temp=0.0, repeat_penalty=1.0):
            count -= 1
            if on_token(int(token)) or count == 0:
                return

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        self.model.reset()
        self.model.eval(list(tokens))
        return np.array(self.model.scores[: len(tokens)])

    def own(self) -> dict[str, float]:
        """libllama's counters: its own work alone, without sampling and Python."""
        from llama_cpp import llama_perf_context

        counted = llama_perf_context(self.model.ctx)
        return {"decode_tps": 1000 * counted.n_eval / counted.t_eval_ms}


if __name__ == "__main__":
    run(LlamaCppPython)
