"""The house: two wheels, one-way arrows, light imports, nothing of one machine in the files."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from edge_distill.cli import VERBS

ROOT = Path(__file__).parents[1]
ROOT_PACKAGES = {"edge_distill", "edge_distill_export", "edge_distill_bench"}
PACKAGES = [*sorted(ROOT_PACKAGES), "edge_distill_runtime"]
HEAVY = {
    "accelerate", "datasets", "gguf", "llama_cpp", "onnx", "onnx_ir", "onnxruntime", "onnxruntime_genai", "peft",
    "rich", "torch", "transformers", "trl", "typer",
}  # fmt: skip
NOT_IN_RUNTIME = {"click", "gguf", "onnx", "pydantic", "rich", "torch", "transformers", "typer", "yaml"}


def project(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text())


def wheel_files(folder: Path) -> set[str]:
    return {file.distribution_path for file in WheelBuilder(str(folder)).recurse_included_files()}


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def modules() -> list[str]:
    names = []
    for package in PACKAGES:
        names.append(package)
        path = importlib.import_module(package).__path__
        names += [name for _, name, _ in pkgutil.walk_packages(path, f"{package}.") if "__main__" not in name]
    return names


def loaded_by(code: str) -> set[str]:
    """Top-level modules in a new interpreter after running the code."""
    code += "\nimport sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_wheels_share_no_file() -> None:
    toolchain, runtime = wheel_files(ROOT), wheel_files(ROOT / "runtime")
    assert {name.partition("/")[0] for name in toolchain} == ROOT_PACKAGES
    assert {name.partition("/")[0] for name in runtime} == {"edge_distill_runtime"}
    typed = {f"{package}/py.typed" for package in PACKAGES}
    assert typed <= toolchain | runtime
    problems = [name for name in toolchain if name.startswith("edge_distill_export/problems/")]
    assert problems, "the built-in problems are missing from the wheel"


def test_wheels_agree() -> None:
    toolchain, runtime = project(ROOT)["project"], project(ROOT / "runtime")["project"]
    assert toolchain["version"] == runtime["version"]
    assert f"## {toolchain['version']}" in (ROOT / "CHANGELOG.md").read_text()
    assert (ROOT / "LICENSE").read_bytes() == (ROOT / "runtime" / "LICENSE").read_bytes()
    assert sorted(Requirement(text).name for text in runtime["dependencies"]) == [
        "jinja2",
        "numpy",
        "tokenizers",
    ]


def test_every_requirement_is_pinned_inside_its_range() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    wanted = project(ROOT)["dependency-groups"]["dev"]
    for folder in (ROOT, ROOT / "runtime"):
        table = project(folder)["project"]
        wanted += table["dependencies"]
        for extra in table["optional-dependencies"].values():
            wanted += extra
    for text in wanted:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        if not name.startswith("edge-distill"):
            assert requirement.specifier.contains(pins[name]), f"{text} excludes the tested {pins[name]}"
    assert pins["torch"] == "2.13.0"
    assert pins["transformers"] == "5.23.0"


def test_public_names_exist() -> None:
    for name in modules():
        module = sys.modules.get(name) or importlib.import_module(name)
        for public in getattr(module, "__all__", []):
            assert hasattr(module, public), f"{name}.__all__ names {public}, which is not there"


@pytest.mark.parametrize("first", ["export", "inspect", "plan", "verify"])
def test_verb_is_the_function_even_after_its_module_was_imported(first: str) -> None:
    code = f"from importlib import import_module\nimport_module('edge_distill_export.{first}')\n"
    code += "from edge_distill_export import export, inspect, plan, verify\n"
    code += "assert all(callable(verb) for verb in (export, inspect, plan, verify))"
    assert "edge_distill_export" in loaded_by(code)


def test_packages_import_nothing_heavy() -> None:
    assert not loaded_by(f"import {', '.join(PACKAGES)}") & HEAVY
    assert not loaded_by("import edge_distill_runtime") & {"numpy", "tokenizers"}


@pytest.mark.parametrize("verb", VERBS)
def test_verb_module_imports_nothing_heavy(verb: str) -> None:
    module = VERBS[verb].function.partition(":")[0]
    assert not loaded_by(f"import {module}") & HEAVY


def test_runtime_works_where_the_toolchain_is_not_installed() -> None:
    names = [name for name in modules() if name.startswith("edge_distill_runtime")]
    assert len(names) > 5
    blocked = sorted(NOT_IN_RUNTIME | ROOT_PACKAGES)
    code = f"import sys\nsys.modules.update(dict.fromkeys({blocked}))\nimport {', '.join(names)}"
    loaded_by(code)


def test_files_name_neither_a_machine_nor_a_registry() -> None:
    home = str(Path.home())
    paths = [re.escape(str(ROOT)), *([re.escape(home) + r"/"] if len(home) > 1 else [])]
    registries = [r"\bpy[p]i\.org", r"python[h]osted\.org", r"download\.py[t]orch", r"registry\.np[m]js"]
    forbidden = re.compile("|".join(paths + registries).encode())
    found = [path for path in tracked_files() if forbidden.search(path.read_bytes())]
    assert not found
