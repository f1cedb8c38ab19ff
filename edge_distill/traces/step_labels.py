"""Labels of steps for a process reward model, as TRL's stepwise supervision takes them: prompt, completions, labels.

https://huggingface.co/docs/trl/dataset_formats#stepwise-supervision
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from edge_distill.traces.trace import Trace

__all__ = ["step_labels"]


def step_labels(samples: Iterable[Trace]) -> Iterator[dict[str, Any]]:
    """Each sample up to its first refuted step, which is False; what stands before it is True.

    What comes after a mistake is not judged, as in PRM800K (Lightman et al. 2023, arXiv:2305.20050). Left out are
    samples with a wrong answer and no refuted step, for nobody knows where their mistake is, samples that were cut
    off, those without a step that the checker could read, and repetitions.
    """
    seen = set()
    for trace in samples:
        verdicts = [step.verdict for step in trace.steps]
        end = verdicts.index("refuted") + 1 if "refuted" in verdicts else len(verdicts)
        judged = trace.correct is not None and any(verdict != "unknown" for verdict in verdicts[:end])
        if not judged or (not trace.correct and "refuted" not in verdicts):
            continue
        completions = [step.text for step in trace.steps[:end]]
        key = hash((trace.problem, *completions))
        if key not in seen:
            seen.add(key)
            labels = [verdict != "refuted" for verdict in verdicts[:end]]
            yield {"prompt": trace.problem, "completions": completions, "labels": labels}
