"""Expert iteration (Anthony et al. 2017, arXiv:1705.08439; ReST, Gulcehre et al. 2023, arXiv:2308.08998).

In each round the student samples answers to the training problems; it learns from those with the right answer in which
the checker refutes no step and, if there is one, a process reward model accepts every step. In effect that is a policy
gradient with a reward of 0 or 1, on samples of the policy that the round began with.

    out/round-1/asked.samples.jsonl   what the student wrote, beside the files of `traces`
    out/round-1/accepted.jsonl        what it learns from
    out/round-1/student               what it becomes, beside the files of a run of `distill`
    out/round-1/held_out.jsonl        what that one solves
    out/round-1/round.json            the round in numbers; it is finished
    out/student                       the last round's
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edge_distill.distil.material import file_hashes
from edge_distill.distil.own_samples import open_reward_model, problems_of
from edge_distill.distil.recipe import ExpertIterationSection, Recipe
from edge_distill.distil.result import Distilled, Round
from edge_distill.distil.run_folder import CHECKPOINTS, LINEAGE, STUDENT, prepare_folder, put_student
from edge_distill.distil.training import train_once
from edge_distill.traces.teachers.opening import open_teacher
from edge_distill.traces.teachers.teacher import Sampling
from edge_distill.traces.trace import Trace, read_traces, to_line
from edge_distill.traces.ways import Way
from edge_distill.traces.writing import Part, write_traces
from edge_distill_bench.problem import Problem
from edge_distill_bench.statistics import Estimate, wilson
from edge_distill_export.bundle import staged
from edge_distill_export.progress import stage
from edge_distill_runtime.bundles.files import read_bounded
from edge_distill_runtime.errors import InputError

__all__ = ["accepted", "iterate"]

_MAX_JSON = 1 << 20


def iterate(recipe: Recipe, *, restart: bool = False) -> Distilled:
    """All rounds of a recipe with `expert_iteration`; the same call goes on where a killed one stopped.

    Raises `InputError` as `distill` does, when a round accepts fewer samples than a batch, and under several processes.
    """
    section = recipe.expert_iteration
    assert section is not None
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "one-process", "expert iteration samples in one process", "start it without `accelerate launch`"
        )
    prepare_folder(recipe, restart)
    run = _Run(recipe, section)
    rounds, trained = [run.before()], []
    for number in range(1, section.rounds + 1):
        turn, training = run.round(number)
        rounds.append(turn)
        trained.append(training)
    return _finish(recipe, rounds, trained, run.resumed_from)


def accepted(samples: Sequence[Trace], least: float) -> list[Trace]:
    """The samples to learn from: right, ended by themselves, no step refuted, and with a score of at least `least`.

    Samples without a score were not given to a reward model. Of equal texts one is kept; the order is that of problem
    and seed.
    """
    kept: dict[tuple[str, str, str], Trace] = {}
    for trace in sorted(samples, key=lambda one: (one.task, one.problem, one.seed or 0)):
        sound = trace.correct and all(step.verdict != "refuted" for step in trace.steps)
        if sound and "finish_reason" not in trace.notes and trace.notes.get("score", 1.0) >= least:
            kept.setdefault((trace.problem, trace.reasoning, trace.messages[-1]["content"]), trace)
    return list(kept.values())


class _Run:
    """Rounds in the folder of a recipe, each of its files made once."""

    def __init__(self, recipe: Recipe, section: ExpertIterationSection) -> None:
        self._recipe, self._section = recipe, section
        with stage("Reading problems"):
            self._problems = problems_of(section, "train")
            self._held_out = problems_of(section, "validation")
        self._scorer = open_reward_model(section)
        self.resumed_from = 0
        """Steps that earlier processes have done."""

    def before(self) -> Round:
        """The student that the recipe begins with, measured."""
        folder = self._folder(0)
        if not (found := _load(folder)):
            folder.mkdir(exist_ok=True)
            accuracy = self._measure(self._recipe.student, 0)
            found = Round(0, 0, 0, 0, 0, _count(self._held_out), accuracy)
            _store(folder, found)
        return found

    def round(self, number: int) -> tuple[Round, dict[str, Any]]:
        """A round, and what its student's lineage says; what an earlier process has done of it is not done again."""
        folder = self._folder(number)
        folder.mkdir(exist_ok=True)
        student = folder / STUDENT
        if found := _load(folder):
            self.resumed_from += found.steps
            return found, _lineage(student)
        if student.exists():
            self.resumed_from += _lineage(student)["steps"]
        else:
            self._sample(number)
            begin = self._student(number - 1)
            traces = [folder / "accepted.jsonl", *self._recipe.traces]
            changes = {"student": begin, "out": folder, "traces": traces, "expert_iteration": None}
            self.resumed_from += train_once(self._recipe.model_copy(update=changes)).resumed_from
        learned = list(read_traces(folder / "accepted.jsonl"))
        found = Round(
            number=number,
            samples=sum(1 for _ in read_traces(folder / "asked.samples.jsonl")),
            accepted=len(learned),
            solved=len({(trace.task, trace.problem) for trace in learned}),
            steps=_lineage(student)["steps"],
            held_out=_count(self._held_out),
            accuracy=self._measure(str(student), number),
        )
        _store(folder, found)
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)  # nothing goes on from them any more
        return found, _lineage(student)

    def _folder(self, number: int) -> Path:
        return self._recipe.out / f"round-{number}"

    def _student(self, number: int) -> str:
        return str(self._folder(number) / STUDENT) if number else self._recipe.student

    def _sample(self, number: int) -> None:
        folder, section = self._folder(number), self._section
        target = folder / "accepted.jsonl"
        if target.exists():
            return
        sampling = Sampling(temperature=section.temperature, max_tokens=section.max_tokens)
        seed = self._recipe.training.seed + (number - 1) * section.samples
        way = Way("chain", section.samples, sampling, seed, scorer=self._scorer or "checker")
        self._ask(self._student(number - 1), self._problems, way, folder / "asked.jsonl", number)
        samples = list(read_traces(folder / "asked.samples.jsonl"))
        kept = accepted(samples, section.accept)
        if not self._recipe.traces and len(kept) < self._recipe.training.batch_size:
            raise InputError(
                "too-few-accepted",
                f"{len(kept)} of {len(samples)} samples of round {number} were accepted, fewer than a batch of "
                f"{self._recipe.training.batch_size}",
                "take easier or more problems, more samples, or teach the student by traces first",
            )
        _write(target, "".join(to_line(trace) + "\n" for trace in kept))

    def _measure(self, student: str, number: int) -> Estimate:
        sampling = Sampling(temperature=0.0, max_tokens=self._section.max_tokens)
        out = self._folder(number) / "held_out.jsonl"
        right = self._ask(student, self._held_out, Way("chain", 1, sampling), out, number)
        return wilson(right, _count(self._held_out))

    def _ask(self, student: str, problems: dict[str, list[Problem]], way: Way, out: Path, number: int) -> int:
        """How many problems the student solves; its samples lie beside `out`."""
        total = self._section.rounds
        parts = [Part(f"{name} (round {number} of {total})", some, way) for name, some in problems.items()]
        teacher = open_teacher(f"hf:{student}", at_once=self._section.at_once)
        try:
            return write_traces(parts, teacher, out, tries=1).kept
        finally:
            teacher.close()


