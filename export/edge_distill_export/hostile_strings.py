"""Strings on which tokenizers disagree; the runtime compares tokenizers on them too."""

from edge_distill_runtime.hostile_strings import HOSTILE_STRINGS

__all__ = ["HOSTILE_STRINGS"]
