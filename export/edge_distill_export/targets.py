"""What `--to` takes: a format and a precision, with the limit on KL divergence that its export must keep."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from edge_distill_runtime.errors import InputError


@dataclass(frozen=True)
class Target:
    """One artifact to make."""

    format: Literal["gguf", "onnx"]
    precision: str
    kl_limit: float
    """Largest mean KL divergence to the checkpoint in nats per token; `--limit-kl` overrides it."""
    bits: int | None = None
    """Bits of the linear layers on the shared grid; None for floats and K-quants."""
    k_quant: bool = False
    """Made by libllama's own quantizer with an importance matrix."""

    def __str__(self) -> str:
        return f"{self.format}:{self.precision}"


TARGETS = {
    str(target): target
    for target in (
        Target("gguf", "f16", 0.001),
        Target("gguf", "q8_0", 0.02, bits=8),
        Target("gguf", "q4_0", 0.3, bits=4),
        Target("gguf", "q4_k_m", 0.3, k_quant=True),
        Target("gguf", "q5_k_m", 0.15, k_quant=True),
        Target("gguf", "q6_k", 0.05, k_quant=True),
        Target("onnx", "fp32", 0.001),
        Target("onnx", "int8", 0.02, bits=8),
        Target("onnx", "int4", 0.3, bits=4),
    )
}


def parse_targets(names: Iterable[str]) -> tuple[Target, ...]:
    """The targets in the order given, each once; raises `InputError` with a suggestion for an unknown one."""
    unique = list(dict.fromkeys(names))
    if not unique:
        raise InputError("no-target", "no target was given", f"add --to with one of {', '.join(TARGETS)}")
    for name in unique:
        if name not in TARGETS:
            close = difflib.get_close_matches(name, TARGETS, n=1, cutoff=0.3)
            hint = f"did you mean {close[0]}? " if close else ""
            raise InputError(
                "unknown-target", f"target {name!r} is unknown", f"{hint}known: {', '.join(TARGETS)}"
            )
    return tuple(TARGETS[name] for name in unique)
