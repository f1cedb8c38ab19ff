"""How much memory a process needs that loads a bundle and decodes until its context is full.

The constants are resident sizes of fresh processes (Python 3.11, x86-64 Linux, llama-cpp-python 0.3.36, ONNX
Runtime 1.32): a two-layer model with 1,024 tokens gave what an engine takes by itself; SmolLM2-135M with 49,152
tokens and a vocabulary of 151,936 gave what the tokenizer adds.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from edge_distill_runtime.engines.machine import memory_limit

__all__ = ["cache_bytes", "needed_memory", "tokens_that_fit"]

Format = Literal["gguf", "onnx"]

_MIB = 1 << 20
# The interpreter, numpy, tokenizers, the engine's code and its work space.
_ENGINE = {"gguf": 61 * _MIB, "onnx": 76 * _MIB}
_INTERPRETER = 31 * _MIB
# Multiples of tokenizer.json: while it is read, before the engine opens; and what stays of it, libllama's
# own vocabulary included.
_TOKENIZER_READ = 22
_TOKENIZER_KEPT = 12
_CELLS = 256  # libllama rounds a context up to a multiple of this
_MOST_ROWS = 512  # rows of logits that the ONNX engine keeps, but at most so many bytes:
_MOST_LOGITS = 16 * _MIB


def needed_memory(
    format: Format, *, model_bytes: int, cache_bytes: int, tokenizer_bytes: int, vocab_size: int
) -> int:
    """Largest resident size in bytes, the weights counted once: libllama reads them, and does not map the file.

    ONNX Runtime holds one tensor twice, which comes on top: an embedding that is the head as well, looked up as
    it is in the file and multiplied with in its kernel's order.
    """
    logits = min(_MOST_LOGITS, _MOST_ROWS * 4 * vocab_size) if format == "onnx" else 0
    loaded = _ENGINE[format] + _TOKENIZER_KEPT * tokenizer_bytes + model_bytes + cache_bytes + logits
    return max(loaded, _INTERPRETER + _TOKENIZER_READ * tokenizer_bytes)


def cache_bytes(format: Format, bytes_per_token: int, context: int) -> int:
    """Size of the key-value cache for `context` tokens of all sequences together."""
    cells = -(-context // _CELLS) * _CELLS if format == "gguf" else context
    return bytes_per_token * cells


def tokens_that_fit(bytes_per_token: int) -> int | None:
    """How many tokens fit in memory beside what this process holds now; None where that is not known."""
    limit, held = memory_limit(), _resident_bytes()
    return None if limit is None or held is None else max(0, limit - held) // bytes_per_token


def _resident_bytes() -> int | None:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):  # no Linux
        return None
