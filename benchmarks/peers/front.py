"""The best model in N megabytes: edge-distill's bundles and the peers' files of one checkpoint, at their true sizes.

    python benchmarks/peers/front.py CHECKPOINT BUNDLE... --folder FOLDER [--envs FOLDER] [--calibrate TRACES]
        [--only NAME] [--markdown FILE]

Runs in the project's environment; peers that need others in those that the headers of makers/ pin. What calibrates
does so on the texts that `edge-distill export` calibrates on. Every file is opened by the runtime and compared with
the checkpoint on export's held-out traces. Files that were made stay in FOLDER, and a later call does not make them
again. With --markdown the table is written between two markers of a document.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Literal

import numpy as np
from environments import HERE, PeerError, output_of, python_of, read_header
from kept import today
from table import place

from edge_distill_bench.measure import this_machine
from edge_distill_export.activations import importance_matrix
from edge_distill_export.artifact import Source, float_source, prepare
from edge_distill_export.calibration import heldout_texts
from edge_distill_export.checkpoint import load_checkpoint
from edge_distill_export.collect import Calibration, calibration_texts
from edge_distill_export.families import linear_names
from edge_distill_export.kquants import quantize_gguf
from edge_distill_export.parity import Divergence, References
from edge_distill_export.progress import stage
from edge_distill_runtime import EdgeDistillError, load
from edge_distill_runtime.bundles.opening import find
from edge_distill_runtime.engines.machine import usable_cpus

MARKERS = "<!-- front: begin -->", "<!-- front: end -->"
_SECONDS = 7200  # of one maker

Make = Callable[[Path], Path]
"""Writes a peer's files into an empty folder; what the runtime opens of them."""


@dataclass(frozen=True)
class Point:
    """One model made of the checkpoint."""

    name: str
    is_ours: bool
    bytes: int
    """Of the weights' files."""
    found: Divergence


class Peers:
    """How the peers' files of one checkpoint are made."""

    def __init__(self, checkpoint: str, folder: Path, envs: Path, calibrate: Path | None) -> None:
        self._checkpoint, self._folder, self._envs, self._calibrate = checkpoint, folder, envs, calibrate
        self.source: Source = prepare(load_checkpoint(checkpoint), None)

    def all(self) -> dict[str, Make]:
        makes: dict[str, Make] = {}
        for precision in ("q4_0", "q4_k_m", "q5_k_m"):
            makes[f"llama.cpp {precision}, importance matrix"] = partial(self.llama, precision)
        makes["model builder k_quant_mixed"] = self.model_builder
        makes["AutoRound q4_0"] = self.auto_round
        return makes

    def made(self, name: str, make: Make) -> Path:
        """The files of a peer, made unless an earlier call has made them."""
        place = self._folder / name.replace(" ", "-").replace(",", "")
        record = place / "opens.json"
        if not record.exists():
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            with stage(f"Making {name}"):
                opens = make(place)
            record.write_text(json.dumps(str(opens.relative_to(place))))
        return place / json.loads(record.read_text())

    @cached_property
    def calibration(self) -> Calibration:
        return calibration_texts(self.source, self._calibrate, self._folder)

    @cached_property
    def importance(self) -> dict[str, np.ndarray]:
        model = self.source.checkpoint.model
        return importance_matrix(model, self.calibration.texts, linear_names(model.config), lambda: None)

    def llama(self, precision: Literal["q4_0", "q4_k_m", "q5_k_m"], folder: Path) -> Path:
        """libllama's quantizer, with the mean squares of the inputs."""
        target = folder / "model.gguf"
        with float_source(self.source, self.importance, folder) as floats:
            quantize_gguf(floats.path, target, precision, importance=floats.importance, threads=usable_cpus())
        return target

    def model_builder(self, folder: Path) -> Path:
        self._run("model_builder", self._checkpoint, str(folder))
        shutil.rmtree(folder / "cache", ignore_errors=True)
        return folder

    def auto_round(self, folder: Path) -> Path:
        texts = folder / "texts.json"
        texts.write_text(json.dumps([text.tokens for text in self.calibration.texts]))
        self._run("auto_round_gguf", self._checkpoint, str(folder), str(texts))
        (found,) = folder.rglob("*.gguf")
        return found

    def _run(self, maker: str, *arguments: str) -> None:
        """A script of makers/ in its environment; `PeerError` with its last words."""
        script = HERE / "makers" / f"{maker}.py"
        header = read_header(script)
        assert header is not None, f"{script} has no header"
        command = [str(python_of(maker, header, self._envs)), str(script), *arguments]
        output_of(command, threads=usable_cpus(), seconds=_SECONDS, errors=self._folder / f"{maker}.err")


