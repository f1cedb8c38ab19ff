"""What `--to` takes: a format and a precision, with the limit on KL divergence that its export must keep."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from edge_distill_runtime.errors import InputError

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgt]?)(i?)b", re.IGNORECASE)


@dataclass(frozen=True)
class Budget:
    """What mixed precision may cost: bytes of the model file, or mean KL divergence; exactly one is set."""

    bytes: int | None = None
    kl: float | None = None

    def __str__(self) -> str:
        return f"{self.bytes / 1e6:g}MB" if self.bytes is not None else f"kl{self.kl:g}"


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
    budget: Budget | None = None
    """Of mixed precision, 4 or 8 bits by measured sensitivity; None for every other target."""

    def __str__(self) -> str:
        return f"{self.format}:{self.precision}"

    @property
    def folder(self) -> str:
        """What its bundle's name ends with: mixed precision is called the same in both formats."""
        return f"{self.precision}-{self.format}" if self.budget else self.precision


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


AUTO = {str(target): target for target in (Target("gguf", "auto", 0.3), Target("onnx", "auto", 0.3))}
"""Mixed precision: one target for each budget takes its place."""


def parse_targets(names: Iterable[str], budgets: Sequence[Budget] = ()) -> tuple[Target, ...]:
    """The targets in the order given, each once; raises `InputError` with a suggestion for an unknown one.

    A target of mixed precision gives one for each of `budgets`, of which there must be one then.
    """
    unique, known = list(dict.fromkeys(names)), {**TARGETS, **AUTO}
    if not unique:
        raise InputError("no-target", "no target was given", f"add --to with one of {', '.join(known)}")
    for name in unique:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
            hint = f"did you mean {close[0]}? " if close else ""
            raise InputError(
                "unknown-target", f"target {name!r} is unknown", f"{hint}known: {', '.join(known)}"
            )
    automatic = [name for name in unique if name in AUTO]
    if automatic and not budgets:
        raise InputError("no-budget", f"{automatic[0]} has no budget", "add --size 95MB or --kl 0.02")
    if budgets and not automatic:
        raise InputError("unused-budget", "--size and --kl are for mixed precision", "add --to gguf:auto")
    return tuple(target for name in unique for target in _expanded(known[name], budgets))


def _expanded(target: Target, budgets: Sequence[Budget]) -> list[Target]:
    if str(target) not in AUTO:
        return [target]
    return [replace(target, precision=f"auto-{budget}", budget=budget) for budget in dict.fromkeys(budgets)]


def parse_budgets(sizes: Iterable[str], kls: Iterable[float]) -> tuple[Budget, ...]:
    """Budgets of `--size` and `--kl`; raises `InputError` for one that is none."""
    kls = list(kls)
    for kl in kls:
        if not 0 < kl < 100:
            raise InputError("bad-budget", f"--kl is {kl}", "give nats per token above 0, e.g. 0.02")
    return (*(Budget(bytes=parse_size(size)) for size in sizes), *(Budget(kl=kl) for kl in kls))


def parse_size(text: str) -> int:
    """Bytes of a size such as 256MB (10**6) or 1.5GiB (2**30); raises `InputError` for anything else."""
    match = _SIZE.fullmatch(text.strip())
    size = 0
    if match:
        number, prefix, binary = match.groups()
        base = 1024 if binary else 1000
        size = int(float(number) * base ** ("kmgt".index(prefix.lower()) + 1 if prefix else 0))
    if size < 1 or (match and match[3] and not match[2]):
        raise InputError("bad-size", f"{text!r} is no size of memory", "give e.g. 256MB, 512MiB or 1.5GB")
    return size
