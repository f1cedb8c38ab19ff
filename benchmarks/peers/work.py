"""What every engine is asked, as token ids, and the reference that their logits are compared with."""

from __future__ import annotations

import hashlib
import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from protocol import SCHEMA_VERSION

from edge_distill_bench.fidelity import bucketed_kl
from edge_distill_bench.fidelity_cache import Reference, write_reference
from edge_distill_bench.fidelity_texts import ForcedText
from edge_distill_bench.grading import grade
from edge_distill_bench.items import load_tasks
from edge_distill_bench.problem import Problem
from edge_distill_bench.prompts import EASY_SHOTS, TRACE
from edge_distill_bench.tasks import load_problems
from edge_distill_runtime import InputError, Model, load

TASKS = ("task:chain_sum?max_terms=2&max_digits=2", "task:leg_counting?min_animals=1&max_animals=2")
_PROMPT, _LONG, _NEW = 128, 512, 128
_WINDOW = 256
_ANSWER = 48
_CONTEXT = 1024


@dataclass(frozen=True)
class Work:
    """The file that all scripts read, and what only the runner knows."""

    path: Path
    values: dict[str, Any]
    problems: tuple[Problem, ...]
    reference: Reference

    @property
    def hash(self) -> str:
        """Changes with anything that an answer or a logit depends on."""
        return hashlib.sha256(json.dumps(self.values, sort_keys=True).encode()).hexdigest()[:16]


def make_work(checkpoint: str, folder: Path, options: Namespace) -> Work:
    """Write work.json, once for every choice of options; the checkpoint in fp32 is the reference."""
    from edge_distill.checkpoints import as_bundle

    tasks = load_tasks(TASKS, options.items)
    problems = tuple(problem for those in tasks.values() for problem in those)
    bundle = as_bundle(checkpoint, folder / "checkpoints")
    with load(bundle) as model:
        text, windows = texts_of(model, options.windows)
        cache = folder / f"reference-{options.windows}"
        reference = write_reference(model, windows, cache, name=Path(checkpoint).name)
        values = prompts(model) | {
            "schema_version": SCHEMA_VERSION,
            "context": _CONTEXT,
            "text": text,
            "window": _WINDOW,
            "texts": [{"tokens": window.tokens, "prompt": window.prompt} for window in windows],
            "reference": str(cache),
            "reference_gguf": str(_f16(checkpoint, folder)),
            "questions": [model.encode(_messages(problem)) for problem in problems],
            "stop": list(model.manifest.stop_ids),
            "answer_tokens": _ANSWER,
        }
    path = folder / "work.json"
    path.write_text(json.dumps(values))
    return Work(path, json.loads(path.read_text()), problems, reference)


def _f16(checkpoint: str, folder: Path) -> Path:
    """What llama-perplexity compares with."""
    from edge_distill_export.export import export

    place = folder / "checkpoints" / "f16"
    if not (made := sorted(place.glob("*/model.gguf"))):
        export(checkpoint, to=["gguf:f16"], out=place)
        made = sorted(place.glob("*/model.gguf"))
    return made[0]


def prompts(model: Model) -> dict[str, Any]:
    """Prompts that begin with different tokens, so that no engine finds one in a cache."""
    ids = model.encode(TRACE, raw=True)

    def cut(start: int, count: int) -> list[int]:
        return (ids * (2 + count // len(ids)))[start : start + count]

    return {
        "warm": cut(1, _PROMPT),
        "first": [cut(start, _PROMPT) for start in (2, 3, 4)],
        "long": cut(5, _LONG),
        "decode": cut(0, _PROMPT),
        "new_tokens": _NEW,
        "warm_up": 16,
    }


def texts_of(model: Model, count: int) -> tuple[str, list[ForcedText]]:
    """A text of worked problems, and its windows, each with its first half as prompt: llama-perplexity's way."""
    problems = load_problems("task:gsm_symbolic", split="test", count=4 * count)
    ids = model.encode("\n\n".join(f"{one.problem}\n{one.solution}" for one in problems), raw=True)
    text = model.detokenizer.decode(ids[: count * _WINDOW + _WINDOW // 2])
    ids = model.encode(text, raw=True)
    if not count * _WINDOW <= len(ids) < (count + 1) * _WINDOW:
        raise InputError(
            "bad-windows", f"{len(ids)} tokens do not give {count} windows", "ask for fewer windows"
        )
    first = _WINDOW // 2 + 1  # the token before it is the first that is scored
    rows = _WINDOW - first
    starts = range(0, count * _WINDOW, _WINDOW)
    windows = [
        ForcedText(tuple(ids[start : start + _WINDOW]), first, "r" * rows, "." * rows) for start in starts
    ]
    return text, windows


def _messages(problem: Problem) -> list[dict[str, str]]:
    """With worked examples: the model was not taught these tasks."""
    pairs = [(("user", question), ("assistant", answer)) for question, answer in EASY_SHOTS]
    turns = [*(turn for pair in pairs for turn in pair), ("user", problem.problem)]
    return [{"role": role, "content": content} for role, content in turns]


def mean_kl(logits: Path, work: Work) -> float:
    """Of a script's logits to the reference's; ValueError when they are not those of the texts."""
    found = np.load(logits, mmap_mode="r", allow_pickle=False)
    texts = work.reference.texts
    if found.shape[0] != sum(text.rows for text in texts) or found.shape[1] < work.reference.vocabulary:
        raise ValueError(f"logits of the shape {found.shape}")
    at, kls = 0, []
    for text in texts:
        rows = np.array(found[at : at + text.rows, : work.reference.vocabulary])
        kls.append(bucketed_kl(work.reference.rows(text), rows))
        at += text.rows
    return float(np.concatenate(kls).mean())


def count_right(answers: Sequence[Sequence[int]], work: Work, model: Model) -> int:
    """Answers that ended and are right."""
    stop = set(work.values["stop"])
    ended = [
        (problem, tokens)
        for problem, tokens in zip(work.problems, answers, strict=True)
        if tokens and tokens[-1] in stop
    ]
    texts = [(problem, model.detokenizer.decode(list(tokens[:-1]))) for problem, tokens in ended]
    return sum(grade(text, problem.answer).verdict == "right" for problem, text in texts)
