"""Run exports in child processes, kill each at a random moment, and check what lies there afterwards.

    python killed_exports.py CHECKPOINT TRACES OUT KILLS SEED

Prints one JSON line. A process of its own, because it forks: nothing here may have started threads before.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from edge_distill_export import export
from edge_distill_runtime.bundles.manifest import read_manifest, verify_files

TARGETS = ["gguf:q4_0", "onnx:int4"]


def run(checkpoint: str, traces: Path, out: Path) -> None:
    export(checkpoint, to=TARGETS, out=out, calibrate=traces, limit_kl=3.0, force=True)


def bundles(out: Path) -> list[str]:
    """Names of what can be seen in `out`, each checked to be whole."""
    names = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    for name in names:
        verify_files(out / name, read_manifest(out / name))
    return names


def main() -> None:
    checkpoint, traces, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    kills, generator = int(sys.argv[4]), random.Random(int(sys.argv[5]))
    out.mkdir()
    run(checkpoint, traces, out.with_name("warm"))  # imports what the children then need not
    started = time.monotonic()
    run(checkpoint, traces, out.with_name("warm"))
    duration = time.monotonic() - started
    seen, killed = [], 0
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            run(checkpoint, traces, out)
            os._exit(0)
        time.sleep(generator.uniform(0, duration))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status)
        seen.append(len(bundles(out)))
    stages = sum(path.name.startswith(".") for path in out.iterdir())
    run(checkpoint, traces, out)
    left = sorted(path.name for path in out.iterdir())
    print(json.dumps({"duration": duration, "killed": killed, "seen": seen, "stages": stages, "left": left}))


if __name__ == "__main__":
    main()
