"""A bundle passes, or the first thing that is wrong with it is named."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from edge_distill import cli
from edge_distill_export import verify
from edge_distill_export.calibration import builtin_traces, render_traces
from edge_distill_export.checkpoint import load_checkpoint
from edge_distill_export.verify import Verification
from edge_distill_runtime.bundles.gguf_header import read_gguf_header
from edge_distill_runtime.bundles.manifest import MANIFEST_NAME, read_manifest
from edge_distill_runtime.errors import BackendError, BundleError, EdgeDistillError, InputError, ParityError
from tests.export.bundle_files import reseal, source_of, write_bundle
from tests.random_models import save_checkpoint, variant_named

# The random tokenizers split words into many tokens: the held-out text needs a longer context than usual.
VARIANT = variant_named("llama-tied-gqa")
VARIANT = replace(VARIANT, config={**VARIANT.config, "max_position_embeddings": 2048})
TRACES = 3


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("saved") / "student", VARIANT)


@pytest.fixture(scope="module")
def bundles(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    source = source_of(load_checkpoint(saved))
    verification = {"parity": {"overall": {"kl_mean": 0.25}}, "limit_kl": 2.0}
    for name, target in (("gguf", "gguf:q4_0"), ("onnx", "onnx:int4"), ("fp32", "onnx:fp32")):
        write_bundle(source, target, folder / name, verification)
    return {name: folder / name for name in ("gguf", "onnx", "fp32")}


@pytest.fixture
def bundle(bundles: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the GGUF bundle, to be damaged."""
    return Path(shutil.copytree(bundles["gguf"], tmp_path / "bundle"))


