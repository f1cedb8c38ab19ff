"""A virtual environment for every script, made from its own header (PEP 723)."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
_BLOCK = re.compile(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$")  # PEP 723's, for this type
_STAMP = ".installed"
_FIRST = "torch=="  # alone: together with others pip may choose builds for GPUs, gigabytes of them


class PeerError(Exception):
    """Why a peer could not be installed or run, in one line."""


@dataclass(frozen=True)
class Header:
    """What a script's header says."""

    dependencies: tuple[str, ...]
    opens: tuple[str, ...]
    """What it measures: of "gguf", "onnx" and "checkpoint"."""
    without: tuple[str, ...] = ()
    """Packages that come along and are taken out again."""
    programs: tuple[str, ...] = ()
    """That build_llama_bench.sh makes."""
    in_project: bool = False
    """It runs in the project's own environment."""


def read_header(script: Path) -> Header | None:
    """Of a script; None for a module without one."""
    found = _BLOCK.search(script.read_text(encoding="utf-8"))
    if found is None:
        return None
    text = "".join(line[2:] if line[:2] == "# " else line[1:] for line in found["content"].splitlines(True))
    values = tomllib.loads(text)
    ours = values["tool"]["edge-distill-peers"]
    return Header(
        dependencies=tuple(values["dependencies"]),
        opens=tuple(ours["opens"]),
        without=tuple(ours.get("without", ())),
        programs=tuple(ours.get("programs", ())),
        in_project=ours.get("in_project", False),
    )


def scripts() -> dict[str, Header]:
    """All peers by the names of their scripts."""
    found = {path.stem: read_header(path) for path in sorted(HERE.glob("*.py"))}
    return {name: header for name, header in found.items() if header is not None}


def python_of(name: str, header: Header, envs: Path) -> Path:
    """The interpreter that a script runs in, its environment made where it is missing; `PeerError` with pip's error."""
    if header.in_project:
        return Path(sys.executable)
    folder = envs / name
    python, stamp = folder / "bin" / "python", folder / _STAMP
    wanted = hashlib.sha256(json.dumps([header.dependencies, header.without]).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"{name}: installing {', '.join(header.dependencies)}", file=sys.stderr)
    if not python.exists():
        _run([sys.executable, "-m", "venv", str(folder)])
    pip = [str(python), "-m", "pip"]
    first = [pin for pin in header.dependencies if pin.startswith(_FIRST)]
    if first:
        _run([*pip, "install", "-q", *first])
    _run([*pip, "install", "-q", *header.dependencies])
    if header.without:
        _run([*pip, "uninstall", "-q", "-y", *header.without])
    stamp.write_text(wanted)
    return python


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise PeerError(last_words(done.stderr))


def output_of(command: list[str], *, threads: int, seconds: float, errors: Path) -> str:
    """What a script prints in a fresh process; `PeerError` with its last words, all of them in the file `errors`."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=seconds,
            env=environment(threads),
        )
    except subprocess.TimeoutExpired as exc:
        raise PeerError(f"not done after {seconds} s") from exc
    if done.returncode:
        errors.write_text(done.stderr)
        raise PeerError(last_words(done.stderr))
    return done.stdout


def last_words(said: str) -> str:
    """The line that says what went wrong: the last that looks like an error, else the last."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(ERROR|[\w.]*(Error|Exception)|error)\b", line)]
    return (errors or lines or ["it ended without a word"])[-1][:300]


def environment(threads: int) -> dict[str, str]:
    """Of the scripts' processes: as many threads, no network, nothing of this project's path."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return kept | {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
