"""Strings on which tokenizers disagree; the runtime compares tokenizers on them too."""

from edge_distill_runtime.text.hostile_strings import HOSTILE_STRINGS

__all__ = ["HOSTILE_STRINGS"]
