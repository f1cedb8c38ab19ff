"""What stands in a file is shown as it is, whoever made the file."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
from gguf import GGUFWriter
from onnx import TensorProto, helper
from rich.console import Console

from edge_distill import cli
from edge_distill_export import inspect
from edge_distill_export.inspect import Inspection, TypeTotal, printable
from edge_distill_runtime.bundles.manifest import MANIFEST_NAME, read_manifest
from edge_distill_runtime.errors import BundleError, EdgeDistillError, InputError
from tests.export.bundle_files import source_of, write_bundle
from tests.export.gguf_files import checkpoint_of
from tests.random_models import variant_named

PARITY = {"tokens": 100, "kl_mean": 0.0123, "kl_p99": 0.2, "top1": 0.95}


def text_of(result: Inspection, width: int = 200) -> str:
    console = Console(width=width, color_system=None, markup=False, highlight=False)
    with console.capture() as capture:
        result.render(console)
    return capture.get()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two bundles of a tied llama with 2 layers, 128 wide, 256 in the middle, 512 tokens."""
    folder = tmp_path_factory.mktemp("bundles")
    source = source_of(checkpoint_of(variant_named("llama-tied-gqa")))
    verification = {"parity": {"overall": PARITY, "reasoning": PARITY, "answer": None}, "limit_kl": 0.3}
    for target in ("gguf:q4_0", "onnx:int4"):
        write_bundle(source, target, folder / target.replace(":", "-"), verification)
    return {"gguf": folder / "gguf-q4_0", "onnx": folder / "onnx-int4"}


