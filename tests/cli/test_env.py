"""`edge-distill env`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from edge_distill import cli
from edge_distill.env import env, read_cpuinfo


def test_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["env", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema_version"] == 1
    assert document["packages"]["torch"] == version("torch")
    assert document["packages"]["edge-distill"] == "0.1.0"
    assert document["cpu"]["usable"] == len(os.sched_getaffinity(0))
    assert 0 < document["memory"]["usable"] <= document["memory"]["physical"]


def test_text_names_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["env"]) == 0
    text = capsys.readouterr().out
    for name in (*env().packages, "cpu features", "cpu usable", "memory usable"):
        assert name in text


def test_limits_of_the_process_are_seen() -> None:
    code = (
        "import os, resource; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))\n"
        "from edge_distill.cli import main; main(['env', '--json'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    document = json.loads(done.stdout)
    assert document["cpu"]["usable"] == 1
    assert document["memory"]["usable"] == 3 << 30


def test_packages_are_not_imported() -> None:
    code = "import sys; from edge_distill.env import env; env(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert not {"torch", "onnxruntime", "transformers", "numpy"} & set(done.stdout.split())


def test_cpuinfo_of_x86(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    processor = "model name\t: Some CPU @ 2.0GHz\nflags\t\t: fpu sse2 avx2 fma avx512_vnni\n\n"
    path.write_text(processor * 2)
    assert read_cpuinfo(path) == ("Some CPU @ 2.0GHz", ["avx2", "fma", "avx512_vnni"])


def test_cpuinfo_of_aarch64(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("Features\t: fp asimd asimddp i8mm\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n")
    assert read_cpuinfo(path) == ("implementer 0x41 part 0xd40", ["asimd", "asimddp", "i8mm"])


def test_no_cpuinfo(tmp_path: Path) -> None:
    name, features = read_cpuinfo(tmp_path / "missing")
    assert name
    assert features == []
