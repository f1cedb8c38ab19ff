# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "ctranslate2==4.8.5", "transformers==5.23.0", "numpy==2.4.6"]
# [tool.edge-distill-peers]
# opens = ["checkpoint"]
# ///
"""CTranslate2's generator, weights in int8."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from protocol import OnToken, Peer, bytes_of, run


class CTranslate2(Peer):
    engine = "ctranslate2"
    packages = ("ctranslate2",)
    precision = "int8"

    @classmethod
    def prepare(cls, options: argparse.Namespace) -> None:
        folder = Path(options.folder) / "ctranslate2"
        if (folder / "model.bin").exists():
            return
        from ctranslate2.converters import TransformersConverter

        converter = TransformersConverter(options.model, trust_remote_code=False)
        converter.convert(str(folder), quantization="int8", force=True)

    def __init__(self, options: argparse.Namespace, context: int) -> None:
        import ctranslate2

        self.folder = Path(options.folder) / "ctranslate2"
        self.model = ctranslate2.Generator(
            str(self.folder),
            device="cpu",
            compute_type="int8",
            intra_threads=options.threads,
            inter_threads=1,
        )
        self.names = names_of(self.folder)

    def size(self) -> int:
        return bytes_of([self.folder / "model.bin"])

    def generate(self, tokens: Sequence[int], count: int, on_token: OnToken) -> None:
        steps = self.model.generate_tokens(
            [self.names[token] for token in tokens], max_length=count, sampling_topk=1, end_token=[]
        )
        for step in steps:
            if on_token(step.token_id):
                return

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        found = self.model.forward_batch([list(tokens)])
        return np.array(found, dtype=np.float32)[0]


def names_of(folder: Path) -> list[str]:
    """Tokens as the converted model's vocabulary spells them."""
    import json

    return list(json.loads((folder / "vocabulary.json").read_text()))


if __name__ == "__main__":
    run(CTranslate2)
