"""What all scripts here share: arguments, the same measurements, and the same output line.

    SCRIPT PART --model PATH --work FILE --folder FOLDER --threads N

PART is `prepare` (convert the model into FOLDER), `speed` or `quality`. `speed` and `quality` print one JSON object as
their last line, always with the keys of `LINE`; what a part does not measure is null. Everything is asked in token
ids, so no tokenizer's time is in the numbers. Needs numpy and the standard library alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

PARTS = ("prepare", "speed", "quality")
LINE = (
    "schema_version", "engine", "versions", "precision", "threads", "part", "size_bytes", "load_s", "ttft_s",
    "prefill_tps", "decode_tps", "peak_rss", "own", "answers", "logits", "kl", "notes",
)  # fmt: skip
"""`ttft_s`, `prefill_tps` and `decode_tps` are lists of samples; `own` is what the engine itself counted in the same
run; `answers` are token ids; `logits` is a file of float32 [rows, vocab]; `kl` is by the engine's own tool."""
SCHEMA_VERSION = 1

OnToken = Callable[[int], bool]
"""Is given every new token as soon as it is there; True ends the generation."""


class Peer(ABC):
    """An engine with a loaded model; greedy, and nothing of a prompt is kept for the next one."""

    engine: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    precision: ClassVar[str | None] = None
    """None: as the file has it."""

    @classmethod  # noqa: B027 - most have nothing to convert
    def prepare(cls, options: argparse.Namespace) -> None:
        """Convert `options.model` into `options.folder`, once."""

    @abstractmethod
    def __init__(self, options: argparse.Namespace, context: int) -> None:
        """Load the model for so many tokens."""

    @abstractmethod
    def size(self) -> int:
        """Bytes of the weights' files, or of the weights where they are made in memory."""

    @abstractmethod
    def generate(self, tokens: Sequence[int], count: int, on_token: OnToken) -> None:
        """Up to `count` new tokens behind a prompt; no token ends it."""

    @abstractmethod
    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """float32 [n, vocab]: row i is what follows token i."""

    def own(self) -> dict[str, float]:
        """`decode_tps` and `ttft_s` of the last generation by the engine's own counters, where it has some."""
        return {}


def line(**values: Any) -> dict[str, Any]:
    """An output line; raises KeyError for a key that it does not have."""
    if unknown := values.keys() - set(LINE):
        raise KeyError(f"no key of an output line: {sorted(unknown)}")
    return dict.fromkeys(LINE) | {"schema_version": SCHEMA_VERSION, "versions": {}, "notes": []} | values


def speed(peer: type[Peer], options: argparse.Namespace, work: dict[str, Any]) -> dict[str, Any]:
    """Load, warm up, time to first token, prefill and decoding, once each, and the peak of memory."""
    start = time.perf_counter()
    engine = peer(options, work["context"])
    load = time.perf_counter() - start
    stamps(engine, work["warm"], work["warm_up"])
    first = [stamps(engine, prompt, 1)[1] for prompt in work["first"]]
    prefill = stamps(engine, work["long"], 1)[1]
    times = stamps(engine, work["decode"], 1 + work["new_tokens"])
    return line(
        load_s=load,
        ttft_s=first,
        prefill_tps=[len(work["long"]) / prefill],
        decode_tps=[work["new_tokens"] / (times[-1] - times[1])],
        own=engine.own(),
        size_bytes=engine.size(),
        peak_rss=peak_rss(),
    )


def stamps(
    engine: Peer, tokens: Sequence[int], count: int, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Seconds from the start of a generation: 0, and one reading behind each of `count` tokens."""
    times = [clock()]

    def on_token(_: int) -> bool:
        times.append(clock())
        return len(times) > count

    engine.generate(tokens, count, on_token)
    if len(times) != count + 1:
        raise RuntimeError(f"{engine.engine} gave {len(times) - 1} of {count} tokens")
    return [reading - times[0] for reading in times]


def quality(peer: type[Peer], options: argparse.Namespace, work: dict[str, Any]) -> dict[str, Any]:
    """Logits of the texts and answers to the questions."""
    engine = peer(options, work["context"])
    rows = [
        engine.logits(text["tokens"])[text["prompt"] - 1 : len(text["tokens"]) - 1] for text in work["texts"]
    ]
    path = Path(options.folder) / "logits.npy"
    np.save(path, np.concatenate(rows).astype(np.float32))
    answers = [answer(engine, question, work) for question in work["questions"]]
    return line(logits=str(path), answers=answers, size_bytes=engine.size())


def answer(engine: Peer, question: Sequence[int], work: dict[str, Any]) -> list[int]:
    """New tokens, up to and with the one that ends an answer."""
    tokens: list[int] = []

    def on_token(token: int) -> bool:
        tokens.append(token)
        return token in work["stop"] or len(tokens) >= work["answer_tokens"]

    engine.generate(question, work["answer_tokens"], on_token)
    return tokens


def peak_rss() -> int:
    """Highest resident size of this process, bytes."""
    for entry in Path("/proc/self/status").read_text().splitlines():
        if entry.startswith("VmHWM:"):
            return int(entry.split()[1]) * 1024
    raise RuntimeError("this system does not say the peak of memory")


def bytes_of(paths: Iterable[Path]) -> int:
    """Of files."""
    return sum(path.stat().st_size for path in paths)


def run(
    peer: type[Peer], measure: dict[str, Callable[..., dict[str, Any]]] | None = None, argv: Any = None
) -> None:
    """Entry point of a script; `measure` replaces how a part is measured."""
    options = arguments(peer.engine, argv)
    Path(options.folder).mkdir(parents=True, exist_ok=True)
    if options.part == "prepare":
        peer.prepare(options)
        return
    work = json.loads(Path(options.work).read_text())
    found = {"speed": speed, "quality": quality, **(measure or {})}[options.part](peer, options, work)
    found |= {"engine": peer.engine, "part": options.part, "threads": options.threads}
    found["precision"] = found["precision"] or peer.precision
    found["versions"] |= {name: version(name) for name in peer.packages}
    sys.stdout.flush()
    print(json.dumps(found))


def arguments(engine: str, argv: Any = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=f"{engine} on the same model, prompts and threads")
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--model", required=True, help="a checkpoint, a GGUF file or a bundle")
    parser.add_argument("--work", help="the token ids, written by run.py")
    parser.add_argument("--folder", required=True, help="for what is converted and for logits")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--programs", default="", help="folder with llama-bench and llama-perplexity")
    return parser.parse_args(argv)


def older_checkpoint(model: str, folder: str) -> Path:
    """The checkpoint as transformers 4 writes it: that silently takes a rope_theta of 10,000 from a newer config."""
    source, target = Path(model).resolve(), Path(folder).resolve() / "checkpoint"
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file() and not (target / path.name).is_symlink() and path.suffix != ".json":
            (target / path.name).symlink_to(path)
    config = json.loads((source / "config.json").read_text())
    rope = config.pop("rope_parameters", {})
    if rope.get("rope_type", "default") != "default":
        raise RuntimeError(f"rope_parameters {rope} have no older form here")
    config |= {"rope_theta": rope.get("rope_theta", config.get("rope_theta", 10000.0)), "rope_scaling": None}
    config["torch_dtype"] = config.pop("dtype", "float32")
    (target / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((source / "tokenizer_config.json").read_text())
    tokenizer |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    tokenizer.pop("backend", None)
    (target / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    for name in ("tokenizer.json", "generation_config.json", "special_tokens_map.json"):
        if (source / name).exists():
            (target / name).write_bytes((source / name).read_bytes())
    return target