@pytest.fixture
def copy(bundles: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    return {name: Path(shutil.copytree(path, tmp_path / name)) for name, path in bundles.items()}


def test_a_gguf_bundle(bundles: dict[str, Path]) -> None:
    result = inspect(bundles["gguf"], tensors=True)
    manifest = read_manifest(bundles["gguf"])
    assert result.manifest == asdict(manifest)
    # 512 x 128 embedding at 34 bytes for 32; linear layers at 18; five norms of 128 float32
    linear = 2 * (2 * 128 * 128 + 2 * 64 * 128 + 3 * 256 * 128)
    assert result.types == (
        TypeTotal("Q4_0", 14, linear // 32 * 18),
        TypeTotal("Q8_0", 1, 512 * 128 // 32 * 34),
        TypeTotal("F32", 5, 5 * 128 * 4),
    )
    weights = linear + 512 * 128 + 5 * 128
    assert result.parameter_count == weights
    assert result.bits_per_weight == 8 * result.data_bytes / weights
    assert result.kv_bytes_per_token == 2 * 2 * 2 * 32 * 2
    embedding = next(tensor for tensor in result.tensors or () if tensor.name == "token_embd.weight")
    assert (embedding.shape, embedding.type, embedding.bits_per_weight) == ((512, 128), "Q8_0", 8.5)


def test_an_onnx_bundle(bundles: dict[str, Path]) -> None:
    result = inspect(bundles["onnx"], tensors=True)
    tensors = {tensor.name: tensor for tensor in result.tensors or ()}
    packed = [tensor for tensor in tensors.values() if tensor.type == "int4"]
    assert len(packed) == 2 * 5  # query, key and value are one
    assert sum(tensor.bytes for tensor in packed) == 2 * (2 * 128 * 128 + 2 * 64 * 128 + 3 * 256 * 128) // 2
    assert {tensor.bits_per_weight for tensor in packed} == {4}
    assert result.data_bytes == (bundles["onnx"] / "model.onnx.data").stat().st_size
    assert result.kv_bytes_per_token == 2 * 2 * 2 * 32 * 4


@pytest.mark.parametrize("target", ["onnx:int4", "onnx:int8", "onnx:fp32"])
@pytest.mark.parametrize(
    "variant",
    ["llama-biases", "gemma3_text-untied-mha", "phi3-tied-gqa", "granite-tied-gqa", "qwen3-tied-gqa"],
)
def test_the_weights_of_a_bare_onnx_file_are_the_checkpoints(
    variant: str, target: str, tmp_path: Path
) -> None:
    manifest = write_bundle(source_of(checkpoint_of(variant_named(variant))), target, tmp_path / "bundle")
    result = inspect(tmp_path / "bundle" / "model.onnx")
    assert result.parameter_count == manifest.parameter_count
    assert result.bits_per_weight == manifest.precision.bits_per_weight


def test_tensors_of_four_bits_are_half_bytes(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("GatherBlockQuantized", ["w", "ids", "s"], ["y"], domain="com.microsoft", bits=4)],
        "graph",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 32])],
        [
            helper.make_tensor("w", TensorProto.UINT4, [2, 32], [1] * 64),
            helper.make_tensor("s", TensorProto.FLOAT, [2, 1], [1.0, 2.0]),
        ],
    )
    (tmp_path / "model.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    result = inspect(tmp_path / "model.onnx", tensors=True)
    assert result.parameter_count == 64
    assert result.data_bytes == 32 + 8
    assert result.bits_per_weight == 8 * 40 / 64


def test_text_of_a_bundle(bundles: dict[str, Path]) -> None:
    text = " ".join(text_of(inspect(bundles["gguf"])).split())
    for expected in (
        "target q4_0, method rtn",
        "context 256 tokens",
        "512 bytes a token",
        "parity, overall tokens 100, kl_mean 0.0123, kl_p99 0.2, top1 0.95",
        "limit of mean KL 0.3",
        "file model.gguf, ",
    ):
        assert expected in text
    assert "parity, answer" not in text
    assert "token_embd" not in text
    assert "token_embd.weight" in text_of(inspect(bundles["gguf"], tensors=True))


def test_hashes_are_whole_on_a_narrow_terminal(bundles: dict[str, Path]) -> None:
    shown = text_of(inspect(bundles["gguf"], tensors=True), width=60)
    assert "…" not in shown
    whole = "".join(shown.split())
    assert all(entry.sha256 in whole for entry in read_manifest(bundles["gguf"]).files)


def test_bare_files(copy: dict[str, Path], tmp_path: Path) -> None:
    gguf = inspect(copy["gguf"] / "model.gguf")
    assert (gguf.architecture, gguf.context_length, gguf.kv_bytes_per_token) == (
        "llama",
        256,
        2 * 2 * 2 * 32 * 2,
    )
    assert gguf.bits_per_weight == inspect(copy["gguf"]).bits_per_weight
    assert gguf.manifest is None
    assert gguf.tensors is None
    (tmp_path / "link.onnx").symlink_to(copy["onnx"] / "model.onnx")  # as in a hub's cache
    onnx_file = inspect(tmp_path / "link.onnx")
    assert onnx_file.types == inspect(copy["onnx"]).types
    assert onnx_file.parameter_count == read_manifest(copy["onnx"]).parameter_count
    assert onnx_file.bits_per_weight == inspect(copy["onnx"]).bits_per_weight
    assert f"bits per weight  {onnx_file.bits_per_weight:.2f}" in text_of(onnx_file)
    (copy["gguf"] / "model.gguf").rename(tmp_path / "without-suffix")
    assert inspect(tmp_path / "without-suffix").format == "gguf"


@pytest.mark.parametrize(
    ("architecture", "context", "shown"),
    [
        ("mamba", 77, "architecture mamba"),
        ("m\x1b[31mred\x07\u202e", None, "architecture m\ufffd[31mred\ufffd\ufffd"),
    ],
)
def test_a_foreign_gguf(tmp_path: Path, architecture: str, context: int | None, shown: str) -> None:
    """An architecture that the runtime does not run; the other one is made of terminal codes."""
    writer = GGUFWriter(tmp_path / "foreign.gguf", architecture)
    if context:
        writer.add_context_length(context)
    writer.add_tensor("weight", np.zeros((4, 8), np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    result = inspect(tmp_path / "foreign.gguf", tensors=True)
    found = (result.architecture, result.context_length, result.kv_bytes_per_token)
    assert found == (architecture, context, None)
    text = text_of(result)
    assert shown in " ".join(text.split())
    assert not set(text) & {"\x1b", "\x07", "\u202e"}


def test_a_foreign_onnx(tmp_path: Path) -> None:
    weight = helper.make_tensor(
        "w\x1b]0;x", TensorProto.FLOAT16, [2, 3], np.ones((2, 3), np.float16).tobytes(), raw=True
    )
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1, 2])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT16, [1, 3])
    node = helper.make_node("MatMul", ["x", weight.name], ["y"])
    onnx.save(
        helper.make_model(helper.make_graph([node], "g", [value], [result], [weight])), tmp_path / "f.onnx"
    )
    found = inspect(tmp_path / "f.onnx", tensors=True)
    (tensor,) = found.tensors or ()
    assert (tensor.shape, tensor.type, tensor.bytes, tensor.bits_per_weight) == ((2, 3), "float16", 12, 16)
    assert "\x1b" not in text_of(found)


