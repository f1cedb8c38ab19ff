"""The runtime's wheel in a virtual environment of its own: what it needs, and that it reasons with no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path
from typing import Any

import pytest
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from edge_distill_runtime import load

RUNTIME = Path(__file__).parents[2] / "runtime"
ABSENT = [
    "accelerate", "edge_distill", "edge_distill_export", "gguf", "llama_cpp", "onnx", "onnxruntime_genai", "pydantic",
    "pytest", "rich", "safetensors", "torch", "transformers", "typer",
]  # fmt: skip
QUESTION = "How many rolls are on 4 trays of 28?"


def requirements(installed: Distribution, extra: str) -> set[str]:
    """Names of what a distribution needs here, with that extra or with "" for none."""
    parsed = (Requirement(text) for text in installed.requires or ())
    return {
        canonicalize_name(wanted.name)
        for wanted in parsed
        if not wanted.marker or wanted.marker.evaluate({"extra": extra})
    }


def closure(first: Distribution, extra: str) -> dict[str, Distribution]:
    """Everything that pip would install for it: from the metadata, as pip does."""
    found: dict[str, Distribution] = {}
    waiting = requirements(first, extra)
    while waiting:
        name = waiting.pop()
        found[name] = distribution(name)
        waiting |= requirements(found[name], "") - found.keys()
    return found


def link_files(installed: Distribution, site: Path) -> None:
    """A distribution's files at the same places under `site`; its scripts, outside of it, are left out."""
    for file in installed.files or ():
        if ".." not in file.parts:
            target = site / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(Path(str(file.locate())))


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with the wheel and the extra `onnx`.

    pip installs the wheel. What it depends on is linked from this environment, so that no network is needed.
    """
    folder = tmp_path_factory.mktemp("slim")
    wheel = next(WheelBuilder(str(RUNTIME)).build(directory=str(folder), versions=["standard"]))
    venv.create(folder / "venv", with_pip=False, symlinks=os.name != "nt")
    scripts = "Scripts" if os.name == "nt" else "bin"
    interpreter = folder / "venv" / scripts / "python"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(interpreter),
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
    ]
    done = subprocess.run([*pip, wheel], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    code = "import json, sysconfig; print(json.dumps(sysconfig.get_path('purelib')))"
    site = Path(run(interpreter, code))
    (own,) = distributions(path=[str(site)])
    for needed in closure(own, "onnx").values():
        link_files(needed, site)
    return interpreter


def run(python: Path, code: str) -> Any:
    """The JSON that the code prints in the fresh environment, outside of which nothing is importable."""
    done = subprocess.run([str(python), "-I", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_only_what_it_needs_can_be_imported(python: Path) -> None:
    code = (
        "import importlib.util as u, json\n"
        f"print(json.dumps([name for name in {ABSENT} if u.find_spec(name)]))"
    )
    assert run(python, code) == []
    code = "import edge_distill_runtime as r, json, sys; print(json.dumps([r.__file__, sys.prefix]))"
    file, prefix = run(python, code)
    assert Path(prefix) in Path(file).parents, "the checkout was imported, not the wheel"


def test_import_takes_less_than_a_tenth_of_a_second(python: Path) -> None:
    code = (
        "import time; start = time.perf_counter(); import edge_distill_runtime\n"
        "print(time.perf_counter() - start)"
    )
    assert min(run(python, code) for _ in range(5)) < 0.1


def test_it_reasons(python: Path, bundles: dict[str, Path]) -> None:
    code = f"""
import json, sys
from edge_distill_runtime import load
with load({str(bundles["onnx"])!r}, threads=1) as model:
    generation = model.generate({QUESTION!r}, max_tokens=24, temperature=0)
    reasoning = model.reason({QUESTION!r}, samples=2, stop_when=None, max_tokens=24, temperature=1.0, seed=1)
tokens = [list(sample.tokens) for sample in reasoning.samples]
loaded = sorted({{name.partition(".")[0] for name in sys.modules}} & {{"jinja2", "onnxruntime", *{ABSENT!r}}})
print(json.dumps([generation.tokens, tokens, loaded]))
"""
    tokens, samples, loaded = run(python, code)
    with load(bundles["onnx"], threads=1) as model:
        expected = model.generate(QUESTION, max_tokens=24, temperature=0)
        drawn = model.sample(QUESTION, 2, max_tokens=24, temperature=1.0, seed=1)
    assert tokens == list(expected.tokens)
    assert len(tokens) > 4
    assert samples == [list(sample.tokens) for sample in drawn]
    assert loaded == ["onnxruntime"]
