"""The device app runs as it stands in the repository, in a process of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runtime.bundles import write_manifest

APP = Path(__file__).parents[2] / "examples" / "device_app.py"


def start(bundle: Path, cache: Path, prepare: Callable[[], None] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", str(APP), str(bundle)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"XDG_CACHE_HOME": str(cache)},
        preexec_fn=prepare,
    )


def test_it_is_short_and_needs_the_runtime_alone() -> None:
    lines = APP.read_text().splitlines()
    assert len(lines) < 60
    imports = {line.split()[1] for line in lines if line.startswith(("import ", "from "))}
    assert imports == {"json", "signal", "sys", "threading", "edge_distill_runtime"}


def test_every_sentence_becomes_a_command_of_the_form(int4_bundle: Path, tmp_path: Path) -> None:
    outputs = []
    for _ in range(2):  # the second start finds the lesson on the disk
        done = start(int4_bundle, tmp_path).communicate("we need milk\n\nrice for 12 minutes\n", timeout=60)
        outputs.append(done)
    (out, errors), again = outputs
    assert errors == ""
    assert again == outputs[0]
    assert any(tmp_path.rglob("*")), "the lesson was not kept"
    commands = [line.rpartition("\033[0m")[2] for line in out.splitlines() if line.endswith(("}", '"'))]
    assert len(commands) == 2
    for text in commands:
        command = json.loads(text)
        assert list(command) == ["action", "item", "minutes"]
        assert command["action"] in ("timer", "shopping", "none")
        assert len(command["item"]) <= 30
        assert 0 <= command["minutes"] <= 600


def test_ctrl_c_ends_the_sentence_and_not_the_app(int4_bundle: Path, tmp_path: Path) -> None:
    with start(int4_bundle, tmp_path) as app:
        assert app.stdin is not None
        assert app.stdout is not None
        try:
            app.stdin.write("we need milk\n")
            app.stdin.flush()
            assert app.stdout.read(1) == "\033"  # it has begun to reason
            app.send_signal(signal.SIGINT)
            first = app.stdout.readline()
            while not first.rstrip().endswith(('never mind"', "}")):
                first = app.stdout.readline()
            app.stdin.close()
            assert first.rstrip().endswith('"never mind"')
            assert app.wait(30) == 0
        finally:
            app.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS binds on Linux alone")
def test_too_little_memory_is_told_in_numbers_and_a_short_context_tried(
    int4_bundle: Path, tmp_path: Path
) -> None:
    import resource

    bundle = tmp_path / "large"
    shutil.copytree(int4_bundle, bundle)
    write_manifest(bundle, "onnx", context_length=1 << 23)  # 8 GiB of keys and values

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))

    out, errors = start(bundle, tmp_path, limit).communicate("we need milk\n", timeout=60)
    assert "with a context of 8388608 needs 8" in errors
    assert re.search(r"this process may have (3\d{3}|4096) MiB", errors)  # what is left of 4 GiB
    assert "trying a short context" in errors
    assert "Traceback" not in errors
    assert out.endswith("}\n")


def test_a_missing_bundle_is_one_line(tmp_path: Path) -> None:
    app = start(tmp_path / "nothing", tmp_path)
    _, errors = app.communicate(timeout=60)
    assert app.returncode == 1
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