def test_free_form_parts_of_a_manifest(copy: dict[str, Path]) -> None:
    """`lineage` and `verification` may hold anything; nothing of it ends the command."""
    path = copy["gguf"] / MANIFEST_NAME
    content = json.loads(path.read_text())
    del content["seal"]
    for lineage, verification in (
        ({}, {}),
        ({"checkpoint": [], "calibration": 1}, {"parity": 3, "limit_kl": "\x1b[2J"}),
        ({"checkpoint": {"weights": ["a"]}}, {"parity": {"overall": {"tokens": None, "top1": {}}}}),
        ({"checkpoint": {"weights": {"a\nb": None}}}, {"parity": {"overall": []}}),
    ):
        path.write_text(json.dumps({**content, "lineage": lineage, "verification": verification}))
        assert "\x1b" not in text_of(inspect(copy["gguf"]))


@pytest.mark.parametrize(
    ("name", "data", "error", "message"),
    [
        ("empty.gguf", b"", InputError, "has 0 bytes"),
        ("empty.onnx", b"", InputError, "has 0 bytes"),
        ("lfs.gguf", b"version https://git-lfs.github.com/spec/v1\n", InputError, "git-lfs pointer"),
        ("cut.gguf", b"GGUF\x03\x00\x00\x00", BundleError, "no sound GGUF"),
        ("other.gguf", b"\x7fELF" + bytes(60), BundleError, "does not start with GGUF"),
        ("bytes.onnx", b"\xff" * 100, BundleError, "no ONNX model"),
        ("nothing.onnx", b"\x08\x0a", BundleError, "no tensors"),
        ("text.txt", b"hello", InputError, "neither GGUF nor ONNX"),
    ],
)
def test_files_that_are_no_models(
    tmp_path: Path, name: str, data: bytes, error: type[EdgeDistillError], message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(error, match=message):
        inspect(tmp_path / name)


def test_contradictory_onnx(copy: dict[str, Path]) -> None:
    path = copy["onnx"] / "model.onnx"
    sound = path.read_bytes()
    for change in (
        lambda graph: setattr(graph.initializer[0], "data_type", 0),
        lambda graph: setattr(graph.initializer[0], "data_type", 99),
        lambda graph: graph.initializer[0].dims.append(-5),
        lambda graph: next(n for n in graph.node if n.op_type == "MatMulNBits").ClearField("input"),
    ):
        model = onnx.load_model_from_string(sound)
        change(model.graph)
        path.write_bytes(model.SerializeToString())
        with pytest.raises(BundleError, match="no sound ONNX"):
            inspect(path)


def test_paths_that_are_no_bundles(copy: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        inspect(tmp_path / "none")
    (tmp_path / "model").mkdir()
    with pytest.raises(InputError, match="it is no bundle"):
        inspect(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="edge-distill plan"):
        inspect(tmp_path / "model")
    (copy["gguf"] / MANIFEST_NAME).write_text("{")
    with pytest.raises(BundleError, match=MANIFEST_NAME):
        inspect(copy["gguf"])
    (copy["onnx"] / "model.onnx").unlink()
    with pytest.raises(InputError, match="does not exist"):
        inspect(copy["onnx"])


def test_command_line(bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(bundles["onnx"]), "--tensors", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["manifest"]["name"] == "llama-tied-gqa-int4"
    assert len(document["tensors"]) == sum(total["tensors"] for total in document["types"])
    assert cli.main(["inspect", "/nowhere"]) == 2


def test_printable_keeps_text() -> None:
    assert printable("naïve 你好 ▁x") == "naïve 你好 ▁x"
    assert printable("\x9b31m\u2066") == "\ufffd31m\ufffd"
