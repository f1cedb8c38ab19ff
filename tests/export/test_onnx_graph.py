"""What `write_onnx` leaves on the disk: the grid bit for bit, ties, the same bytes twice, genai_config."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx_ir
import onnxruntime
import pytest

from edge_distill_export.artifact import Source
from edge_distill_export.calibration import Style
from edge_distill_export.checkpoint import Checkpoint
from edge_distill_export.grid import QuantizedTensor
from edge_distill_export.onnx_graph import DATA_FILE, GRAPH_FILE, write_onnx
from edge_distill_export.onnx_packing import pack_blocks, pack_scales, unpack_blocks
from edge_distill_export.sizes import model_size
from edge_distill_export.targets import TARGETS
from edge_distill_runtime.errors import InputError
from tests.export.onnx_files import (
    EMBEDDING,
    HEAD,
    Decoder,
    checkpoint_of,
    initializers,
    nodes,
    onnx_logits,
    put_back,
    quantize_all,
    random_tokens,
)
from tests.numerics import kl_divergence, reference_logits
from tests.random_models import variant_named

CONFIG_FILE = "genai_config.json"


def written(
    checkpoint: Checkpoint, directory: Path, quantized: dict[str, QuantizedTensor] | None = None
) -> Path:
    directory.mkdir(exist_ok=True)
    write_onnx(checkpoint, directory, quantized=quantized, context_length=64)
    return directory / GRAPH_FILE


def dequantized(path: Path, bits: int) -> dict[str, np.ndarray]:
    """Every quantized weight in the file, float32, by the name of its node's weight."""
    tensors = initializers(path)
    weights = {}
    for name in tensors:
        if name.endswith(f"_Q{bits}"):
            base = name.removesuffix(f"_Q{bits}")
            integers = unpack_blocks(tensors[name], bits)
            scales = np.repeat(tensors[f"{base}_scales"], 32, axis=1)
            weights[base] = integers.astype(np.float32) * scales
    return weights


