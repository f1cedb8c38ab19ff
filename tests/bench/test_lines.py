"""JSON lines that are appended, torn, hostile or in the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_distill_bench.fidelity_cache import write_reference
from edge_distill_bench.fidelity_texts import ForcedText
from edge_distill_bench.lines import append_lines, cut_torn_line, read_lines
from edge_distill_runtime import InputError, Model
from edge_distill_runtime.errors import ResourceError


def test_lines_come_back(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_lines(path, [{"a": 1}, {"b": "é\n"}])
    append_lines(path, [])
    append_lines(path, [{"c": "lone \ud800"}])
    assert list(read_lines(path)) == [(1, {"a": 1}), (2, {"b": "é\n"}), (3, {"c": "lone ?"})]
    assert path.read_bytes().count(b"\n") == 3


@pytest.mark.parametrize("torn", [b"", b"{", b'{"x": "' + b"y" * 200_000, b"\x00" * 70_000])
def test_the_torn_end_is_cut(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + torn)
    cut_torn_line(path)
    assert path.read_bytes() == b'{"a": 1}\n'
    path.write_bytes(torn)
    cut_torn_line(path)
    assert path.read_bytes() == b""


@pytest.mark.parametrize("line", [b"", b"[]", b"1", b"\xff", b"{'a': 1}", b"[" * 100_000, b'{"a": 1} x'])
def test_other_lines_are_told(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 1}\n')
    with pytest.raises(InputError, match=r"line 2 of .* is no row"):
        list(read_lines(path))


def test_places_that_cannot_be_written(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="cannot be written"):
        append_lines(tmp_path, [{"a": 1}])
    (tmp_path / "file").write_text("")
    text = ForcedText((1, 2, 3), 1, "ra", "..")
    with pytest.raises(ResourceError, match="choose another folder"):
        write_reference(model, [text], tmp_path / "file", name="r")
    (tmp_path / "folder" / "reference.bin").mkdir(parents=True)
    with pytest.raises(ResourceError, match="choose another folder"):
        write_reference(model, [text], tmp_path / "folder", name="r")
