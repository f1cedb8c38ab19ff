# /// script
# requires-python = ">=3.11"
# dependencies = ["onnxruntime-genai==0.18.0", "onnxruntime==1.32.0", "numpy==2.4.6"]
# [tool.edge-distill-peers]
# opens = ["onnx"]
# ///
"""onnxruntime-genai's generator on the same bundle."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from protocol import OnToken, Peer, bytes_of, run


class OrtGenai(Peer):
    engine = "onnxruntime-genai"
    packages = ("onnxruntime-genai", "onnxruntime")

    def __init__(self, options: argparse.Namespace, context: int) -> None:
        import onnxruntime_genai as genai

        self.path, self.context = Path(options.model), context
        self.least = context if options.part == "speed" else 0  # an answer may end, a timing may not
        config = genai.Config(options.model)
        overlay = {"model": {"decoder": {"session_options": {"intra_op_num_threads": options.threads}}}}
        config.overlay(json.dumps(overlay))
        self.model = genai.Model(config)

    def size(self) -> int:
        return bytes_of(self.path.glob("model.onnx*"))

    def _generator(self, tokens: Sequence[int]) -> Any:
        import onnxruntime_genai as genai

        options = genai.GeneratorParams(self.model)
        options.set_search_options(do_sample=False, min_length=self.least, max_length=self.context)
        generator = genai.Generator(self.model, options)
        generator.append_tokens(list(tokens))
        return generator

    def generate(self, tokens: Sequence[int], count: int, on_token: OnToken) -> None:
        generator = self._generator(tokens)
        for _ in range(count):
            generator.generate_next_token()
            if on_token(int(generator.get_next_tokens()[0])):
                return

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        generator = self._generator(tokens[:1])
        rows = [generator.get_logits().reshape(1, -1).copy()]
        for token in tokens[1:]:
            generator.append_tokens([token])
            rows.append(generator.get_logits().reshape(1, -1).copy())
        return np.concatenate(rows).astype(np.float32)


if __name__ == "__main__":
    run(OrtGenai)
