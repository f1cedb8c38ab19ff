"""Predictions against what is then written and measured, from shapes alone."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from transformers import AutoConfig

from edge_distill import cli
from edge_distill_export import plan
from edge_distill_export.artifact import tensor_summary
from edge_distill_export.checkpoint import load_checkpoint
from edge_distill_export.plan import Plan, PlannedTarget, parse_size
from edge_distill_export.targets import TARGETS
from edge_distill_runtime.engines.memory import cache_bytes, needed_memory
from edge_distill_runtime.errors import InputError
from tests.export.bundle_files import source_of, write_bundle
from tests.random_models import WIDE, Variant, save_checkpoint, variant_named

MIB = 1 << 20


def by_name(result: Plan) -> dict[str, PlannedTarget]:
    return {target.target: target for target in result.targets}


def text_of(result: Plan) -> str:
    console = Console(width=200, color_system=None, markup=False, highlight=False)
    with console.capture() as capture:
        result.render(console)
    return capture.get()


@pytest.mark.parametrize(
    ("variant", "targets"),
    [
        ("llama-wide", list(TARGETS)),
        ("llama-biases", ["gguf:q4_0", "gguf:q4_k_m", "onnx:int4"]),
        ("llama-rope-llama3", ["gguf:f16", "onnx:int8"]),
        ("qwen2-untied-mha", ["gguf:q8_0", "onnx:fp32", "onnx:int4"]),
        ("gemma3_text-tied-gqa", ["gguf:q4_0", "onnx:int4"]),
        ("phi3-tied-gqa", ["gguf:q5_k_m", "onnx:int8"]),
        ("smollm3-untied-mha", ["gguf:q6_k", "onnx:int4"]),
    ],
)
def test_sizes_are_those_of_the_files(variant: str, targets: list[str], tmp_path: Path) -> None:
    saved = save_checkpoint(tmp_path / "student", variant_named(variant))
    planned = by_name(plan(str(saved), to=targets))
    assert list(planned) == targets
    source = source_of(load_checkpoint(saved))
    for name in targets:
        directory = tmp_path / name.replace(":", "-")
        manifest = write_bundle(source, name, directory)
        expected = planned[name]
        assert expected.bits_per_weight == manifest.precision.bits_per_weight, name
        assert expected.kv_cache_bytes == manifest.kv.bytes_per_token * manifest.context_length
        _, types = tensor_summary(directory)
        for group in expected.fallbacks:
            assert types[group.used] >= len(group.tensors)
        size = sum(entry.size for entry in manifest.files if entry.path.startswith(manifest.model_file))
        # tensors to the byte; keys and graph by a constant, which is up to 5 % of files as small as these
        assert expected.file_bytes == pytest.approx(size, rel=0.05), name


def test_no_weight_is_read(tmp_path: Path) -> None:
    """Llama 2 7B as a sparse file: 27 GB that would never fit this test's memory."""
    saved = save_checkpoint(tmp_path / "llama-2-7b", variant_named("llama-untied-mha"))
    config = AutoConfig.from_pretrained(saved)
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "vocab_size": 32000}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128}
    config.update({**sizes, **heads, "max_position_embeddings": 4096})
    config.save_pretrained(saved)
    header = {"all": {"dtype": "F32", "shape": [6738415616], "data_offsets": [0, 4 * 6738415616]}}
    data = json.dumps(header).encode()
    with (saved / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(data)) + data)
        file.truncate(8 + len(data) + 4 * 6738415616)
    result = plan(str(saved), to=["gguf:f16", "gguf:q4_k_m", "onnx:int4"], context=4096, ram="9GB")
    assert result.parameters == 6_738_415_616  # as published
    found = by_name(result)
    assert found["gguf:f16"].file_bytes == pytest.approx(13.48e9, rel=0.005)
    # llama.cpp's own figure for Llama 2 7B at Q4_K_M, 4.08 GB
    assert found["gguf:q4_k_m"].file_bytes == pytest.approx(4.08e9, rel=0.005)
    assert found["gguf:q4_k_m"].kv_cache_bytes == 2 << 30  # the well-known 2 GiB
    assert [target.fits for target in result.targets] == [False, True, True]
    assert not found["gguf:q4_k_m"].fallbacks


