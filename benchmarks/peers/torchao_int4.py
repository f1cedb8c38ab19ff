# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "torchao==0.18.0", "transformers==5.23.0", "numpy==2.4.6"]
# [tool.edge-distill-peers]
# opens = ["checkpoint"]
# ///
"""transformers' generate on torch, linear layers in torchao's int4 (groups of 32), all else in bfloat16."""

from __future__ import annotations

import argparse

from protocol import run
from transformers_bf16 import Transformers


class TorchAo(Transformers):
    engine = "transformers + torchao"
    packages = ("transformers", "torch", "torchao")
    precision = "int4"

    def __init__(self, options: argparse.Namespace, context: int) -> None:
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
        from torchao.quantization import quantize_

        super().__init__(options, context)
        # the packing that torch's int4 kernels for CPUs read; the stable configuration has those of GPUs alone
        how = PrototypeInt4WeightOnlyConfig(group_size=32, set_inductor_config=False)
        quantize_(self.model, how)

    def size(self) -> int:
        from torchao.utils import get_model_size_in_bytes

        return int(get_model_size_in_bytes(self.model))


if __name__ == "__main__":
    run(TorchAo)
