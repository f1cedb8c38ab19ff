"""The peers: pinned headers, one output line, our numbers on the same file; nothing is installed."""

from __future__ import annotations

import ast
import importlib
import json
import shutil
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.requirements import Requirement

from edge_distill_bench.fidelity import measure_fidelity
from edge_distill_bench.fidelity_cache import write_reference
from edge_distill_bench.fidelity_texts import ForcedText
from edge_distill_export.checkpoint import load_checkpoint
from edge_distill_runtime import load
from tests.bench.conftest import PEERS
from tests.export.bundle_files import source_of, write_bundle
from tests.random_models import save_checkpoint, variant_named

ROOT = Path(__file__).parents[2]
# modules whose package has another name
PACKAGES = {"llama_cpp": "llama-cpp-python", "nncf": "nncf"}
PART_OF = {"optimum": {"optimum", "optimum-onnx", "optimum-intel"}}


pytestmark = pytest.mark.usefixtures("peers_on_path")


def module(name: str) -> Any:
    return importlib.import_module(name)


# -- headers -------------------------------------------------------------------------------------------------

EXPECTED = {
    "ctranslate2_int8", "edge_distill_itself", "llama_bench", "llama_cpp_python", "openvino_int4", "optimum_ort",
    "ort_genai", "torchao_int4", "transformers_bf16",
}  # fmt: skip


def test_every_peer_pins_exactly_what_it_imports() -> None:
    environments = module("environments")
    headers = environments.scripts()
    assert set(headers) == EXPECTED
    makers = {f"makers/{path.stem}": environments.read_header(path) for path in PEERS.glob("makers/*.py")}
    assert set(makers) == {"makers/auto_round_gguf", "makers/model_builder"}
    for name, header in (headers | makers).items():
        requirements = [Requirement(text) for text in header.dependencies]
        for requirement in requirements:
            (pin,) = requirement.specifier
            assert pin.operator == "==", (name, str(requirement))
            assert "*" not in pin.version, (name, str(requirement))
        assert set(header.opens) <= {"gguf", "onnx", "checkpoint"}
        assert header.opens
        pinned = {requirement.name for requirement in requirements}
        for imported in imports_of(PEERS / f"{name}.py") - sys.stdlib_module_names:
            if imported.startswith("edge_distill") and header.in_project:
                continue
            if (PEERS / f"{imported}.py").exists():
                continue
            package = PACKAGES.get(imported, imported.replace("_", "-"))
            assert pinned & PART_OF.get(imported, {package}) or header.in_project, (name, imported)


