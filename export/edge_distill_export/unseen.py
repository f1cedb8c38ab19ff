"""The user's traces without those that share their wording with the held-out text, by which an export is judged.

Eight words in a row, numbers aside, count as shared: the unit of PaLM's contamination analysis (Chowdhery et al. 2022,
arXiv:2204.02311, section 8). Of 1,500 new problems of `gsm_symbolic`, with names and numbers of their own, it finds
333 of the 343 whose template a held-out text has, and none of the others (500 of them in a test).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from edge_distill_export.calibration import Trace, builtin_traces, read_traces
from edge_distill_runtime.errors import InputError

_SHARED_WORDS = 8
_WORD = re.compile(r"[^\W\d_]+")


def unseen_traces(path: Path) -> tuple[list[Trace], int]:
    """The traces of a JSON Lines file that may be calibrated on, and how many may not.

    Raises `InputError` as `read_traces` does, and when none is left.
    """
    traces = read_traces(path)
    heldout = {run for trace in builtin_traces("heldout") for run in _runs(trace)}
    kept = [trace for trace in traces if heldout.isdisjoint(_runs(trace))]
    if not kept:
        raise InputError(
            "only-heldout-text",
            f"every trace of {path} shares {_SHARED_WORDS} words in a row with the held-out text of the export",
            "calibrate on traces of other problems",
        )
    return kept, len(traces) - len(kept)


def _runs(trace: Trace) -> Iterable[tuple[str, ...]]:
    """All runs of words of a problem, its reasoning and its answer."""
    for text in (*(message["content"] for message in trace.messages), trace.reasoning, trace.answer):
        words = _WORD.findall(text.casefold())
        yield from zip(*(words[start:] for start in range(_SHARED_WORDS)), strict=False)
