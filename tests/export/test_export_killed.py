"""SIGKILL at 20 random points of an export: what can be seen is always whole, and nothing is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.export.conftest import STUDENT
from tests.export.test_export import TRACE
from tests.random_models import save_checkpoint

KILLS = 20
SEED = 7


def test_a_killed_export_leaves_nothing_half_made(tmp_path: Path) -> None:
    student = save_checkpoint(tmp_path / "student", STUDENT)
    traces = tmp_path / "traces.jsonl"
    traces.write_text("\n".join(json.dumps(TRACE).replace("28", str(n)) for n in range(20, 28)))
    print(f"seed {SEED}")
    script = Path(__file__).with_name("killed_exports.py")
    output = subprocess.run(
        [
            sys.executable,
            str(script),
            str(student),
            str(traces),
            str(tmp_path / "out"),
            str(KILLS),
            str(SEED),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert output.returncode == 0, output.stderr[-2000:]
    report = json.loads(output.stdout.splitlines()[-1])
    assert report["killed"] >= KILLS * 3 // 4, report
    assert report["stages"] <= 2, report  # each export removes what the one before it left
    assert report["left"] == ["student-int4", "student-q4_0"], report
