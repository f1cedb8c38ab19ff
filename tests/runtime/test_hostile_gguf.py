"""GGUF files that would kill libllama, one by one: the validator refuses them. test_fuzz.py makes thousands more."""

from __future__ import annotations

import os
import struct
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, quants

from edge_distill_runtime import BundleError, InputError
from edge_distill_runtime.bundles.gguf_check import validate_gguf
from edge_distill_runtime.engines.llama import LlamaBackend

LIMIT = 2.0  # seconds for one file
_EMBEDDING, _INNER, _VOCABULARY, _LAYERS = 32, 64, 24, 2


def write_tiny(
    path: Path,
    architecture: str = "llama",
    kind: GGMLQuantizationType = GGMLQuantizationType.F16,
    spm: bool = False,
    pattern: Any = None,
) -> Path:
    """A sound GGUF file of some kilobytes: two layers of width 32."""
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(_EMBEDDING)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_INNER)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    if architecture == "granite":
        writer.add_logit_scale(2.0)
    if architecture == "gemma3":
        writer.add_sliding_window(32)
    if isinstance(pattern, list):
        writer.add_array(f"{architecture}.attention.sliding_window_pattern", pattern)
    elif pattern:
        writer.add_uint32(f"{architecture}.attention.sliding_window_pattern", pattern)
    _add_vocabulary(writer, spm)
    generator = np.random.default_rng(1)
    for name, shape in _tensors(architecture).items():
        values = (0.3 * generator.standard_normal(shape)).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_vocabulary(writer: GGUFWriter, spm: bool) -> None:
    if spm:
        tokens = [
            "<unk>",
            "<s>",
            "</s>",
            "<0x0A>",
            *(f"▁{chr(97 + index)}" for index in range(_VOCABULARY - 4)),
        ]
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([-float(index) for index in range(_VOCABULARY)])
        types = [2, 3, 3, 6] + [1] * (_VOCABULARY - 4)
    else:
        tokens = ["<|endoftext|>", "Ċ", *(chr(97 + index) for index in range(_VOCABULARY - 3)), "ab"]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_merges(["a b"])
        types = [3] + [1] * (_VOCABULARY - 1)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)


def _tensors(architecture: str) -> dict[str, tuple[int, ...]]:
    wide, inner, key = _EMBEDDING, _INNER, 16
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (wide,),
        "attn_q.weight": (wide, wide),
        "attn_k.weight": (key, wide),
        "attn_v.weight": (key, wide),
        "attn_output.weight": (wide, wide),
        "ffn_norm.weight": (wide,),
        "ffn_gate.weight": (inner, wide),
        "ffn_up.weight": (inner, wide),
        "ffn_down.weight": (wide, inner),
    }
    if architecture in ("qwen3", "gemma3"):
        layer |= {"attn_q_norm.weight": (16,), "attn_k_norm.weight": (16,)}
    if architecture == "gemma3":
        layer |= {"post_attention_norm.weight": (wide,), "post_ffw_norm.weight": (wide,)}
    if architecture == "phi3":
        layer = {
            name: shape for name, shape in layer.items() if name[:6] not in ("attn_q", "attn_k", "attn_v")
        }
        del layer["ffn_gate.weight"]
        layer |= {"attn_qkv.weight": (wide + 2 * key, wide), "ffn_up.weight": (2 * inner, wide)}
    result: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (_VOCABULARY, wide),
        "output_norm.weight": (wide,),
    }
    for index in range(_LAYERS):
        result |= {f"blk.{index}.{name}": shape for name, shape in layer.items()}
    return result


ORIGINALS = [
    ("llama", GGMLQuantizationType.F16, False),
    ("llama", GGMLQuantizationType.Q4_0, True),
    ("llama", GGMLQuantizationType.Q8_0, False),
    ("qwen2", GGMLQuantizationType.Q8_0, False),
    ("qwen3", GGMLQuantizationType.Q4_0, False),
    ("gemma3", GGMLQuantizationType.F16, True),
    ("phi3", GGMLQuantizationType.Q4_0, False),
    ("smollm3", GGMLQuantizationType.F16, False),
    ("granite", GGMLQuantizationType.Q8_0, False),
]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("originals")
    files = [
        write_tiny(folder / f"{index}.gguf", architecture, kind, spm)
        for index, (architecture, kind, spm) in enumerate(ORIGINALS)
    ]
    return [file.read_bytes() for file in files]