def measure(models: dict[str, Path], ours: frozenset[str], source: Source, folder: Path) -> list[Point]:
    """All of them against the checkpoint, the smallest first."""
    heldout = heldout_texts(source.style, source.checkpoint.tokenizer, source.context_length)
    points = []
    with TemporaryFile(dir=folder) as file:
        with stage("Computing the checkpoint's logits", len(heldout)) as advance:
            references = References(source.checkpoint.model, heldout, file, advance)
        for name, path in models.items():
            with stage(f"Comparing {name}", len(heldout)) as advance, load(path) as model:
                parity = references.compare(model.backend, advance)
            points.append(Point(name, name in ours, find(path).model_bytes, parity.overall))
    return sorted(points, key=lambda point: point.bytes)


def below(points: Sequence[Point]) -> list[str]:
    """A sentence for every peer: which of ours, no larger, is nearer to the checkpoint, if there is one."""
    found = []
    for peer in points:
        if peer.is_ours:
            continue
        kl, size = peer.found.kl_mean, f"{peer.bytes / 1e6:.1f} MB"
        rivals = [point for point in points if point.is_ours and point.bytes <= peer.bytes]
        if not rivals:
            found.append(f"- {peer.name} ({size}) is smaller than all of ours.")
            continue
        best = min(rivals, key=lambda point: point.found.kl_mean)
        verdict = "is nearer to the checkpoint" if best.found.kl_mean < kl else "is **not** nearer"
        found.append(
            f"- {peer.name} ({size}, {kl:.4f}): {best.name} {verdict} ({best.bytes / 1e6:.1f} MB, "
            f"{best.found.kl_mean:.4f})."
        )
    return found


def table(points: Sequence[Point], errors: dict[str, str]) -> str:
    """Markdown."""
    lines = ["| model | MB | mean KL | p99 KL | top-1 |", "| --- | ---: | ---: | ---: | ---: |"]
    for point in points:
        name = f"**{point.name}**" if point.is_ours else point.name
        kl = point.found
        lines.append(
            f"| {name} | {point.bytes / 1e6:.1f} | {kl.kl_mean:.4f} | {kl.kl_p99:.3f} | {kl.top1:.3f} |"
        )
    parts = ["\n".join(lines), "\n".join(below(points))]
    if errors:
        parts.append("\n".join(f"- {name} could not be made: `{error}`" for name, error in errors.items()))
    return "\n\n".join(parts)


def heading(options: argparse.Namespace, tokens: int) -> str:
    """Machine and command, without the machine's paths."""
    machine = this_machine()
    words = [options.checkpoint.name, *(f"{bundle.parent.name}/{bundle.name}" for bundle in options.bundles)]
    words += ["--folder", "FOLDER", "--envs", "ENVS"]
    if options.calibrate:
        words += ["--calibrate", options.calibrate.name]
    for part in options.only:
        words += ["--only", part]
    return "\n".join(
        [
            f"{tokens:,} held-out tokens; {today()}, {machine.cpu}, {machine.cpus} CPUs, {platform.system()}.",
            "",
            "```",
            f"python benchmarks/peers/front.py {shlex.join(words)}",
            "```",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(argv)
    options.folder.mkdir(parents=True, exist_ok=True)
    models = {f"edge-distill {bundle.name}": bundle for bundle in options.bundles}
    ours, errors = frozenset(models), {}
    try:
        peers = Peers(str(options.checkpoint), options.folder, options.envs, options.calibrate)
        for name, make in peers.all().items():
            if options.only and not any(part in name for part in options.only):
                continue
            try:
                models[name] = peers.made(name, make)
            except (PeerError, OSError, ValueError) as exc:
                errors[name] = str(exc)[:300]
                print(f"{name}: {errors[name]}", file=sys.stderr)
        points = measure(models, ours, peers.source, options.folder)
    except EdgeDistillError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    text = table(points, errors)
    print(text)
    if options.markdown:
        document = f"{heading(options, points[0].found.tokens)}\n\n{text}"
        options.markdown.write_text(place(options.markdown.read_text(), document, MARKERS))
    print(json.dumps({"points": [asdict(point) for point in points], "errors": errors}))
    return 0


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="a Hugging Face directory")
    parser.add_argument("bundles", nargs="+", type=Path, help="exports of it")
    parser.add_argument("--folder", type=Path, required=True, help="for the peers' files")
    parser.add_argument("--envs", type=Path, help="for virtual environments; by default FOLDER/envs")
    parser.add_argument("--calibrate", type=Path, help="traces; by default what export calibrates on")
    parser.add_argument("--only", action="append", default=[], help="part of a peer's name; repeatable")
    parser.add_argument("--markdown", type=Path, help="document with the two markers of the table")
    options = parser.parse_args(argv)
    options.envs = (options.envs or options.folder / "envs").resolve()
    options.folder, options.checkpoint = options.folder.resolve(), options.checkpoint.resolve()
    options.bundles = [bundle.resolve() for bundle in options.bundles]
    return options


if __name__ == "__main__":
    sys.exit(main())