def imports_of(script: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_torch_is_installed_alone_and_pip_fails_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environments = module("environments")
    commands: list[list[str]] = []
    monkeypatch.setattr(environments, "_run", commands.append)
    header = environments.Header(("numpy==1.0", "torch==2.0"), ("checkpoint",), without=("torchvision",))
    (tmp_path / "peer").mkdir()
    python = environments.python_of("peer", header, tmp_path)
    installs = [command[4:] for command in commands[1:]]
    assert installs == [
        ["-q", "torch==2.0"],
        ["-q", "numpy==1.0", "torch==2.0"],
        ["-q", "-y", "torchvision"],
    ]
    commands.clear()
    assert environments.python_of("peer", header, tmp_path) == python
    assert commands == []
    said = "Collecting x\nERROR: Could not find a version that satisfies x==9\n[notice] a new pip\n"
    assert environments.last_words(said) == "ERROR: Could not find a version that satisfies x==9"


# -- the output line -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint, its bundles, and what is asked of them."""
    folder = tmp_path_factory.mktemp("peers")
    saved = save_checkpoint(folder / "student", variant_named("llama-tied-gqa"))
    source = source_of(load_checkpoint(saved))
    for target in ("onnx:fp32", "gguf:q4_0"):
        write_bundle(source, target, folder / target.partition(":")[2])
    rng = np.random.default_rng(1)

    def ids(count: int) -> list[int]:
        return [int(token) for token in rng.integers(5, 60, count)]

    texts = [ForcedText(tuple(ids(24)), 9, "r" * 15, "." * 15) for _ in range(3)]
    with load(folder / "fp32", threads=1) as model:
        write_reference(model, texts, folder / "reference", name="student", k=16)
    work = {
        "context": 128, "warm": ids(8), "warm_up": 2, "first": [ids(8), ids(8)], "long": ids(40), "decode": ids(8),
        "new_tokens": 12, "texts": [{"tokens": text.tokens, "prompt": text.prompt} for text in texts],
        "reference": str(folder / "reference"), "questions": [ids(6), ids(7)], "stop": [], "answer_tokens": 5,
    }  # fmt: skip
    (folder / "work.json").write_text(json.dumps(work))
    return folder


def run_peer(name: str, cls: str, part: str, model: Path, files: Path, capsys: Any, **measure: Any) -> Any:
    arguments = [part, "--model", str(model), "--work", str(files / "work.json"), "--threads", "1"]
    arguments += ["--folder", str(files / name)]
    module("protocol").run(getattr(module(name), cls), measure, arguments)
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_all_print_the_same_keys_and_agree_on_the_same_file(files: Path, capsys: Any) -> None:
    itself = module("edge_distill_itself")
    measure = {"speed": itself.speed, "quality": itself.quality}
    bundle, gguf = files / "q4_0", files / "q4_0" / "model.gguf"
    ours = run_peer("edge_distill_itself", "EdgeDistill", "quality", bundle, files, capsys, **measure)
    theirs = run_peer("llama_cpp_python", "LlamaCppPython", "quality", gguf, files, capsys)
    bf16 = run_peer("transformers_bf16", "Transformers", "quality", files / "student", files, capsys)
    keys = list(module("protocol").LINE)
    assert list(ours) == list(theirs) == list(bf16) == keys
    assert ours["answers"] == theirs["answers"]
    assert [len(answer) for answer in theirs["answers"]] == [5, 5]
    assert theirs["size_bytes"] == gguf.stat().st_size
    assert bf16["precision"] == "bf16"
    assert ours["precision"] == "q4_0"

    work = module("work")
    reference = module("edge_distill_bench.fidelity_cache").read_reference(files / "reference")
    asked = work.Work(files / "work.json", {"stop": []}, (), reference)
    with load(bundle, threads=1) as model:
        kl = measure_fidelity(model, reference).parts["all"].mean_kl
    # the same file by two bindings of libllama
    assert work.mean_kl(Path(theirs["logits"]), asked) == pytest.approx(kl, rel=0.05)
    assert ours["kl"] == pytest.approx(kl, rel=1e-6)
    # rounding to bfloat16 is far finer than to four bits
    assert 0 <= work.mean_kl(Path(bf16["logits"]), asked) < kl / 10


def test_answers_of_onnxruntime_genai_end(files: Path, tmp_path: Path, capsys: Any) -> None:
    """Where timings go on, to the last token."""
    bundle, work = tmp_path / "fp32", json.loads((files / "work.json").read_text())
    shutil.copytree(files / "fp32", bundle)

    def answers() -> Any:
        (tmp_path / "work.json").write_text(json.dumps(work))
        return run_peer("ort_genai", "OrtGenai", "quality", bundle, tmp_path, capsys)["answers"]

    end = answers()[0][0]
    config = json.loads((bundle / "genai_config.json").read_text())
    config["model"]["eos_token_id"] = end
    (bundle / "genai_config.json").write_text(json.dumps(config))
    work["stop"] = [end]
    assert answers()[0] == [end]
    assert run_peer("ort_genai", "OrtGenai", "speed", bundle, tmp_path, capsys)["decode_tps"][0] > 0


def test_speed_is_measured_and_has_the_same_keys(files: Path, capsys: Any) -> None:
    itself = module("edge_distill_itself")
    measure = {"speed": itself.speed, "quality": itself.quality}
    ours = run_peer("edge_distill_itself", "EdgeDistill", "speed", files / "q4_0", files, capsys, **measure)
    gguf = files / "q4_0" / "model.gguf"
    theirs = run_peer("llama_cpp_python", "LlamaCppPython", "speed", gguf, files, capsys)
    for line in (ours, theirs):
        assert list(line) == list(module("protocol").LINE)
        assert len(line["ttft_s"]) == 2
        assert len(line["decode_tps"]) == len(line["prefill_tps"]) == 1
        assert min(*line["ttft_s"], *line["decode_tps"], *line["prefill_tps"], line["load_s"]) > 0
        assert line["answers"] is line["kl"] is None
    assert theirs["own"]["decode_tps"] > 0


def test_clock_is_read_once_a_token() -> None:
    protocol = module("protocol")

    class Slow(protocol.Peer):  # type: ignore[name-defined]
        engine = "slow"
        now = 100.0

        def __init__(self) -> None:
            pass

        size = logits = None

        def generate(self, tokens: Any, count: int, on_token: Any) -> None:
            for number in range(count):
                self.now += 2.0 if number == 0 else 0.5
                if on_token(number):
                    return

    slow: Any = Slow()
    assert protocol.stamps(slow, [1], 4, lambda: slow.now) == [0.0, 2.0, 2.5, 3.0, 3.5]
    slow.generate = lambda tokens, count, on_token: on_token(1)
    with pytest.raises(RuntimeError, match="slow gave 1 of 2 tokens"):
        protocol.stamps(slow, [1], 2)


def test_unknown_key_and_wrong_shape_are_errors(files: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="speedy"):
        module("protocol").line(speedy=1)
    reference = module("edge_distill_bench.fidelity_cache").read_reference(files / "reference")
    work = module("work")
    np.save(tmp_path / "logits.npy", np.zeros((44, reference.vocabulary), np.float32))
    with pytest.raises(ValueError, match="shape"):
        work.mean_kl(tmp_path / "logits.npy", work.Work(tmp_path, {}, (), reference))


def test_mean_kl_is_read_from_llama_perplexity() -> None:
    said = (
        "====== KL divergence statistics ======\nMean    KLD:   0.048123 ±   0.002110\nMaximum KLD:   3.1\n"
    )
    assert module("llama_bench").mean_kl(said) == 0.048123
    with pytest.raises(RuntimeError, match="no mean KL: nothing"):
        module("llama_bench").mean_kl("nothing")


def test_older_checkpoint_keeps_the_rotary_base(tmp_path: Path) -> None:
    source = tmp_path / "new"
    source.mkdir()
    (source / "model.safetensors").write_bytes(b"weights")
    rope = {"rope_theta": 100000.0, "rope_type": "default"}
    (source / "config.json").write_text(json.dumps({"dtype": "float32", "rope_parameters": rope}))
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "TokenizersBackend"}))
    made = module("protocol").older_checkpoint(str(source), str(tmp_path / "work"))
    config = json.loads((made / "config.json").read_text())
    assert config == {"rope_theta": 100000.0, "rope_scaling": None, "torch_dtype": "float32"}
    assert (made / "model.safetensors").read_bytes() == b"weights"
    rope["rope_type"] = "yarn"
    (source / "config.json").write_text(json.dumps({"rope_parameters": rope}))
    with pytest.raises(RuntimeError, match="yarn"):
        module("protocol").older_checkpoint(str(source), str(tmp_path / "work"))