def test_sound_files_are_accepted_and_run(originals: list[bytes], tmp_path: Path) -> None:
    for index, data in enumerate(originals):
        path = tmp_path / f"{index}.gguf"
        path.write_bytes(data)
        validate_gguf(path)
        with closing(LlamaBackend(path, context=64, threads=1)) as backend:
            sequence = backend.prefill([1, 2, 3])
            fork = backend.fork(sequence, 1)[0]
            assert backend.step([sequence, fork], [4, 5]).shape == (2, _VOCABULARY)


@pytest.mark.parametrize(
    ("pattern", "accepted"),
    [([False, False], False), ([True], False), (1, False), ([False, True], True), (2, True)],
)
def test_sliding_window_patterns(tmp_path: Path, pattern: Any, accepted: bool) -> None:
    """libllama asserts that a model with a window has a layer with one; found by fuzzing."""
    path = write_tiny(tmp_path / "model.gguf", "gemma3", pattern=pattern)
    if accepted:
        validate_gguf(path)
        LlamaBackend(path, context=64, threads=1).close()
    else:
        with pytest.raises(BundleError, match="sliding_window_pattern"):
            validate_gguf(path)


def _patch(data: bytes, key: str, value: bytes) -> bytes:
    """Overwrite the value of a scalar metadata key."""
    at = data.index(key.encode()) + len(key) + 4
    return data[:at] + value + data[at + len(value) :]


def _patch_type(data: bytes, tensor: str, kind: int) -> bytes:
    at = data.index(tensor.encode()) + len(tensor)
    (dimensions,) = struct.unpack_from("<I", data, at)
    at += 4 + 8 * dimensions
    return data[:at] + struct.pack("<I", kind) + data[at + 4 :]


