# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch==2.13.0", "onnxruntime-genai==0.18.0", "onnxruntime==1.32.0", "onnx-ir==1.1.0", "transformers==5.5.4",
#     "numpy==2.4.6",
# ]
# [tool.edge-distill-peers]
# opens = ["checkpoint"]
# ///
"""onnxruntime-genai's model builder: `k_quant_mixed`, its best recipe without a calibration, in blocks of 32.

    SCRIPT CHECKPOINT FOLDER

It spends 8 bits on the head, and on query, key, value and the MLP's last layer in the first and last eighth of all
layers and every third between them.
"""

from __future__ import annotations

import runpy
import sys


def make(checkpoint: str, folder: str) -> None:
    options = ["algo_config=k_quant_mixed", "int4_block_size=32", "hf_remote=false"]
    paths = ["-i", checkpoint, "-o", folder, "-c", f"{folder}/cache"]
    sys.argv = ["builder", "-m", "model", *paths, "-p", "int4", "-e", "cpu", "--extra_options", *options]
    runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")


if __name__ == "__main__":
    make(*sys.argv[1:])
