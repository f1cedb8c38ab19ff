# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch==2.13.0", "auto-round==0.16.1", "transformers==5.5.4", "gguf==0.19.0", "numpy==2.4.6",
#     "sentencepiece==0.2.3",
# ]
# [tool.edge-distill-peers]
# opens = ["checkpoint"]
# ///
"""Intel's AutoRound as a Q4_0 file: roundings and ranges learned by signed gradients, 200 steps a layer, its default.

    SCRIPT CHECKPOINT FOLDER TEXTS

TEXTS is a JSON file with lists of token ids; what is learned on is windows of 256 of them, in a row.
"""

from __future__ import annotations

import json
import sys
from itertools import chain
from pathlib import Path

_WINDOW = 256
_FORM = "gguf:q4_0"


def make(checkpoint: str, folder: str, texts: str) -> None:
    import torch
    from auto_round import AutoRound

    ids = list(chain.from_iterable(json.loads(Path(texts).read_text())))
    windows = [ids[start : start + _WINDOW] for start in range(0, len(ids) - _WINDOW + 1, _WINDOW)]
    data = [
        {"input_ids": torch.tensor([one]), "attention_mask": torch.ones(1, _WINDOW, dtype=torch.long)}
        for one in windows
    ]
    learned = AutoRound(checkpoint, scheme=_FORM, dataset=data, nsamples=len(data), seqlen=_WINDOW)
    learned.quantize_and_save(folder, format=_FORM)


if __name__ == "__main__":
    make(*sys.argv[1:])