@pytest.mark.parametrize("bits", [4, 8])
def test_the_file_holds_the_grid_bit_for_bit(bits: int, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(variant_named("llama-untied-mha"))
    quantized = quantize_all(checkpoint, bits)
    path = written(checkpoint, tmp_path, quantized)
    weights = dequantized(path, bits)
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        sources = {
            "attn.qkv_proj": [f"self_attn.{role}_proj" for role in "qkv"],
            "attn.o_proj": ["self_attn.o_proj"],
            "mlp.gate_proj": ["mlp.gate_proj"],
            "mlp.up_proj": ["mlp.up_proj"],
            "mlp.down_proj": ["mlp.down_proj"],
        }
        for node, names in sources.items():
            expected = np.concatenate([quantized[f"{prefix}.{name}.weight"].dequantize() for name in names])
            np.testing.assert_array_equal(weights[f"{prefix}.{node}.MatMul.weight"], expected)
    for name, node_weight in ((EMBEDDING, EMBEDDING), (HEAD, "lm_head.MatMul.weight")):
        np.testing.assert_array_equal(dequantized(path, 8)[node_weight], quantized[name].dequantize())
    assert {int(node.attributes["bits"].value) for node in nodes(path, "MatMulNBits")} == {bits, 8}
    assert not nodes(path, "MatMul")


def test_phi3_keeps_the_rows_of_its_fused_layers(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(variant_named("phi3-tied-gqa"))
    quantized = quantize_all(checkpoint, 4)
    weights = dequantized(written(checkpoint, tmp_path, quantized), 4)
    fused = quantized["model.layers.1.self_attn.qkv_proj.weight"].dequantize()
    np.testing.assert_array_equal(weights["model.layers.1.attn.qkv_proj.MatMul.weight"], fused)
    gate_up = quantized["model.layers.1.mlp.gate_up_proj.weight"].dequantize()
    np.testing.assert_array_equal(weights["model.layers.1.mlp.gate_proj.MatMul.weight"], gate_up[:256])
    np.testing.assert_array_equal(weights["model.layers.1.mlp.up_proj.MatMul.weight"], gate_up[256:])


@pytest.mark.parametrize("quantize", [True, False])
def test_a_tied_pair_is_stored_once(quantize: bool, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(variant_named("llama-tied-gqa"))
    quantized = quantize_all(checkpoint, 4) if quantize else {}
    path = written(checkpoint, tmp_path, quantized)
    readers = {"GatherBlockQuantized", "MatMulNBits", "Reshape", "Gather", "FusedMatMul"}
    big = {name for name, array in initializers(path).items() if len(array) == checkpoint.config.vocab_size}
    assert big == ({f"{EMBEDDING}_Q8", f"{EMBEDDING}_scales"} if quantize else {EMBEDDING})
    embedding = onnx_ir.load(path).graph.initializers[sorted(big)[0]]
    assert len({node.op_type for node, _ in embedding.uses()} & readers) == 2
    parameters = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    size = (tmp_path / DATA_FILE).stat().st_size
    rotary = 2 * 64 * 16 * 4
    assert size <= (4 * parameters if not quantize else 1.2 * parameters) + rotary


def test_untied_embedding_and_head_are_both_8_bit(tmp_path: Path) -> None:
    """The builder on its own leaves an untied embedding in float32."""
    checkpoint = checkpoint_of(variant_named("llama-untied-mha"))
    path = written(checkpoint, tmp_path, quantize_all(checkpoint, 4))
    big = {name for name, array in initializers(path).items() if len(array) == checkpoint.config.vocab_size}
    head = "lm_head.MatMul.weight"
    assert big == {f"{EMBEDDING}_Q8", f"{EMBEDDING}_scales", f"{head}_Q8", f"{head}_scales"}


def test_mixed_bits_keep_query_key_and_value_apart(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(variant_named("llama-biases"))
    value = "model.layers.0.self_attn.v_proj.weight"
    quantized = quantize_all(checkpoint, 4) | {value: quantize_all(checkpoint, 8)[value]}
    del quantized["model.layers.1.mlp.down_proj.weight"]
    write_onnx(checkpoint, tmp_path, quantized=quantized, context_length=64, accuracy_level=0)
    names = {node.name for node in nodes(tmp_path / GRAPH_FILE, "MatMulNBits")}
    assert {"/model/layers.0/attn/v_proj/MatMul", "/model/layers.1/attn/qkv_proj/MatMul"} <= names
    assert [node.name for node in nodes(tmp_path / GRAPH_FILE, "MatMul")] == [
        "/model/layers.1/mlp/down_proj/MatMul"
    ]
    tokens = random_tokens(32)
    put_back(checkpoint, quantized)
    measured = onnx_logits(tmp_path / GRAPH_FILE, tokens)
    assert kl_divergence(reference_logits(checkpoint.model, tokens), measured).mean() < 1e-8


def test_a_quantized_tensor_that_no_layer_takes_is_an_error(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(variant_named("llama-tied-gqa"))
    quantized = quantize_all(checkpoint, 4)
    quantized["model.layers.2.mlp.up_proj.weight"] = quantized["model.layers.0.mlp.up_proj.weight"]
    with pytest.raises(RuntimeError, match=r"layers\.2\.mlp\.up_proj.*0 of 256"):
        written(checkpoint, tmp_path, quantized)


@pytest.mark.parametrize("name", ["llama-tied-gqa", "phi3-untied-mha", "gemma3_text-tied-gqa"])
def test_the_same_checkpoint_gives_the_same_bytes_and_stays_as_it_is(name: str, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(variant_named(name))
    parameters = {name: value.clone() for name, value in checkpoint.model.named_parameters()}
    quantized = quantize_all(checkpoint, 4)
    for directory in ("first", "second"):
        written(checkpoint, tmp_path / directory, quantized)
    assert sorted(file.name for file in (tmp_path / "first").iterdir()) == [
        CONFIG_FILE,
        GRAPH_FILE,
        DATA_FILE,
    ]
    for file in (CONFIG_FILE, GRAPH_FILE, DATA_FILE):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
    after = dict(checkpoint.model.named_parameters())
    assert after.keys() == parameters.keys()  # the builder on its own would add q_proj to a phi3
    assert all(bool((after[name] == value).all()) for name, value in parameters.items())


def test_nothing_is_printed_and_nothing_stays_on_the_path(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = list(sys.path)
    written(checkpoint_of(variant_named("granite-tied-gqa")), tmp_path)
    assert capfd.readouterr() == ("", "")
    assert sys.path == path
    assert not any(entry.endswith("onnxruntime_genai/models") for entry in sys.path)


def test_rotary_tables_end_at_the_context(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(variant_named("llama-rope-llama3"))
    path = written(checkpoint, tmp_path)
    assert initializers(path)["cos_cache"].shape == (64, 16)
    with pytest.raises(InputError, match=r"257 tokens.*256 tokens"):
        write_onnx(checkpoint, tmp_path, context_length=257)


@pytest.mark.parametrize("bits", [None, 4, 8])
@pytest.mark.parametrize("name", ["llama-wide", "llama-untied-mha", "gemma3_text-tied-gqa", "phi3-tied-gqa"])
def test_the_size_is_predicted(name: str, bits: int | None, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(variant_named(name))
    path = written(checkpoint, tmp_path, quantize_all(checkpoint, bits) if bits else {})
    source = Source(checkpoint, Style(None, None), (), None, 64)
    predicted = model_size(
        source, TARGETS[{None: "onnx:fp32", 4: "onnx:int4", 8: "onnx:int8"}[bits]]
    ).file_bytes
    found = path.stat().st_size + (tmp_path / DATA_FILE).stat().st_size
    assert predicted == pytest.approx(found, rel=0.05)


def test_an_activation_without_an_operator_is_refused(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(variant_named("llama-tied-gqa"))
    checkpoint.config.hidden_act = "mish"
    with pytest.raises(InputError, match=r"'mish'.*gelu"):
        written(checkpoint, tmp_path)


def test_genai_config_names_tokens_context_and_no_library(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(variant_named("qwen2-tied-gqa"))
    checkpoint.model.generation_config.eos_token_id = [0]
    checkpoint.model.generation_config.temperature = 0.7
    written(checkpoint, tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    model, decoder = config["model"], config["model"]["decoder"]
    assert model["type"] == "qwen2"
    assert (model["context_length"], config["search"]["max_length"]) == (64, 64)
    assert model["eos_token_id"] == [checkpoint.tokenizer.eos_token_id, 0]
    assert config["search"]["temperature"] == 0.7
    assert decoder["session_options"] == {"log_id": "onnxruntime-genai", "provider_options": []}
    assert (decoder["head_size"], decoder["num_key_value_heads"]) == (32, 2)
    assert "custom_ops_library" not in json.dumps(config)


@pytest.mark.parametrize(
    "name", ["llama-tied-gqa", "gemma3_text-tied-gqa", "phi3-untied-mha", "smollm3-tied-gqa"]
)
def test_onnxruntime_genai_decodes_the_same_tokens(name: str, tmp_path: Path) -> None:
    import onnxruntime_genai

    checkpoint = checkpoint_of(variant_named(name))
    path = written(checkpoint, tmp_path, quantize_all(checkpoint, 4))
    checkpoint.tokenizer.save_pretrained(tmp_path)
    model = onnxruntime_genai.Model(str(tmp_path))
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=48, do_sample=False)
    generator = onnxruntime_genai.Generator(model, parameters)
    generator.append_tokens(np.array(random_tokens(20), np.int32))
    logits = []
    while not generator.is_done():
        logits.append(generator.get_logits().reshape(-1))
        generator.generate_next_token()
    tokens = [int(token) for token in generator.get_sequence(0)]
    assert len(tokens) > 21
    expected = onnx_logits(path, tokens, prefill=20)[19 : 19 + len(logits)]
    np.testing.assert_allclose(np.stack(logits), expected, atol=1e-3)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [96, 576])
def test_int8_activations_do_not_saturate(bits: int, columns: int, tmp_path: Path) -> None:
    """Accuracy level 4 without VNNI sums pairs of products in 16 bits; the largest values must survive it."""
    rng = np.random.default_rng(0)
    ends = (-8, 7) if bits == 4 else (-127, 127)
    integers = rng.choice(ends, (17, columns)).astype(np.int8)
    tensor = QuantizedTensor(integers, rng.normal(size=(17, columns // 32)).astype(np.float16), bits)
    activations = rng.choice([-1.0, 1.0], (3, columns)).astype(np.float32)
    measured = _matmul_nbits(tensor, activations, tmp_path / "one.onnx")
    # +-1 is +-127 times 1/127: rounding to int8 loses nothing.
    np.testing.assert_allclose(measured, activations @ tensor.dequantize().T, rtol=1e-4, atol=1e-2)


def _matmul_nbits(tensor: QuantizedTensor, activations: np.ndarray, path: Path) -> np.ndarray:
    rows, columns = tensor.integers.shape
    float32 = onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
    activation = onnx_ir.Value(name="a", type=float32, shape=onnx_ir.Shape(["tokens", columns]))
    weights = [
        onnx_ir.Value(name=name, const_value=onnx_ir.tensor(array, name=name))
        for name, array in (("b", pack_blocks(tensor)), ("scales", pack_scales(tensor)))
    ]
    attributes = {"K": columns, "N": rows, "bits": tensor.bits, "block_size": 32, "accuracy_level": 4}
    node = onnx_ir.node("MatMulNBits", [activation, *weights], attributes, domain="com.microsoft")
    output = node.outputs[0]
    output.name, output.type, output.shape = "y", float32, onnx_ir.Shape(["tokens", rows])
    opsets = {"": 21, "com.microsoft": 1}
    graph = onnx_ir.Graph([activation], [output], nodes=[node], initializers=weights, opset_imports=opsets)
    graph.name = "one"
    onnx_ir.save(onnx_ir.Model(graph, ir_version=10), path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {"a": activations})[0]
    return result


@pytest.mark.parametrize("name", ["llama-untied-mha", "gemma3_text-tied-gqa"])
def test_logits_from_a_token_on_are_the_last_of_all(name: str, tmp_path: Path) -> None:
    path = written(checkpoint_of(variant_named(name)), tmp_path)
    tokens = random_tokens(9)
    everything = Decoder(path).feed(tokens)
    assert len(everything) == 9  # the input may be left out
    decoder = Decoder(path)
    assert "first_logit" not in {value.name for value in decoder.session.get_inputs()}
    last = decoder.feed(tokens[:8], first_logit=np.array([7], np.int64))
    np.testing.assert_allclose(last, everything[7:8], rtol=0, atol=1e-5)  # other shapes, other order of sums
    after = decoder.feed(tokens[8:])  # the cache is whole
    np.testing.assert_allclose(after, everything[8:], rtol=0, atol=1e-5)