def test_fallbacks_are_grouped_with_their_reason(tmp_path: Path) -> None:
    saved = save_checkpoint(tmp_path / "student", variant_named("llama-tied-gqa"))
    result = plan(str(saved), to=["gguf:q4_k_m", "gguf:q4_0"], ram="1GB")
    target = by_name(result)["gguf:q4_k_m"]
    groups = {(group.wanted, group.used, group.columns): len(group.tensors) for group in target.fallbacks}
    # 2 layers; 6 matrices each have rows of 128, down has 256; the last layer's values take more bits
    assert groups == {("Q4_K", "Q5_0", 128): 11, ("Q6_K", "Q8_0", 128): 1}
    line = "gguf:q4_k_m: 12 of 20 tensors fall back to Q5_0/Q8_0 because their rows of 128 are not divisible by 256"
    assert line in text_of(result)
    assert "gguf:q4_0: " not in text_of(result)


def test_impossible_targets_say_why(tmp_path: Path) -> None:
    heads = {"num_attention_heads": 13, "num_key_value_heads": 13}
    odd = Variant("llama", "odd", "smollm", {"tie_word_embeddings": True, "hidden_size": 208, **heads})
    result = plan(str(save_checkpoint(tmp_path / "odd", odd)))
    found = by_name(result)
    impossible = [name for name, target in found.items() if target.problem]
    assert impossible == ["gguf:q8_0", "gguf:q4_0", "onnx:int8", "onnx:int4"]
    problem = found["onnx:int4"].problem or ""
    assert "rows of 208 weights, which is not a multiple of 32" in problem
    assert not found["onnx:int4"].fits
    assert found["onnx:int4"].file_bytes is None
    assert "onnx:int4 is impossible: model.layers.0" in text_of(result)
    assert found["onnx:fp32"].fits


def test_a_format_that_cannot_hold_the_model(tmp_path: Path) -> None:
    """GroupQueryAttention rotates multiples of 16 dimensions; llama.cpp rotates any even number."""
    narrow = Variant("llama", "narrow", "smollm", {"num_attention_heads": 16, "num_key_value_heads": 16})
    found = by_name(plan(str(save_checkpoint(tmp_path / "narrow", narrow))))
    assert "GroupQueryAttention" in (found["onnx:fp32"].problem or "")
    assert found["gguf:q4_0"].problem is None


def test_context_changes_cache_and_rotary_tables(tmp_path: Path) -> None:
    long = replace(WIDE, config={**WIDE.config, "max_position_embeddings": 4096})
    saved = str(save_checkpoint(tmp_path / "student", long))
    usual = by_name(plan(saved, to=["gguf:q8_0", "onnx:int8"]))
    longer = by_name(plan(saved, to=["gguf:q8_0", "onnx:int8"], context=4096))
    heads, width, layers = 4, 32, 2
    assert usual["gguf:q8_0"].kv_cache_bytes == 2 * layers * heads * width * 2 * 2048
    assert longer["onnx:int8"].kv_cache_bytes == 2 * layers * heads * width * 4 * 4096
    assert longer["gguf:q8_0"].file_bytes == usual["gguf:q8_0"].file_bytes
    grown = (longer["onnx:int8"].file_bytes or 0) - (usual["onnx:int8"].file_bytes or 0)
    assert grown == 2048 * width * 4  # cos and sin, a half of the width each
    with pytest.raises(InputError, match="takes 32 to 4096 tokens"):
        plan(saved, context=4097)


def test_a_gguf_file_as_checkpoint(tmp_path: Path) -> None:
    saved = save_checkpoint(tmp_path / "student", WIDE)
    write_bundle(source_of(load_checkpoint(saved)), "gguf:f16", tmp_path / "bundle")
    (tmp_path / "bundle" / "model.gguf").rename(tmp_path / "student.gguf")
    result = plan(str(tmp_path / "student.gguf"), to=["gguf:f16"])
    assert result.checkpoint == "student"
    size = (tmp_path / "student.gguf").stat().st_size
    assert result.targets[0].file_bytes == pytest.approx(size, rel=0.02)


