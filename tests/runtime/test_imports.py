"""The runtime stays slim: what it imports, how fast, and what it says when an engine is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ["llama_cpp", "onnxruntime", "torch", "transformers", "numpy", "tokenizers", "jinja2", "onnx", "gguf"]


def run(code: str) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_fast_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import edge_distill_runtime; "
        "seconds = time.perf_counter() - start; import json; "
        f"print(json.dumps([seconds, [name for name in {HEAVY} if name in sys.modules]]))"
    )
    results = [json.loads(run(code)) for _ in range(3)]
    assert all(loaded == [] for _, loaded in results)
    assert min(seconds for seconds, _ in results) < 0.1


def test_using_it_loads_one_engine(bundles: dict[str, Path]) -> None:
    code = (
        "import sys; from edge_distill_runtime import load\n"
        "with load({path!r}, threads=1) as model: model.generate('hi', max_tokens=2)\n"
        "print([name for name in ('llama_cpp', 'onnxruntime', 'torch', 'transformers', 'onnx', 'gguf')"
        " if name in sys.modules])"
    )
    assert run(code.format(path=str(bundles["gguf"]))) == "['llama_cpp']"
    assert run(code.format(path=str(bundles["onnx"]))) == "['onnxruntime']"


@pytest.mark.parametrize(("kind", "module"), [("gguf", "llama_cpp"), ("onnx", "onnxruntime")])
def test_missing_extra_names_the_command(kind: str, module: str, bundles: dict[str, Path]) -> None:
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from edge_distill_runtime import MissingExtra, load\n"
        f"try: load({str(bundles[kind])!r})\n"
        "except MissingExtra as error: print(error.hint)"
    )
    assert run(code) == f'pip install "edge-distill-runtime[{kind}]"'


def test_public_names() -> None:
    import edge_distill_runtime

    for name in edge_distill_runtime.__all__:
        assert getattr(edge_distill_runtime, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = edge_distill_runtime.nonsense
    errors = [getattr(edge_distill_runtime, name) for name in edge_distill_runtime.__all__ if "Error" in name]
    codes = [error.exit_code for error in [*errors, edge_distill_runtime.MissingExtra]]
    assert sorted(codes) == [1, 2, 3, 4, 5, 6, 7]


def test_errors_are_one_line() -> None:
    from edge_distill_runtime import InputError

    error = InputError("some-code", "the value is 3, the limit 2", "ask for less")
    assert str(error) == "the value is 3, the limit 2 (ask for less)"
    assert str(InputError("some-code", "what")) == "what"
    assert (error.code, error.what, error.hint) == (
        "some-code",
        "the value is 3, the limit 2",
        "ask for less",
    )
