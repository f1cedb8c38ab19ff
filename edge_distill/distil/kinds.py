"""What a token of a training text is; losses and spans agree on these numbers."""

from __future__ import annotations

PROMPT = 0
"""Given to the student: never part of a loss. Padding is of this kind too."""
REASONING = 1
ANSWER = 2
OBSERVATION = 3
"""What a tool said: stands inside the solution, but the student does not write it."""

IGNORED = -100
"""The label of a token without a loss, as `torch.nn.functional.cross_entropy` and transformers have it."""

LENGTHS = 32
"""Batches are padded to a multiple of this, so that kernels are prepared for few different shapes: oneDNN keeps
those of the last 1,024."""
