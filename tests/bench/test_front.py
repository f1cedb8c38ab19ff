"""The front: peers' files of one checkpoint at their true sizes; nothing is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edge_distill_export.checkpoint import load_checkpoint
from tests.bench.test_peers import ROOT, module
from tests.export.bundle_files import source_of, write_bundle
from tests.export.conftest import STUDENT
from tests.random_models import save_checkpoint

pytestmark = pytest.mark.usefixtures("peers_on_path")


def point(name: str, size: float, kl: float, *, is_ours: bool) -> Any:
    front = module("front")
    return front.Point(name, is_ours, round(size * 1e6), front.Divergence(100, kl, 10 * kl, 0.9))


def test_a_peer_is_compared_with_the_best_of_ours_that_is_no_larger() -> None:
    ours = [point("a", 90, 0.03, is_ours=True), point("b", 100, 0.02, is_ours=True)]
    peers = [
        point("small", 80, 0.5, is_ours=False),
        point("level", 90, 0.2, is_ours=False),
        point("between", 99.9, 0.025, is_ours=False),
        point("large", 110, 0.021, is_ours=False),
    ]
    small, level, between, large = module("front").below([*ours, *peers])
    assert small == "- small (80.0 MB) is smaller than all of ours."
    assert level == "- level (90.0 MB, 0.2000): a is nearer to the checkpoint (90.0 MB, 0.0300)."
    assert between == "- between (99.9 MB, 0.0250): a is **not** nearer (90.0 MB, 0.0300)."
    assert large == "- large (110.0 MB, 0.0210): b is nearer to the checkpoint (100.0 MB, 0.0200)."


def test_the_document_has_the_markers() -> None:
    front = module("front")
    document = (ROOT / "docs" / "quantization.md").read_text()
    begin, end = front.MARKERS
    assert f"{begin}\n\nnew\n\n{end}" in module("table").place(document, "new", front.MARKERS)


def test_front_of_a_random_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = save_checkpoint(tmp_path / "student", STUDENT)
    bundle = tmp_path / "student-q8_0"
    write_bundle(source_of(load_checkpoint(saved)), "gguf:q8_0", bundle)
    front = module("front")

    def fail(peers: Any, maker: str, *arguments: str) -> None:
        raise front.PeerError(f"no {maker}")

    monkeypatch.setattr(front.Peers, "_run", fail)
    document = tmp_path / "page.md"
    document.write_text("# Title\n{}\n{}\n".format(*front.MARKERS))
    traces = tmp_path / "traces.jsonl"
    turns = [{"role": "user", "content": "1 + 2?"}, {"role": "assistant", "content": "It is 3."}]
    traces.write_text(json.dumps({"messages": turns}) + "\n")
    call = [str(saved), str(bundle), "--folder", str(tmp_path / "front"), "--markdown", str(document)]
    call += ["--calibrate", str(traces)]
    only = ["--only", "q4_0", "--only", "builder"]
    assert front.main([*call, *only]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["errors"] == {
        "model builder k_quant_mixed": "no model_builder",
        "AutoRound q4_0": "no auto_round_gguf",
    }
    llama, ours = found["points"]
    assert (llama["name"], ours["name"]) == ("llama.cpp q4_0, importance matrix", "edge-distill student-q8_0")
    made = tmp_path / "front" / "llama.cpp-q4_0-importance-matrix" / "model.gguf"
    assert llama["bytes"] == made.stat().st_size
    assert llama["found"]["kl_mean"] > ours["found"]["kl_mean"]
    assert "**edge-distill student-q8_0**" in document.read_text()
    before = made.stat().st_mtime_ns
    assert front.main([*call, "--only", "llama.cpp q4_0"]) == 0
    assert made.stat().st_mtime_ns == before


def test_the_heading_says_what_was_asked(tmp_path: Path) -> None:
    front = module("front")
    asked = ["student", "a/q4_0", "b/int4", "--folder", str(tmp_path), "--calibrate", "/x/traces.jsonl"]
    options = front.arguments([*asked, "--only", "llama.cpp", "--only", "model builder"])
    assert (
        "python benchmarks/peers/front.py student a/q4_0 b/int4 --folder FOLDER --envs ENVS "
        "--calibrate traces.jsonl --only llama.cpp --only 'model builder'"
    ) in front.heading(options, 1234)
