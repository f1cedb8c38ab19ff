# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch==2.13.0", "optimum-onnx==0.1.0", "optimum==2.1.0", "transformers==4.57.6", "onnx==1.23.2",
#     "onnxruntime==1.32.0", "numpy==2.4.6",
# ]
# [tool.edge-distill-peers]
# opens = ["checkpoint", "onnx"]
# ///
"""optimum's ORTModelForCausalLM: on its own fp32 export, and on our ONNX bundle.

It reads the model's config.json, which a bundle does not hold: a copy of the graph gets that of its own export.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from protocol import OnToken, Peer, bytes_of, older_checkpoint, run
from transformers_bf16 import generate, logits


class OptimumOrt(Peer):
    engine = "optimum"
    packages = ("optimum-onnx", "optimum", "transformers", "onnxruntime", "torch")

    @classmethod
    def prepare(cls, options: argparse.Namespace) -> None:
        folder = folder_of(options)
        if (folder / "config.json").exists():
            return
        if is_bundle(options.model):
            copy_bundle(Path(options.model), folder, Path(options.folder) / "onnx" / "config.json")
            return
        from optimum.onnxruntime import ORTModelForCausalLM

        model = ORTModelForCausalLM.from_pretrained(
            older_checkpoint(options.model, options.folder), export=True, trust_remote_code=False
        )
        model.save_pretrained(folder)

    def __init__(self, options: argparse.Namespace, context: int) -> None:
        import onnxruntime
        import torch
        from optimum.onnxruntime import ORTModelForCausalLM

        torch.set_num_threads(options.threads)
        session = onnxruntime.SessionOptions()
        session.intra_op_num_threads = options.threads
        self.folder = folder_of(options)
        self.model = ORTModelForCausalLM.from_pretrained(
            self.folder, session_options=session, trust_remote_code=False
        )
        self.model.generation_config.eos_token_id = None

    def size(self) -> int:
        return bytes_of(self.folder.glob("model.onnx*"))

    def generate(self, tokens: Sequence[int], count: int, on_token: OnToken) -> None:
        generate(self.model, tokens, count, on_token)

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        return logits(self.model, tokens)


def folder_of(options: argparse.Namespace) -> Path:
    return Path(options.folder) / (Path(options.model).name if is_bundle(options.model) else "onnx")


def copy_bundle(bundle: Path, folder: Path, config: Path) -> None:
    """Copied, not linked: ONNX Runtime wants a graph's data beside it, and a bundle wants no second link."""
    folder.mkdir(exist_ok=True)
    for path in bundle.glob("model.onnx*"):
        shutil.copyfile(path, folder / path.name)
    shutil.copyfile(config, folder / "config.json")


def is_bundle(path: str) -> bool:
    return (Path(path) / "model.onnx").exists()


if __name__ == "__main__":
    run(OptimumOrt)