# -- what is kept --------------------------------------------------------------------------------------------


class Fake:
    """Stands for the processes: counts what is asked."""

    def __init__(self, run: Any, files: Path, folder: Path, rounds: int, **changes: Any) -> None:
        environments, work = module("environments"), module("work")
        options = Namespace(folder=folder, rounds=rounds, load=0.3, **{"threads": 1} | changes)
        header = environments.Header((), ("checkpoint",))
        peers = [run.Entrant(name, header, str(files / "student"), name, None) for name in SCRIPTS]
        self.asked: list[tuple[str, str]] = []
        self.league = run.League(options, work.Work(files / "work.json", {}, (), None), peers)
        self.league.line = self.line

    def line(self, peer: Any, part: str) -> Any:
        self.asked.append((peer.name, part))
        speed = {"decode_tps": [100.0 + len(self.asked)]} if part == "speed" else {"kl": 0.5}
        return module("protocol").line(engine=peer.name, versions={"numpy": "2"}, **speed)

    def measure(self) -> Any:
        for peer in self.league.peers:
            self.league.run(self.league.quality, peer)
        for _ in range(self.league.rounds_left()):
            for peer in self.league.peers:
                self.league.run(self.league.speed, peer)
        return self


SCRIPTS = ("ctranslate2_int8", "transformers_bf16")


def test_calls_add_rounds_to_what_is_kept(files: Path, tmp_path: Path) -> None:
    run = module("run")
    options = heading_options(tmp_path)
    assert "Speed has not been measured yet." in run.heading(options, [], [])
    first = Fake(run, files, tmp_path, 1).measure()
    assert [part for _, part in first.asked] == ["quality", "quality", "speed", "speed"]
    second = Fake(run, files, tmp_path, 3).measure()
    assert second.asked == [(name, "speed") for name in (*SCRIPTS, *SCRIPTS)]
    third = Fake(run, files, tmp_path, 3).measure()
    assert third.asked == []
    (entry, _) = (peer.entry for peer in third.league.peers)
    assert [line["decode_tps"] for line in entry.speed] == [[103.0], [101.0], [103.0]]
    assert entry.quality["kl"] == 0.5
    peers = third.league.peers
    measured = [one for peer in peers for one in peer.measured]
    speeds = [one for peer in peers for one in peer.speed]
    heading = run.heading(options, measured, speeds)
    assert "Speed: 1 threads, 3 rounds in turn, a load of at most 0.3 before a call" in heading
    assert "Versions: numpy 2." in heading


