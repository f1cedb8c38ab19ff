"""Loading checkpoints: every source, and every way in which one can be missing, damaged or hostile."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from edge_distill_export.checkpoint import load_checkpoint, read_config
from edge_distill_export.gguf_writer import write_gguf
from edge_distill_runtime.errors import InputError
from tests.random_models import random_checkpoint, save_checkpoint, variant_named

VARIANT = variant_named("llama-untied-mha")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("saved") / "student", VARIANT)


@pytest.fixture
def directory(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "student"))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def change_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([list(range(10, 40))])).logits


def test_a_directory(directory: Path) -> None:
    checkpoint = load_checkpoint(directory)
    model, _ = random_checkpoint(VARIANT)
    assert torch.equal(logits_of(checkpoint.model), logits_of(model))
    assert checkpoint.name == "student"
    assert list(checkpoint.lineage["weights"]) == ["model.safetensors"]


def test_shards(tmp_path: Path) -> None:
    model, tokenizer = random_checkpoint(VARIANT)
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(logits_of(load_checkpoint(tmp_path).model), logits_of(model))


@pytest.mark.parametrize("base_beside", [True, False])
def test_an_adapter_is_merged_onto_its_base(directory: Path, base_beside: bool) -> None:
    model, _ = random_checkpoint(VARIANT)
    adapted = get_peft_model(
        model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    )
    expected = logits_of(adapted)
    adapted.save_pretrained(directory.parent / "adapter")
    base = "../student" if base_beside else str(directory)
    edit(
        directory.parent / "adapter" / "adapter_config.json", lambda c: c.update(base_model_name_or_path=base)
    )
    checkpoint = load_checkpoint(directory.parent / "adapter")
    # merging adds the low-rank product to the weight once, in float32
    assert torch.allclose(logits_of(checkpoint.model), expected, atol=1e-3)
    assert checkpoint.lineage["base"]["name"] == "student"


def test_a_gguf_file_is_dequantized(tmp_path: Path, directory: Path) -> None:
    source = load_checkpoint(directory)
    write_gguf(source, tmp_path / "student.gguf", float_type="f32")
    checkpoint = load_checkpoint(tmp_path / "student.gguf")
    assert torch.allclose(logits_of(checkpoint.model), logits_of(source.model), atol=1e-4)
    for text in ("Hello, 123 worlds!", "naïve café\n\n  x"):
        assert checkpoint.tokenizer.encode(text) == source.tokenizer.encode(text)


def test_the_configuration_alone(directory: Path) -> None:
    config, path = read_config(directory)
    assert (config.model_type, path) == ("llama", directory)


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda d: shutil.rmtree(d), "does not exist"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "has neither model.safetensors nor"),
    "pickle": (
        lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"),
        r"pickled weights \(pytorch_model.bin\)",
    ),
    "no config": (lambda d: (d / "config.json").unlink(), "config.json does not exist"),
    "config is no JSON": (lambda d: (d / "config.json").write_text("{"), "not valid JSON"),
    "config is a list": (lambda d: (d / "config.json").write_text("[]"), "holds list, not an object"),
    "config nested": (lambda d: (d / "config.json").write_text("[" * 200_000), "not valid JSON"),
    "auto_map": (
        lambda d: edit(d / "config.json", lambda c: c.update(auto_map={"AutoConfig": "evil.Config"})),
        r"code of its own \(auto_map\)",
    ),
    "auto_map of the tokenizer": (
        lambda d: edit(
            d / "tokenizer_config.json", lambda c: c.update(auto_map={"AutoTokenizer": ["evil.T", None]})
        ),
        "tokenizer_config.json asks to run code",
    ),
    "quantized": (
        lambda d: edit(d / "config.json", lambda c: c.update(quantization_config={"quant_method": "gptq"})),
        r"already quantized \(gptq\)",
    ),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "has no tokenizer.json"),
    "tokenizer is no JSON": (lambda d: (d / "tokenizer.json").write_text("{}"), "cannot be loaded"),
    "empty weights": (lambda d: (d / "model.safetensors").write_bytes(b""), "has 0 bytes"),
    "lfs pointer": (
        lambda d: (d / "model.safetensors").write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
        ),
        "git-lfs pointer.*git lfs pull",
    ),
    "truncated": (
        lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-100]),
        r"has \d+ bytes, its header says \d+",
    ),
    "header too long": (
        lambda d: (d / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + b"{}"),
        "header of 4611686018427387904 bytes",
    ),
    "header is no JSON": (
        lambda d: (d / "model.safetensors").write_bytes(struct.pack("<Q", 4) + b"{{{{"),
        "damaged header",
    ),
    "a missing key": (
        lambda d: change_weights(d, lambda w: w.pop("model.layers.1.mlp.up_proj.weight")),
        r"1 missing keys, the first is model.layers.1.mlp.up_proj.weight",
    ),
    "a smaller config": (
        lambda d: edit(d / "config.json", lambda c: c.update(num_hidden_layers=1)),
        "unexpected keys, the first is model.layers.1",
    ),
    "a larger config": (
        lambda d: edit(d / "config.json", lambda c: c.update(num_hidden_layers=3)),
        "missing keys, the first is model.layers.2",
    ),
    "a wrong shape": (
        lambda d: edit(d / "config.json", lambda c: c.update(intermediate_size=320)),
        "student",
    ),
    "NaN": (
        lambda d: change_weights(d, lambda w: w["model.norm.weight"].fill_(float("nan"))),
        "model.norm.weight holds NaN or Inf",
    ),
    "infinity": (
        lambda d: change_weights(d, lambda w: w["lm_head.weight"][3].fill_(float("inf"))),
        "lm_head.weight holds NaN or Inf",
    ),
    "unknown architecture": (
        lambda d: edit(
            d / "config.json", lambda c: c.update(model_type="gpt2", architectures=["GPT2LMHeadModel"])
        ),
        "GPT2LMHeadModel is not supported.*llama.*granite",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_bad_input_gets_one_line(directory: Path, case: str) -> None:
    damage, message = HOSTILE[case]
    damage(directory)
    with pytest.raises(InputError, match=message) as error:
        load_checkpoint(directory)
    assert "\n" not in str(error.value)


def test_a_vocabulary_larger_than_the_embedding(directory: Path) -> None:
    _, tokenizer = random_checkpoint(VARIANT)
    tokenizer.add_tokens([f"extra{i}" for i in range(600)])
    tokenizer.save_pretrained(directory)
    with pytest.raises(InputError, match=r"the tokenizer has \d+ tokens, the embedding 512 rows.*resize"):
        load_checkpoint(directory)


@pytest.mark.parametrize(
    "shard", ["../outside.safetensors", "/etc/passwd", "a/b.safetensors", "x\\y.safetensors", "m.bin"]
)
def test_shards_outside_the_directory_are_refused(directory: Path, shard: str) -> None:
    (directory / "model.safetensors").rename(directory.parent / "outside.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": shard}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"which is not a \.safetensors file of its directory"):
        load_checkpoint(directory)


@pytest.mark.parametrize("index", ["{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}'])
def test_damaged_indexes(directory: Path, index: str) -> None:
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text(index)
    with pytest.raises(InputError, match="has no weight_map of file names"):
        load_checkpoint(directory)


def test_a_missing_shard(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="lacks the shard model-00001-of-00002"):
        load_checkpoint(directory)


def test_adapters_that_do_not_fit(directory: Path) -> None:
    adapter = directory.parent / "adapter"
    model, _ = random_checkpoint(VARIANT)
    get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(adapter)
    edit(adapter / "adapter_config.json", lambda c: c.update(base_model_name_or_path=str(directory)))
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({f"{name}x": weight for name, weight in weights.items()}, adapter / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"differ in \d+ weights"):
        load_checkpoint(adapter)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(InputError, match="pickled adapter weights"):
        load_checkpoint(adapter)
    edit(adapter / "adapter_config.json", lambda c: c.pop("base_model_name_or_path"))
    (adapter / "adapter_model.bin").rename(adapter / "adapter_model.safetensors")
    with pytest.raises(InputError, match="names no base model"):
        load_checkpoint(adapter)


def test_an_adapter_that_stands_on_itself(directory: Path) -> None:
    adapter = directory.parent / "adapter"
    model, _ = random_checkpoint(VARIANT)
    get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(adapter)
    edit(adapter / "adapter_config.json", lambda c: c.update(base_model_name_or_path=str(adapter)))
    with pytest.raises(InputError, match="stands on more than 4 adapters"):
        load_checkpoint(adapter)


def test_damaged_gguf_files(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"")
    with pytest.raises(InputError, match="has 0 bytes"):
        load_checkpoint(path)
    path.write_bytes(b"GGUF" + b"\xff" * 60)
    with pytest.raises(InputError):
        load_checkpoint(path)


def test_no_such_hub_id_without_a_network() -> None:
    with pytest.raises(InputError, match="could not be downloaded"):
        load_checkpoint("nobody/no-such-model")
