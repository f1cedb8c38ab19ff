# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch==2.13.0", "optimum-intel==2.2.0", "optimum==2.3.0", "transformers==5.5.4", "nncf==3.4.0",
#     "openvino==2026.4.1", "openvino-genai==2026.4.1.0", "openvino-tokenizers==2026.4.1.0", "numpy==2.4.6",
# ]
# [tool.edge-distill-peers]
# opens = ["checkpoint"]
# without = ["torchvision"]
# ///
"""OpenVINO GenAI on int4 weights (symmetric, groups of 32) that optimum-intel made."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from protocol import OnToken, Peer, bytes_of, older_checkpoint, run


class OpenVinoGenai(Peer):
    engine = "openvino-genai"
    packages = ("openvino-genai", "openvino", "optimum-intel", "nncf")
    precision = "int4"

    @classmethod
    def prepare(cls, options: argparse.Namespace) -> None:
        folder = Path(options.folder) / "openvino"
        if (folder / "openvino_detokenizer.xml").exists():
            return
        from openvino import save_model
        from openvino_tokenizers import convert_tokenizer
        from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
        from transformers import PreTrainedTokenizerFast

        checkpoint = older_checkpoint(options.model, options.folder)
        # ratio 1: all linear layers; NNCF keeps the embedding and the head, one tensor here, at 8 bits
        how = OVWeightQuantizationConfig(bits=4, sym=True, group_size=32, ratio=1.0)
        model = OVModelForCausalLM.from_pretrained(
            checkpoint, export=True, quantization_config=how, trust_remote_code=False
        )
        model.save_pretrained(folder)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint)
        names = ("openvino_tokenizer.xml", "openvino_detokenizer.xml")
        for made, name in zip(convert_tokenizer(tokenizer, with_detokenizer=True), names, strict=True):
            save_model(made, folder / name)

    def __init__(self, options: argparse.Namespace, context: int) -> None:
        import openvino_genai as genai

        self.folder, self.threads = Path(options.folder) / "openvino", options.threads
        self.pipeline = genai.LLMPipeline(str(self.folder), "CPU", INFERENCE_NUM_THREADS=options.threads)
        self.request: Any = None
        self.counted: dict[str, float] = {}

    def size(self) -> int:
        return bytes_of(self.folder.glob("openvino_model.*"))

    def generate(self, tokens: Sequence[int], count: int, on_token: OnToken) -> None:
        import openvino as ov
        import openvino_genai as genai

        class Told(genai.StreamerBase):  # type: ignore[misc]
            def write(self, token: Any) -> Any:
                new = [token] if isinstance(token, int) else token
                stop = any(on_token(int(one)) for one in new)
                return genai.StreamingStatus.STOP if stop else genai.StreamingStatus.RUNNING

            def end(self) -> None:
                pass

        config = genai.GenerationConfig()
        config.max_new_tokens, config.do_sample, config.ignore_eos = count, False, True
        ids = np.array([list(tokens)], dtype=np.int64)
        inputs = genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        metrics = self.pipeline.generate(inputs, config, Told()).perf_metrics
        self.counted = {"ttft_s": metrics.get_ttft().mean / 1000}
        if count > 1:
            self.counted["decode_tps"] = 1000 / metrics.get_tpot().mean

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Of the same file by OpenVINO itself: the pipeline gives none."""
        import openvino as ov

        if self.request is None:
            core = ov.Core()
            core.set_property("CPU", {"INFERENCE_NUM_THREADS": self.threads})
            self.request = core.compile_model(
                str(self.folder / "openvino_model.xml"), "CPU"
            ).create_infer_request()
        self.request.reset_state()
        ids = np.array([list(tokens)], dtype=np.int64)
        known = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "position_ids": np.arange(ids.shape[1])[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        names = {name for port in self.request.model_inputs for name in port.get_names()}
        self.request.infer({name: value for name, value in known.items() if name in names})
        return np.array(self.request.get_tensor("logits").data[0], dtype=np.float32)

    def own(self) -> dict[str, float]:
        return self.counted


if __name__ == "__main__":
    run(OpenVinoGenai)