@pytest.fixture(autouse=True)
def few_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of the held-out problems are enough to see whether numbers are right."""
    module = sys.modules["edge_distill_export.calibration"]
    monkeypatch.setattr(module, "MIN_HELDOUT", TRACES)
    monkeypatch.setattr(module, "builtin_traces", lambda name: builtin_traces(name)[:TRACES])


def text_of(result: Verification) -> str:
    console = Console(width=200, color_system=None, markup=False, highlight=False)
    with console.capture() as capture:
        result.render(console)
    return capture.get()


@pytest.mark.parametrize("kind", ["gguf", "onnx"])
def test_intact(bundles: dict[str, Path], kind: str) -> None:
    result = verify(bundles[kind])
    manifest = read_manifest(bundles[kind])
    assert (result.name, result.files) == (manifest.name, len(manifest.files))
    assert result.bytes == sum(
        path.stat().st_size for path in bundles[kind].iterdir() if path.name != MANIFEST_NAME
    )
    assert result.parity is None
    assert "parity not checked: give --checkpoint" in text_of(result)


@pytest.mark.parametrize(
    ("kind", "low", "high"), [("fp32", 0.0, 1e-4), ("gguf", 0.01, 2.0), ("onnx", 0.01, 2.0)]
)
def test_parity_is_measured_again(
    bundles: dict[str, Path], saved: Path, kind: str, low: float, high: float
) -> None:
    check = verify(bundles[kind], checkpoint=str(saved)).parity
    assert check is not None
    assert low <= check.parity.overall.kl_mean <= high
    assert check.parity.texts == TRACES
    source = source_of(load_checkpoint(saved))
    texts = render_traces(builtin_traces("heldout")[:TRACES], source.style, source.checkpoint.tokenizer, 2048)
    assert check.parity.overall.tokens == sum(len(text.tokens) - text.prompt for text in texts)
    assert (check.limit_kl, check.recorded_kl) == (2.0, 0.25)
    assert check.tokenizer_strings > 20


def test_text_with_parity(bundles: dict[str, Path], saved: Path) -> None:
    result = verify(bundles["onnx"], checkpoint=str(saved))
    assert result.parity is not None
    text = text_of(result)
    assert (
        f"mean KL to student: {result.parity.parity.overall.kl_mean:.4f} (limit 2, 0.2500 at export)" in text
    )
    assert "not checked" not in text


def test_beyond_the_limit(bundle: Path, saved: Path) -> None:
    reseal(bundle, verification={"limit_kl": 1e-6})
    limit = r"mean KL divergence of 0\.\d+ to student, its limit is 1e-06"
    with pytest.raises(ParityError, match=limit) as error:
        verify(bundle, checkpoint=str(saved))
    assert error.value.data["limit"] == 1e-6
    assert f"{error.value.data['mean_kl']:.4f}" in str(error.value)


@pytest.mark.parametrize("limit", [None, "much", 0, -1, True, {}])
def test_without_a_recorded_limit_the_targets_counts(bundle: Path, saved: Path, limit: Any) -> None:
    reseal(bundle, verification={"limit_kl": limit})
    with pytest.raises(ParityError, match=r"its limit is 0\.3"):
        verify(bundle, checkpoint=str(saved))
    precision = replace(read_manifest(bundle).precision, target="q9_9")
    reseal(bundle, precision=precision)
    with pytest.raises(BundleError, match="target 'gguf:q9_9' is unknown"):
        verify(bundle, checkpoint=str(saved))


def test_weights_that_lie_elsewhere_than_their_hash(bundle: Path, saved: Path) -> None:
    """Scales that have changed before the manifest was written: only the comparison tells."""
    path = bundle / "model.gguf"
    tensor = next(t for t in read_gguf_header(path).tensors if t.name == "blk.1.ffn_down.weight")
    blocks = np.memmap(path, np.uint8, "r+", tensor.offset, (tensor.size // 18, 18))
    blocks[:, :2] = np.frombuffer(np.float16(0.5).tobytes(), np.uint8)
    blocks.flush()
    reseal(bundle)
    assert verify(bundle).parity is None
    with pytest.raises(ParityError, match="mean KL divergence"):
        verify(bundle, checkpoint=str(saved))


def test_weights_that_are_no_numbers(bundle: Path) -> None:
    path = bundle / "model.gguf"
    tensor = next(t for t in read_gguf_header(path).tensors if t.name == "output_norm.weight")
    np.memmap(path, np.float32, "r+", tensor.offset, 128)[:] = np.nan
    reseal(bundle)
    with pytest.raises(BackendError, match="NaN"):
        verify(bundle)


@pytest.mark.parametrize("kind", ["gguf", "onnx"])
def test_one_flipped_bit_in_any_file(bundles: dict[str, Path], kind: str, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundles[kind], tmp_path / kind))
    for entry in read_manifest(copy).files:
        path = copy / entry.path
        sound = path.read_bytes()
        middle = len(sound) // 2
        path.write_bytes(sound[:middle] + bytes([sound[middle] ^ 1]) + sound[middle + 1 :])
        with pytest.raises(BundleError, match=f"{entry.path} does not match its SHA-256"):
            verify(copy)
        path.write_bytes(sound[:-1])
        with pytest.raises(BundleError, match=f"{entry.path} has {len(sound) - 1} bytes"):
            verify(copy)
        path.write_bytes(sound)
    verify(copy)


def test_a_header_that_libllama_must_not_see(bundle: Path) -> None:
    path = bundle / "model.gguf"
    data = path.read_bytes()
    key = b"llama.block_count"
    at = data.index(key) + len(key) + 4
    path.write_bytes(data[:at] + bytes(4) + data[at + 4 :])
    reseal(bundle)
    with pytest.raises(BundleError, match="block_count"):
        verify(bundle)


def test_another_checkpoint(bundle: Path, tmp_path: Path) -> None:
    other = save_checkpoint(tmp_path / "stranger", VARIANT, seed=1)
    with pytest.raises(
        InputError, match=r"was made from student \(weights sha256 \w{12}\), .*stranger is stranger"
    ):
        verify(bundle, checkpoint=str(other))


def test_the_same_checkpoint_under_another_name(bundle: Path, saved: Path, tmp_path: Path) -> None:
    renamed = Path(shutil.copytree(saved, tmp_path / "renamed"))
    assert verify(bundle, checkpoint=str(renamed)).parity is not None


@pytest.mark.parametrize(
    "lineage", [{}, {"checkpoint": 1}, {"checkpoint": {"weights": []}}, {"checkpoint": {}}]
)
def test_no_lineage(bundle: Path, saved: Path, lineage: dict[str, Any]) -> None:
    reseal(bundle, lineage=lineage)
    assert verify(bundle).parity is None
    with pytest.raises(InputError, match="names no checkpoint"):
        verify(bundle, checkpoint=str(saved))


def test_another_tokenizer(bundle: Path, saved: Path) -> None:
    path = bundle / "tokenizer.json"
    content = json.loads(path.read_text())
    del content["model"]["merges"][::2]
    path.write_text(json.dumps(content))
    reseal(bundle)
    with pytest.raises(ParityError, match=r"tokenizer\.json splits"):
        verify(bundle, checkpoint=str(saved))


def test_another_chat_form(bundle: Path, saved: Path) -> None:
    chat = read_manifest(bundle).chat
    assert chat is not None
    reseal(bundle, chat=replace(chat, generation_prompt=chat.generation_prompt + " "))
    with pytest.raises(ParityError, match="chat form"):
        verify(bundle, checkpoint=str(saved))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda path: shutil.rmtree(path), InputError, "does not exist"),
        (lambda path: (path / MANIFEST_NAME).unlink(), InputError, "it is no bundle"),
        (lambda path: (path / MANIFEST_NAME).write_text("{}"), BundleError, "schema_version is None"),
        (lambda path: (path / MANIFEST_NAME).write_text(""), BundleError, MANIFEST_NAME),
        (lambda path: (path / "tokenizer.json").unlink(), BundleError, r"lacks tokenizer\.json"),
        (lambda path: (path / "extra.bin").touch(), BundleError, "holds 'extra.bin'"),
    ],
)
def test_no_bundle(bundle: Path, make: Any, error: type[EdgeDistillError], message: str) -> None:
    make(bundle)
    with pytest.raises(error, match=message):
        verify(bundle)


def test_a_file_is_no_bundle(bundle: Path, saved: Path) -> None:
    with pytest.raises(InputError, match="it is no bundle"):
        verify(bundle / "model.gguf")
    with pytest.raises(InputError, match="edge-distill plan"):
        verify(saved)
    with pytest.raises(InputError, match="does not exist"):
        verify(bundle, checkpoint=str(saved / "none"))


def test_command_line(bundle: Path, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", str(bundle), "--checkpoint", str(saved), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["target"] == "gguf:q4_0"
    assert document["parity"]["parity"]["overall"]["tokens"] > 100
    assert cli.main(["verify", str(bundle / "none")]) == 2
    (bundle / "extra").touch()
    assert cli.main(["verify", str(bundle)]) == 3
    (bundle / "extra").unlink()
    reseal(bundle, verification={"limit_kl": 1e-6})
    assert cli.main(["verify", str(bundle), "--checkpoint", str(saved)]) == 4