_U32 = struct.Struct("<I").pack
_F32 = struct.Struct("<f").pack


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("llama.block_count", _U32(0), "block_count is 0"),
        ("llama.block_count", _U32(3), "blk.2.attn_norm.weight is missing"),
        ("llama.block_count", _U32(1), "blk.1"),
        ("llama.block_count", _U32(4_000_000_000), "block_count is 4000000000"),
        ("llama.context_length", _U32(1 << 30), "context_length is 1073741824"),
        ("llama.context_length", _U32(0), "context_length is 0"),
        ("llama.embedding_length", _U32(64), "rope.dimension_count is 16, expected 32"),
        ("llama.feed_forward_length", _U32(63), "has the shape"),
        ("llama.attention.head_count", _U32(0), "head_count is 0"),
        ("llama.attention.head_count", _U32(4), "rope"),
        ("llama.attention.head_count_kv", _U32(2), "has the shape"),
        ("llama.attention.head_count_kv", _U32(0), "head_count_kv is 0"),
        ("llama.rope.dimension_count", _U32(8), "rope.dimension_count is 8, expected 16"),
        ("llama.rope.freq_base", _F32(float("nan")), "freq_base is nan"),
        ("llama.attention.layer_norm_rms_epsilon", _F32(-1e-5), "rms_epsilon is -"),
        ("llama.attention.layer_norm_rms_epsilon", _F32(float("nan")), "rms_epsilon is nan"),
        ("tokenizer.ggml.eos_token_id", _U32(24), "the vocabulary has 24 tokens"),
    ],
)
def test_refused_metadata(
    originals: list[bytes], tmp_path: Path, key: str, value: bytes, message: str
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(_patch(originals[0], key, value))
    with pytest.raises(BundleError, match=message):
        validate_gguf(path)


@pytest.mark.parametrize("kind", [24, 26, 27, 28, 9, 4, 31, 1000])
def test_refused_tensor_types(originals: list[bytes], tmp_path: Path, kind: int) -> None:
    path = tmp_path / "model.gguf"
    for tensor in ("token_embd.weight", "blk.1.ffn_down.weight", "output_norm.weight"):
        path.write_bytes(_patch_type(originals[0], tensor, kind))
        with pytest.raises(BundleError):
            validate_gguf(path)


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _file(*pairs: bytes, tensors: bytes = b"", tensor_count: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensor_count, len(pairs)) + b"".join(pairs) + tensors


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"GGUF", "only 4 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git-lfs pointer"),
        (b"\x80\x02}" + bytes(40), "does not start with GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 2, 0, 0), "version 2 is not supported"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 50331648"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 63, 0), "tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 62), "keys"),
        # the file on which gguf.GGUFReader hangs
        (_file(_string("a") + struct.pack("<IIQ", 9, 4, 1 << 62)), "an array of 4611686018427387904"),
        (_file(_string("a") + struct.pack("<IIQ", 9, 9, 1)), "metadata type 9"),
        (_file(_string("a") + struct.pack("<IIQ", 9, 4, 1 << 20)), "the file ends"),
        (_file(_string("a") + struct.pack("<IIQ", 9, 8, 1 << 20)), "the file ends"),
        (_file(struct.pack("<Q", 1 << 63)), "a string of 9223372036854775808 bytes"),
        (_file(struct.pack("<Q", 3) + b"\xff\xfe\xfd" + bytes(8)), "utf-8"),
        (_file(*[_string("a") + struct.pack("<II", 4, 1)] * 2), "stands twice"),
        (_file(_string("general.alignment") + struct.pack("<II", 4, 0)), "alignment 0"),
        (_file(_string("general.alignment") + struct.pack("<II", 4, 24)), "alignment 24"),
        (
            _file(_string("general.architecture") + struct.pack("<I", 8) + _string("clip")),
            "'clip' is unknown",
        ),
        (_file(tensor_count=1, tensors=_string("x") + struct.pack("<I", 5)), "5 dimensions"),
        (_file(tensor_count=1, tensors=_string("x") + struct.pack("<IQIQ", 1, 0, 0, 0)), "extents"),
        (_file(tensor_count=1, tensors=_string("x") + struct.pack("<IQIQ", 1, 33, 2, 0)), "Q4_0 needs"),
        (_file(tensor_count=1, tensors=_string("x") + struct.pack("<IQIQ", 1, 32, 0, 32)), "expected at 0"),
        (_file(tensor_count=1, tensors=_string("x") + struct.pack("<IQIQ", 1, 32, 0, 0)), "is it truncated"),
    ],
)
def test_refused_files(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    start = time.monotonic()
    with pytest.raises(BundleError, match=message):
        validate_gguf(path)
    assert time.monotonic() - start < LIMIT


@pytest.mark.parametrize(("old", "new"), [("c", "d"), ("ab", "a\0"), ("c", "[EMPTY_5]")])
def test_tokens_that_stand_twice(originals: list[bytes], tmp_path: Path, old: str, new: str) -> None:
    """libllama asserts that they differ, and it reads a token as a C string."""
    path = tmp_path / "model.gguf"
    data = originals[0].replace(_string(old), _string(new))
    path.write_bytes(data.replace(_string("d"), _string("")) if new.startswith("[") else data)
    with pytest.raises(BundleError, match="a token stands twice"):
        validate_gguf(path)


@pytest.mark.parametrize("name", ["general.name\0", "llama.block_coun\0", "llama.blöck", "a b\n"])
def test_names_that_libllama_would_read_differently(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(_file(struct.pack("<Q", len(name.encode())) + name.encode() + struct.pack("<II", 4, 1)))
    with pytest.raises(BundleError, match="no plain ASCII"):
        validate_gguf(path)


def test_pipes_and_folders_are_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "model.gguf"
    os.mkfifo(pipe)
    start = time.monotonic()
    for path in (pipe, tmp_path):
        with pytest.raises(BundleError, match="not a regular file"):
            validate_gguf(path, allow_links=True)
    with pytest.raises(BundleError, match="not a regular file"):
        validate_gguf(Path("/dev/zero"))
    with pytest.raises(InputError, match="does not exist"):
        validate_gguf(tmp_path / "none.gguf")
    assert time.monotonic() - start < LIMIT


def test_every_truncation_is_refused(originals: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    data = originals[1]
    for length in range(0, len(data) - 32, 97):
        path.write_bytes(data[:length])
        with pytest.raises(BundleError):
            validate_gguf(path)
