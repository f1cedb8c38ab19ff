"""The league table: every engine on the same model, prompts and threads, each in an environment of its own.

    python benchmarks/peers/run.py CHECKPOINT BUNDLE... --folder FOLDER [--envs FOLDER] [--programs FOLDER]
        [--only NAME] [--parts quality speed] [--rounds 3] [--threads N] [--markdown FILE]

Runs in the project's environment. Quality (KL to the checkpoint in fp32, short problems) is measured once; speed is
measured in turn, in a fresh process for every engine and round. All of it is kept in FOLDER, and a later call measures
what is missing there: `--rounds 1`, `--rounds 2` and `--rounds 3` make the same table as three rounds in one call.
Programs are built by build_llama_bench.sh. With --markdown the table is written between two markers of a document.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from environments import HERE, Header, PeerError, output_of, python_of, scripts
from heading import heading
from kept import Kept, Measured, key_of, today
from protocol import LINE
from table import Entry, place, table
from work import Work, count_right, make_work, mean_kl

from edge_distill_bench.measure import in_turn
from edge_distill_bench.noise import fixed_computation
from edge_distill_runtime import EdgeDistillError, load
from edge_distill_runtime.bundles.opening import find

_SECONDS = 1800  # of one process


@dataclass
class Entrant:
    """One script on one model."""

    script: str
    header: Header
    model: str
    name: str
    precision: str | None
    """Of a bundle; of all else the script says it."""
    python: Path | None = None
    speed: list[Measured] = field(default_factory=list)
    quality: Measured | None = None
    error: str = ""

    @property
    def measured(self) -> list[Measured]:
        return [*self.speed, *([self.quality] if self.quality else [])]

    @property
    def entry(self) -> Entry:
        lines = [one.line for one in self.measured]
        said = [line["precision"] for line in lines if line["precision"]]
        engine = lines[0]["engine"] if lines else self.script
        precision = self.precision or (said[0] if said else "-")
        speed = tuple(one.line for one in self.speed)
        return Entry(self.name, engine, precision, speed, self.quality and self.quality.line, self.error)


def entrants(checkpoint: str, bundles: Sequence[str], only: Sequence[str]) -> list[Entrant]:
    """Every script on everything that it opens; `only` are parts of names."""
    found = []
    for script, header in scripts().items():
        if "checkpoint" in header.opens:
            found.append(Entrant(script, header, checkpoint, label(script), None))
        for bundle in bundles:
            manifest = find(Path(bundle)).manifest
            if manifest.format not in header.opens:
                continue
            model = bundle
            if manifest.format == "gguf" and not header.in_project:
                model = str(find(Path(bundle)).model_path)
            name = f"{label(script)}, {manifest.format} {manifest.precision.target}"
            found.append(Entrant(script, header, model, name, manifest.precision.target))
    return [one for one in found if not only or any(part in one.name for part in only)]


def label(script: str) -> str:
    return {
        "edge_distill_itself": "edge-distill",
        "llama_bench": "llama.cpp (llama-bench)",
        "llama_cpp_python": "llama-cpp-python",
        "ort_genai": "onnxruntime-genai",
        "optimum_ort": "optimum ORTModelForCausalLM",
        "openvino_int4": "OpenVINO GenAI",
        "transformers_bf16": "transformers",
        "torchao_int4": "transformers + torchao",
        "ctranslate2_int8": "CTranslate2",
    }.get(script, script)


class League:
    """All entrants and what they are asked."""

    def __init__(self, options: argparse.Namespace, work: Work, peers: Sequence[Entrant]) -> None:
        self.options, self.work, self.peers = options, work, peers
        self.files = {part: Kept(options.folder / f"{part}.jsonl") for part in ("quality", "speed")}
        for peer in peers:
            peer.speed = self.files["speed"].of(self.key(peer, "speed"))
            peer.quality = next(reversed(self.files["quality"].of(self.key(peer, "quality"))), None)

    def prepare(self, peer: Entrant) -> None:
        if peer.header.programs and not self.options.programs:
            raise PeerError("not built: build_llama_bench.sh FOLDER, then --programs FOLDER/build/bin")
        peer.python = python_of(peer.script, peer.header, self.options.envs)
        self.call(peer, "prepare")

    def rounds_left(self) -> int:
        """Until the one that has had the fewest has had all."""
        return max(self.options.rounds - min((len(peer.speed) for peer in self.peers), default=0), 0)

    def speed(self, peer: Entrant) -> None:
        """One round more, unless the peer has had all of them."""
        if len(peer.speed) >= self.options.rounds:
            return
        start = time.perf_counter()
        fixed_computation(self.options.threads)
        noise = time.perf_counter() - start
        found = Measured(self.line(peer, "speed"), today(), noise, self.options.load)
        peer.speed.append(found)
        self.files["speed"].add(self.key(peer, "speed"), found)

    def quality(self, peer: Entrant) -> None:
        if peer.quality is not None:
            return
        found = self.line(peer, "quality")
        if found["logits"]:
            path = Path(found["logits"])
            found["kl"] = mean_kl(path, self.work)
            path.unlink()
        if found["answers"] is not None:
            with load(self.options.bundles[0]) as model:
                found["right"] = count_right(found["answers"], self.work, model)
        peer.quality = Measured(found, today())
        self.files["quality"].add(self.key(peer, "quality"), peer.quality)

    def key(self, peer: Entrant, part: str) -> str:
        """Quality does not depend on the number of threads."""
        about = [peer.name, self.work.hash, *([str(self.options.threads)] if part == "speed" else [])]
        return key_of(about, HERE / f"{peer.script}.py", Path(peer.model), in_project=peer.header.in_project)

    def line(self, peer: Entrant, part: str) -> dict[str, Any]:
        found = json.loads(self.call(peer, part).splitlines()[-1])
        if set(found) != set(LINE):
            raise PeerError(f"{peer.script} printed other keys: {sorted(set(found) ^ set(LINE))}")
        return dict(found)

    def call(self, peer: Entrant, part: str) -> str:
        """Run a part of a script in a fresh process; its output."""
        folder = self.options.folder / peer.script
        named = {
            "model": peer.model,
            "work": self.work.path,
            "folder": folder,
            "threads": self.options.threads,
            "programs": self.options.programs or "",
        }
        arguments = [str(part) for name, value in named.items() for part in (f"--{name}", value)]
        command = [str(peer.python), str(HERE / f"{peer.script}.py"), part, *arguments]
        try:
            return output_of(
                command, threads=self.options.threads, seconds=_SECONDS, errors=folder / f"{part}.err"
            )
        except PeerError as exc:
            raise PeerError(f"{part}: {exc}") from exc

    def run(self, what: Callable[[Entrant], None], peer: Entrant) -> None:
        """One step of one entrant; the first failure is its last step, and is told in the table."""
        if peer.error:
            return
        print(f"{peer.name}: {what.__name__}", file=sys.stderr)
        try:
            what(peer)
        except (PeerError, OSError, ValueError, LookupError) as exc:
            peer.error = str(exc)[:300]
            print(f"{peer.name}: {peer.error}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(argv)
    options.folder.mkdir(parents=True, exist_ok=True)
    options.load = os.getloadavg()[0]
    try:
        work = make_work(options.checkpoint, options.folder, options)
        peers = entrants(options.checkpoint, options.bundles, options.only)
    except EdgeDistillError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    league = League(options, work, peers)
    for peer in peers:
        league.run(league.prepare, peer)
    if "quality" in options.parts:
        for peer in peers:
            league.run(league.quality, peer)
    if "speed" in options.parts:
        in_turn([partial(league.run, league.speed, peer) for peer in peers], league.rounds_left())
    text = table([peer.entry for peer in peers], len(work.problems))
    print(text)
    if options.markdown:
        speeds = [one for peer in peers for one in peer.speed]
        measured = [one for peer in peers for one in peer.measured]
        document = f"{heading(options, measured, speeds)}\n\n{text}"
        options.markdown.write_text(place(options.markdown.read_text(), document))
    print(json.dumps([summary(peer.entry) for peer in peers]))
    return 0


def summary(entry: Entry) -> dict[str, Any]:
    """Of the JSON line."""
    found = {"name": entry.name, "speed": entry.speed, "error": entry.error}
    return found | {key: entry.of_quality(key) for key in ("kl", "right")}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", help="a Hugging Face directory")
    parser.add_argument("bundles", nargs="+", help="exports of it")
    parser.add_argument("--folder", type=Path, required=True, help="for conversions and what was measured")
    parser.add_argument("--envs", type=Path, help="for virtual environments; by default FOLDER/envs")
    parser.add_argument("--programs", help="folder with llama-bench and llama-perplexity")
    parser.add_argument("--only", action="append", default=[], help="part of an engine's name; repeatable")
    parser.add_argument("--parts", nargs="+", choices=("quality", "speed"), default=("quality", "speed"))
    parser.add_argument("--rounds", type=int, default=3, help="of speed, those in FOLDER included (3)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--items", type=int, default=40, help="problems (40)")
    parser.add_argument("--windows", type=int, default=6, help="of text for KL, 127 tokens each (6)")
    parser.add_argument("--markdown", type=Path, help="document with the two markers of the table")
    options = parser.parse_args(argv)
    options.envs = options.envs or options.folder / "envs"
    options.folder, options.envs = options.folder.resolve(), options.envs.resolve()
    options.programs = options.programs and str(Path(options.programs).resolve())
    options.checkpoint = str(Path(options.checkpoint).resolve())
    options.bundles = [str(Path(bundle).resolve()) for bundle in options.bundles]
    return options


if __name__ == "__main__":
    sys.exit(main())