@pytest.mark.parametrize(
    ("text", "size"),
    [("256MB", 256 * 10**6), ("256MiB", 256 * 2**20), ("1.5 gb", 15 * 10**8), ("4GiB", 2**32), ("512b", 512)],
)
def test_sizes_of_memory(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "256", "lots", "-1MB", "0MB", "nanMB", "1e3MB", "256MBps", "1 iB", "٣MB x"]
)
def test_no_size_of_memory(text: str) -> None:
    with pytest.raises(InputError, match="is no size of memory"):
        parse_size(text)


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        plan(str(tmp_path / "none"))
    with pytest.raises(InputError, match="did you mean gguf:q4_0"):
        plan(str(tmp_path / "none"), to=["gguf:q4"])
    saved = save_checkpoint(tmp_path / "student", variant_named("llama-tied-gqa"))
    config = json.loads((saved / "config.json").read_text())
    for change, message in (
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is not supported"),
        ({"model_type": "nonsense"}, "cannot be read"),
        ({"hidden_size": "wide"}, "cannot be read"),
    ):
        (saved / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(InputError, match=message):
            plan(str(saved))


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = str(save_checkpoint(tmp_path / "student", variant_named("llama-tied-gqa")))
    assert cli.main(["plan", saved, "--to", "gguf:q4_0", "--ram", "64MiB", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["memory"] == 64 << 20
    assert [target["target"] for target in document["targets"]] == ["gguf:q4_0"]
    assert cli.main(["plan", saved, "--ram", "plenty"]) == 2


def test_memory_by_hand() -> None:
    """The formula, and libllama's rounding of the context."""
    assert cache_bytes("gguf", 100, 1) == 25_600
    assert cache_bytes("gguf", 100, 512) == 51_200
    assert cache_bytes("onnx", 100, 1) == 100
    sizes = {"model_bytes": 100 * MIB, "cache_bytes": 20 * MIB, "tokenizer_bytes": 4 * MIB}
    assert needed_memory("gguf", **sizes, vocab_size=50_000) == (61 + 48 + 100 + 20) * MIB
    assert needed_memory("onnx", **sizes, vocab_size=50_000) == (76 + 48 + 100 + 20 + 16) * MIB
    # a large tokenizer of a small model: it takes most while it is read
    sizes = {"model_bytes": MIB, "cache_bytes": MIB, "tokenizer_bytes": 10 * MIB}
    assert needed_memory("gguf", **sizes, vocab_size=150_000) == (31 + 220) * MIB


# What a device app does, until the context is full. Not getrusage: its peak begins with that of the process
# which started this one.
DECODE = """
import re, sys
from pathlib import Path
from edge_distill_runtime import load
with load(sys.argv[1], context=int(sys.argv[2])) as model:
    backend = model.backend
    sequence = backend.prefill([5 + i % 400 for i in range(backend.context_length - 64)])
    for token in range(64):
        backend.step([sequence], [7 + token])
print(1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]))
"""


def peak_of_decoding(directory: Path, context: int) -> int:
    command = [sys.executable, "-c", DECODE, str(directory), str(context)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.real_model
@pytest.mark.skipif(sys.platform != "linux", reason="the peak comes from /proc")
def test_the_real_model(real_gguf: Path, tmp_path: Path) -> None:
    """Sizes and peak memory within 10 % on SmolLM2-135M, which is 576 wide."""
    measured = ["gguf:q4_0", "onnx:int4"]
    targets = [*measured, "gguf:q8_0", "gguf:q4_k_m", "onnx:int8"]
    planned = {context: by_name(plan(str(real_gguf), context=context)) for context in (512, 2048)}
    k_quant = planned[2048]["gguf:q4_k_m"]
    assert (sum(len(group.tensors) for group in k_quant.fallbacks), k_quant.tensors) == (180, 272)
    source = source_of(load_checkpoint(real_gguf), 2048)
    for name in targets:
        directory = tmp_path / name.replace(":", "-")
        manifest = write_bundle(source, name, directory)
        size = sum(entry.size for entry in manifest.files if entry.path.startswith(manifest.model_file))
        print(f"{name}: file {size:,}, predicted {planned[2048][name].file_bytes:,}")
        assert planned[2048][name].file_bytes == pytest.approx(size, rel=0.01)
        for context in (512, 2048) if name in measured else ():
            peak = peak_of_decoding(directory, context)
            predicted = planned[context][name].peak_memory
            print(f"{name}, context {context}: peak {peak:,}, predicted {predicted:,}")
            assert predicted == pytest.approx(peak, rel=0.1), name


def test_a_quantized_cache(tmp_path: Path) -> None:
    saved = save_checkpoint(tmp_path / "student", variant_named("llama-tied-gqa"))  # heads of 32 values
    plain = by_name(plan(str(saved), to=["gguf:q4_0", "onnx:int4"]))
    small = by_name(plan(str(saved), to=["gguf:q4_0", "onnx:int4"], kv_bits=8))
    assert small["gguf:q4_0"].kv_cache_bytes == plain["gguf:q4_0"].kv_cache_bytes * 34 // 64
    assert small["onnx:int4"].kv_cache_bytes == plain["onnx:int4"].kv_cache_bytes // 4
    for name, before in plain.items():
        after = small[name]
        assert before.peak_memory is not None
        assert after.peak_memory is not None
        # the context is a multiple of 256, which libllama rounds to
        assert before.peak_memory - after.peak_memory == before.kv_cache_bytes - after.kv_cache_bytes
