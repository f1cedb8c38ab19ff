"""One run of `bench`: its models, and its results.json, which is written after every part and continued."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edge_distill_bench.answering import hash_of
from edge_distill_bench.measure import this_machine
from edge_distill_bench.noise import WHAT, fixed_computation
from edge_distill_bench.results import (
    RESULTS_NAME,
    ArtifactResult,
    BenchResults,
    Noise,
    Role,
    Settings,
    SpeedRatio,
    read_results,
    write_results,
)
from edge_distill_bench.timers import seconds_of
from edge_distill_runtime.bundles.opening import find
from edge_distill_runtime.errors import InputError
from edge_distill_runtime.progress import Advance

__all__ = ["Run", "Stage", "Subject", "open_run", "subjects_of"]

Stage = Callable[[str, int | None], AbstractContextManager[Advance]]
"""Shows one long stage, as `edge_distill_runtime.progress.lines`."""

_NOISE_REPEATS = 3


@dataclass(frozen=True)
class Subject:
    """A model that is measured here."""

    path: Path
    name: str
    role: Role


def subjects_of(bundles: Sequence[Path], teacher: Path | None, student: Path | None) -> tuple[Subject, ...]:
    """Teacher, student and artifacts, each once, under names of their own.

    A path that stands for two is measured once: as the teacher, else as the student.
    """
    given: list[tuple[Path, Role]] = [(path, "artifact") for path in bundles]
    if student is not None:
        given.insert(0, (student, "student"))
    if teacher is not None:
        given.insert(0, (teacher, "teacher"))
    found: dict[Path, Subject] = {}
    names: set[str] = set()
    for path, role in given:
        if path.resolve() in found:
            continue
        plain = path.stem if path.suffix == ".gguf" else path.resolve().name
        name, number = plain, 2
        while name in names:
            name, number = f"{plain}-{number}", number + 1
        names.add(name)
        found[path.resolve()] = Subject(path, name, role)
    return tuple(found.values())


class Run:
    """What has been measured so far; every change is on the disk before the next measurement begins."""

    def __init__(
        self, folder: Path, subjects: Sequence[Subject], results: BenchResults, stage: Stage
    ) -> None:
        self.folder = folder
        self.subjects = tuple(subjects)
        self.results = results
        self.stage = stage

    @property
    def settings(self) -> Settings:
        return self.results.settings

    def artifact(self, subject: Subject) -> ArtifactResult:
        """What is known of a model."""
        return self.results.artifact(subject.name)

    def put(self, name: str, **changes: Any) -> None:
        """Change fields of one artifact, and write."""
        self.results = replace(
            self.results,
            artifacts=tuple(
                replace(one, **changes) if one.name == name else one for one in self.results.artifacts
            ),
        )
        write_results(self.folder, self.results)

    def note(self, name: str, text: str) -> None:
        """Say once what could not be measured, and why."""
        notes = self.results.artifact(name).notes
        if text not in notes:
            self.put(name, notes=(*notes, text))

    def put_ratios(self, ratios: tuple[SpeedRatio, ...]) -> None:
        """Set the speed ratios, and write."""
        self.results = replace(self.results, ratios=ratios)
        write_results(self.folder, self.results)

    def add_noise(self, seconds: Sequence[float] = ()) -> None:
        """More repetitions of the fixed computation: these, or some that are run now."""
        threads = self.settings.threads
        more = seconds or [seconds_of(lambda: fixed_computation(threads)) for _ in range(_NOISE_REPEATS)]
        noise = replace(self.results.noise, seconds=(*self.results.noise.seconds, *more))
        self.results = replace(self.results, noise=noise)


def open_run(
    folder: Path,
    subjects: Sequence[Subject],
    settings: Settings,
    *,
    command: str,
    stage: Stage,
    elsewhere: Sequence[ArtifactResult] = (),
) -> Run:
    """Continue the results in a folder where they have these settings; `elsewhere` are models of another run.

    Of a model that has changed, and of the settings' old results, nothing is taken over: results.json is kept under
    another name then.
    """
    fresh = [_describe(subject) for subject in subjects]
    local = {subject.role: subject.name for subject in subjects if subject.role != "artifact"}
    roles = {artifact.role: artifact.name for artifact in elsewhere} | local
    elsewhere = [artifact for artifact in elsewhere if artifact.role not in local]
    if twice := {artifact.name for artifact in elsewhere} & {artifact.name for artifact in fresh}:
        raise InputError("double-name", f"two models are called {twice.pop()}", "rename a folder")
    results = BenchResults(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        machine=this_machine(),
        settings=settings,
        noise=Noise(WHAT, ()),
        teacher=roles.get("teacher"),
        reference=roles.get("student"),
        artifacts=(*elsewhere, *fresh),
    )
    if (folder / RESULTS_NAME).exists():
        results = _continued(folder, results)
    run = Run(folder, subjects, results, stage)
    run.add_noise()
    write_results(folder, run.results)
    return run


def _describe(subject: Subject) -> ArtifactResult:
    found = find(subject.path)
    manifest = found.manifest
    return ArtifactResult(
        name=subject.name,
        hash=hash_of(manifest) if manifest.files else found.read_texts().model_hash,
        format=manifest.format,
        precision=manifest.precision.target,
        role=subject.role,
        size_bytes=found.model_bytes,
        bits_per_weight=manifest.precision.bits_per_weight,
        notes=found.notes,
        peer=not manifest.files,
    )


def _continued(folder: Path, fresh: BenchResults) -> BenchResults:
    """The old results with what is new; what they lose is kept in a file of its own."""
    old = read_results(folder)
    same_settings = old.machine.cpu == fresh.machine.cpu and _same(old.settings, fresh.settings)
    known = {_identity(one): one for one in old.artifacts if same_settings}
    artifacts = tuple(known.get(_identity(one), one) for one in fresh.artifacts)
    kept = {_identity(one) for one in artifacts if same_settings}
    if any(_is_measured(one) and _identity(one) not in kept for one in old.artifacts):
        _keep(folder, old)
    if not known:
        return fresh
    if _references(old.artifacts) != _references(artifacts):  # what was compared was compared with others
        artifacts = tuple(replace(one, accuracy=None, fidelity=None) for one in artifacts)
    same_latencies = _with_latency(artifacts) == _with_latency(old.artifacts)
    return replace(
        fresh,
        created=old.created,
        settings=replace(fresh.settings, items_hash=fresh.settings.items_hash or old.settings.items_hash),
        noise=old.noise,
        artifacts=artifacts,
        ratios=old.ratios if same_latencies else (),
    )


def _keep(folder: Path, old: BenchResults) -> None:
    """Under the time it was begun, beside what was kept before."""
    stamp, number = old.created.replace(":", "").replace("+0000", "Z"), 2
    path = folder / f"results-{stamp}.json"
    while path.exists():
        path, number = folder / f"results-{stamp}-{number}.json", number + 1
    (folder / RESULTS_NAME).replace(path)


def _same(old: Settings, new: Settings) -> bool:
    """Whether what was measured with one stands for the other; a call without problems fits all."""
    if "" in (old.items_hash, new.items_hash):
        old, new = replace(old, items_hash=""), replace(new, items_hash="")
    return replace(old, parts=()) == replace(new, parts=())


def _identity(artifact: ArtifactResult) -> tuple[str, str, str]:
    return artifact.name, artifact.hash, artifact.role


def _is_measured(artifact: ArtifactResult) -> bool:
    return any((artifact.latency, artifact.memory, artifact.accuracy, artifact.fidelity))


def _references(artifacts: Sequence[ArtifactResult]) -> set[tuple[str, str, str]]:
    return {_identity(one) for one in artifacts if one.role != "artifact"}


def _with_latency(artifacts: Sequence[ArtifactResult]) -> set[str]:
    return {one.name for one in artifacts if one.latency}