def _finish(
    recipe: Recipe, rounds: Sequence[Round], trained: Sequence[dict[str, Any]], resumed_from: int
) -> Distilled:
    """Put the last round's student into its place."""
    last = trained[-1]
    names = ("examples", "left_out", "tokens", "loss", "validation")
    distilled = Distilled(
        path=str(recipe.out / STUDENT),
        steps=sum(turn.steps for turn in rounds),
        resumed_from=resumed_from,
        seconds=sum(training["seconds"] for training in trained),
        rounds=tuple(rounds),
        **{name: last[name] for name in names},
    )
    with stage("Writing the student"), staged(recipe.out / STUDENT) as directory:
        shutil.copytree(recipe.out / f"round-{rounds[-1].number}" / STUDENT, directory, dirs_exist_ok=True)
        put_student(directory, recipe, distilled, trained[0]["student"], file_hashes(recipe))
    return distilled


def _count(problems: dict[str, list[Problem]]) -> int:
    return sum(map(len, problems.values()))


def _lineage(student: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(read_bounded(student / LINEAGE, _MAX_JSON))
    return content


def _load(folder: Path) -> Round | None:
    path = folder / "round.json"
    if not path.exists():
        return None
    content = json.loads(read_bounded(path, _MAX_JSON))
    return Round(**{**content, "accuracy": Estimate(**content["accuracy"])})


def _store(folder: Path, turn: Round) -> None:
    _write(folder / "round.json", json.dumps(asdict(turn), indent=2))


def _write(path: Path, text: str) -> None:
    """A file, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