def heading_options(folder: Path) -> Namespace:
    return Namespace(
        checkpoint="smol", bundles=["a/q4_0"], folder=folder, rounds=3, threads=1, items=40, only=[], load=0.0
    )


def test_another_number_of_threads_and_a_new_model_are_measured_anew(files: Path, tmp_path: Path) -> None:
    run, kept = module("run"), module("kept")
    script, model = PEERS / "llama_bench.py", tmp_path / "model.gguf"
    model.write_bytes(b"a")
    keys = {
        kept.key_of(["llama", "hash", "2"], script, model, in_project=False),
        kept.key_of(["llama", "hash", "1"], script, model, in_project=False),
        kept.key_of(["llama", "hash", "2"], PEERS / "ort_genai.py", model, in_project=False),
        kept.key_of(["llama", "hash", "2"], script, model, in_project=True),
    }
    model.write_bytes(b"ab")
    keys.add(kept.key_of(["llama", "hash", "2"], script, model, in_project=False))
    assert len(keys) == 5
    assert len(Fake(run, files, tmp_path, 1).measure().asked) == 4
    # answers and logits stay, speed does not
    assert Fake(run, files, tmp_path, 1, threads=2).measure().asked == [(name, "speed") for name in SCRIPTS]
    assert kept.Kept(tmp_path / "speed.jsonl").of("another key") == []


# -- the table -----------------------------------------------------------------------------------------------


def entry(name: str, precision: str, decode: list[float], ttft: float | None, **values: Any) -> Any:
    protocol, table = module("protocol"), module("table")
    lines = [
        protocol.line(
            decode_tps=[one],
            prefill_tps=[1234.4],
            ttft_s=None if ttft is None else [ttft],
            peak_rss=250_000_000,
            size_bytes=91_700_000,
            own=values.get("own"),
        )
        for one in decode
    ]
    quality = protocol.line(kl=values.get("kl")) | {"right": values.get("right")}
    return table.Entry(name, name.partition(",")[0], precision, tuple(lines), quality)


def test_table_says_where_edge_distill_is_not_first() -> None:
    table = module("table")
    entries = [
        entry("edge-distill, gguf", "q4_0", [190.0, 200.0, 300.0], 0.08, kl=0.05, right=12),
        entry("llama.cpp", "q4_0", [210.0, 211.0, 212.0], None, kl=0.05, own={"decode_tps": 209.9}),
        entry("transformers", "bf16", [50.0], 0.2),
        table.Entry("OpenVINO", "openvino", "-", (), None, "ERROR: no `wheel`"),
    ]
    text = table.table(entries, 40)
    assert "| **edge-distill, gguf** | q4_0 | 200 | 1,234 | 80 | 250 | 91.7 | 0.0500 | 12 |" in text
    assert "| llama.cpp | q4_0 | 211 | 1,234 | - | 250 | 91.7 | 0.0500 | - |" in text
    assert (
        "decode tok/s: edge-distill is not first. llama.cpp is first (211); edge-distill, gguf: 200." in text
    )
    assert "- size MB: edge-distill, gguf is level with llama.cpp (91.7)." in text
    assert "- right: edge-distill" not in text
    assert "right of 40" in text
    assert "- OpenVINO: `ERROR: no 'wheel'`" in text
    assert "- llama.cpp, decode_tps: measured / own counter = 1.005" in text
    # bf16 has no line of ours to compare
    assert text.count("not first") == 1


def test_table_goes_between_the_markers_of_the_document() -> None:
    table = module("table")
    begin, end = table.MARKERS
    document = f"# Title\n\n{begin}\nold\n{end}\n\nend\n"
    made = table.place(document, "new\n")
    assert made == f"# Title\n\n{begin}\n\nnew\n\n{end}\n\nend\n"
    assert table.place(made, "new") == made
    for broken in ("# no markers", document * 2, f"{end}{begin}"):
        with pytest.raises(ValueError, match="once each"):
            table.place(broken, "new")
    assert f"{begin}\n\nnew\n\n{end}" in table.place((ROOT / "docs" / "benchmarks.md").read_text(), "new")
