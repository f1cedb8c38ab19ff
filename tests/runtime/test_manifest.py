"""Manifests and the files they list: what is written is read back, what is hostile is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_distill_runtime import BundleError, EdgeDistillError, InputError
from edge_distill_runtime.bundles.files import check_relative_path, open_regular, read_bounded, sha256_of
from edge_distill_runtime.bundles.manifest import (
    MANIFEST_NAME,
    Manifest,
    manifest_to_json,
    parse_manifest,
    read_manifest,
    verify_files,
)
from tests.runtime.bundles import file_entry, make_manifest, write_manifest


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    directory = tmp_path / "bundle"
    directory.mkdir()
    for name in ("model.gguf", "tokenizer.json", "README.md"):
        (directory / name).write_bytes(name.encode() * 100)
    write_manifest(directory, "gguf")
    return directory


def changed(manifest: Manifest, change: Callable[[dict[str, Any]], None]) -> bytes:
    value = json.loads(manifest_to_json(manifest))
    change(value)
    return json.dumps(value).encode()


def test_written_manifest_is_read_back(bundle: Path) -> None:
    manifest = make_manifest(
        bundle, "gguf", lineage={"base": {"name": "x", "loss": 0.5}}, runtime={"a": ">=1"}
    )
    assert parse_manifest(manifest_to_json(manifest)) == manifest
    assert read_manifest(bundle) == make_manifest(bundle, "gguf")
    verify_files(bundle, read_manifest(bundle))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema_version=2), "schema_version is 2, this runtime reads 1"),
        (lambda m: m.update(schema_version=True), "is of type bool"),
        (lambda m: m.pop("schema_version"), "schema_version is None"),
        (lambda m: m.pop("kv"), "lacks the key 'kv'"),
        (lambda m: m.update(surprise=1), "unknown key 'surprise'"),
        (lambda m: m["kv"].update(layers="2"), "kv.layers is of type str, expected int"),
        (lambda m: m["kv"].update(layers=True), "kv.layers is of type bool, expected int"),
        (lambda m: m["kv"].update(layers=0), r"each must lie in \[1, 65536\]"),
        (lambda m: m["kv"].update(layers=10**30), r"each must lie in \[1, 65536\]"),
        (lambda m: m.update(format="pickle"), "format is 'pickle', expected one of gguf, onnx"),
        (lambda m: m.update(format=[]), "expected one of gguf, onnx"),
        (lambda m: m.update(context_length=1 << 30), "context_length is 1073741824"),
        (lambda m: m.update(vocab_size=0), "vocab_size is 0"),
        (lambda m: m.update(stop_ids=[512]), "token id 512 lies outside the vocabulary of 512"),
        (lambda m: m.update(stop_ids=[-1]), "token id -1"),
        (lambda m: m.update(bos_id=5000), "token id 5000"),
        (lambda m: m["chat"].update(user=["a"]), "chat.user has 1 entries, expected 2"),
        (lambda m: m["chat"].update(prefix=None), "chat.prefix is of type NoneType"),
        (lambda m: m["reasoning"].update(open=""), "a reasoning marker is empty"),
        (lambda m: m["precision"].update(tensor_types=[]), "tensor_types is of type list"),
        (lambda m: m["precision"].update(bits_per_weight="4"), "expected float"),
        (lambda m: m["sampling"].update(temperature=-1), "sampling defaults out of range"),
        (lambda m: m["files"].append(dict(m["files"][0])), "listed twice"),
        (lambda m: m["files"].append(m["files"][0] | {"path": "MODEL.gguf"}), "listed twice"),
        (lambda m: m["files"].append(m["files"][0] | {"path": "model.onnx"}), "holds model.gguf alone"),
        (lambda m: m["files"].append(m["files"][0] | {"path": MANIFEST_NAME}), "lists itself"),
        (lambda m: m["files"][0].update(sha256="00"), "sha256 of 'README.md' is malformed"),
        (lambda m: m["files"][0].update(sha256="G" * 64), "malformed"),
        (lambda m: m["files"][0].update(size=-1), "malformed"),
        (
            lambda m: m.update(files=[entry for entry in m["files"] if "model" not in entry["path"]]),
            "holds model.gguf",
        ),
        (
            lambda m: m.update(files=[entry for entry in m["files"] if "tok" not in entry["path"]]),
            "lacks tokenizer.json",
        ),
    ],
)
def test_bad_manifests(bundle: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        parse_manifest(changed(make_manifest(bundle, "gguf"), change))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"\xff\xfe",
        b"{" * 10,
        b"[" * 500_000,
        b'{"a": 1, "a": 2}',
        b'{"a": NaN}',
        b'{"schema_version": ' + b"9" * 10_000 + b"}",
    ],
)
def test_no_manifest_at_all(data: bytes) -> None:
    with pytest.raises(BundleError):
        parse_manifest(data)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"name": "x"', '"name": "x", "name": "x"', "a key stands twice"),
        ('"bits_per_weight": 4.5', '"bits_per_weight": NaN', "NaN is no JSON number"),
        ('"temperature": 0.0', '"temperature": 1e999', "temperature is not finite"),
        ('"lineage": {}', '"lineage": ' + "[" * 5000 + "]" * 5000, "nested too deeply"),
    ],
)
def test_json_that_is_read_in_more_than_one_way(old: str, new: str, message: str) -> None:
    parse_manifest(_SOUND.encode())
    with pytest.raises(BundleError, match=message):
        parse_manifest(_SOUND.replace(old, new).encode())


def test_oversized_manifest(bundle: Path) -> None:
    (bundle / MANIFEST_NAME).write_bytes(b" " * (1 << 20) + b"{}")
    with pytest.raises(BundleError, match="larger than 1048576 bytes"):
        read_manifest(bundle)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_random_changes_are_typed_errors_or_sound(data: st.DataObject) -> None:
    """A manifest with one value replaced is refused with a typed error or read as it stands."""
    value = json.loads(_SOUND)
    path = data.draw(st.sampled_from(_paths(value)))
    target = value
    for key in path[:-1]:
        target = target[key]
    json_values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
        lambda children: (
            st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=4), children, max_size=3)
        ),
        max_leaves=4,
    )
    target[path[-1]] = data.draw(json_values)
    try:
        manifest = parse_manifest(json.dumps(value).encode())
    except EdgeDistillError:
        return
    written = manifest_to_json(manifest)
    assert parse_manifest(written) == manifest
    assert_kept(value, json.loads(written))


def assert_kept(given: Any, written: Any) -> None:
    """Nothing that was given is lost or changed; left-out fields may have been filled in."""
    if isinstance(given, dict):
        for key, value in given.items():
            assert_kept(value, written[key])
    else:
        assert given == written


_HASH = "0" * 64
_SOUND = json.dumps(
    {
        "schema_version": 1,
        "name": "x",
        "format": "onnx",
        "precision": {"target": "int4", "method": "rtn", "bits_per_weight": 4.5, "tensor_types": {"Q4": 1}},
        "architecture": "llama",
        "parameter_count": 1,
        "vocab_size": 10,
        "context_length": 8,
        "kv": {"layers": 1, "kv_heads": 1, "head_dim": 8, "bytes_per_value": 4},
        "stop_ids": [1],
        "bos_id": None,
        "chat": None,
        "reasoning": {"open": "<think>", "close": "</think>"},
        "files": [
            {"path": "model.onnx", "size": 1, "sha256": _HASH},
            {"path": "tokenizer.json", "size": 1, "sha256": _HASH},
        ],
        "sampling": {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
        "lineage": {},
        "verification": {},
        "runtime": {},
    }
)


def _paths(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, item in items for path in [(*prefix, key), *_paths(item, (*prefix, key))]]


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "../model.gguf",
        "a/../../b",
        "a/..",
        "./a",
        "a//b",
        "a/",
        "a\\b",
        "C:evil",
        "C:\\evil",
        "a\0b",
        "a\nb",
        "x" * 300,
        "a*",
        "a ",
        "\u202eknalb",
    ],
)
def test_unsafe_paths(path: str, bundle: Path) -> None:
    with pytest.raises(BundleError, match="not a plain relative path"):
        check_relative_path(path)
    with pytest.raises(BundleError, match="not a plain relative path"):
        parse_manifest(changed(make_manifest(bundle, "gguf"), lambda m: m["files"][0].update(path=path)))


def test_safe_paths() -> None:
    for path in ("model.gguf", "model.onnx.data", "a/b/c.txt", ".hidden", "a..b", "größe.md"):
        assert check_relative_path(path) == path


def test_changed_files_are_found(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    path = bundle / "README.md"
    data = path.read_bytes()
    for content, message in (
        (data[:-1] + b"!", "README.md does not match its SHA-256"),
        (data + b"!", "README.md has 901 bytes, its manifest says 900"),
        (b"", "README.md has 0 bytes"),
    ):
        path.write_bytes(content)
        with pytest.raises(BundleError, match=message):
            verify_files(bundle, manifest)
    path.unlink()
    with pytest.raises(BundleError, match=r"lacks README\.md"):
        verify_files(bundle, manifest)


@pytest.mark.parametrize("name", ["extra.so", "sub/custom_ops.so", ".hidden"])
def test_files_that_are_not_listed(bundle: Path, name: str) -> None:
    path = bundle / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")
    with pytest.raises(BundleError, match=f"holds '{name}', which its manifest does not list"):
        verify_files(bundle, read_manifest(bundle))


def replace_by(kind: str, path: Path) -> None:
    elsewhere = path.parent.parent / "elsewhere"
    path.rename(elsewhere)
    if kind == "symlink":
        path.symlink_to(elsewhere)
    elif kind == "hardlink":
        os.link(elsewhere, path)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("symlink", "is a symbolic link"),
        ("hardlink", "has 2 hard links"),
        ("fifo", "is not a regular file"),
        ("folder", "lacks model.gguf"),
    ],
)
def test_links_and_pipes(bundle: Path, kind: str, message: str) -> None:
    replace_by(kind, bundle / "model.gguf")
    with pytest.raises(BundleError, match=message):
        verify_files(bundle, read_manifest(bundle))


@pytest.mark.parametrize("kind", ["symlink", "hardlink", "fifo", "folder"])
def test_linked_manifest(bundle: Path, kind: str) -> None:
    replace_by(kind, bundle / MANIFEST_NAME)
    with pytest.raises(BundleError):
        read_manifest(bundle)


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_manifest(tmp_path)
    with pytest.raises(InputError, match="cannot be opened"):
        open_regular(tmp_path / ("x" * 5000))
    with pytest.raises(InputError, match="cannot be opened"):
        open_regular(tmp_path / "a\0b")


def test_bounded_reading_and_hashing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert read_bounded(path, 3) == b"abc"
    with pytest.raises(BundleError, match="larger than 2 bytes"):
        read_bounded(path, 2)
    assert sha256_of(path) == (3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    assert file_entry(tmp_path, "file").sha256 == sha256_of(path)[1]
