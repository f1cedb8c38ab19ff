"""A bounded reader for the header of a GGUF v3 file, standard library only.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Every count and length is checked against
a limit and the bytes that are left before anything is allocated: a hostile file costs no time or memory.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

from edge_distill_runtime.bundles.files import open_regular
from edge_distill_runtime.errors import BundleError

__all__ = ["GGML_TYPES", "GGMLType", "GGUFHeader", "TensorInfo", "read_gguf_header"]


class GGMLType(NamedTuple):
    """A tensor type: its name, weights in a block, bytes in a block."""

    name: str
    block_size: int
    block_bytes: int


# enum ggml_type and the type_traits table of ggml.c; removed types are absent.
GGML_TYPES: dict[int, GGMLType] = {
    0: GGMLType("F32", 1, 4),
    1: GGMLType("F16", 1, 2),
    2: GGMLType("Q4_0", 32, 18),
    3: GGMLType("Q4_1", 32, 20),
    6: GGMLType("Q5_0", 32, 22),
    7: GGMLType("Q5_1", 32, 24),
    8: GGMLType("Q8_0", 32, 34),
    9: GGMLType("Q8_1", 32, 36),
    10: GGMLType("Q2_K", 256, 84),
    11: GGMLType("Q3_K", 256, 110),
    12: GGMLType("Q4_K", 256, 144),
    13: GGMLType("Q5_K", 256, 176),
    14: GGMLType("Q6_K", 256, 210),
    15: GGMLType("Q8_K", 256, 292),
    16: GGMLType("IQ2_XXS", 256, 66),
    17: GGMLType("IQ2_XS", 256, 74),
    18: GGMLType("IQ3_XXS", 256, 98),
    19: GGMLType("IQ1_S", 256, 50),
    20: GGMLType("IQ4_NL", 32, 18),
    21: GGMLType("IQ3_S", 256, 110),
    22: GGMLType("IQ2_S", 256, 82),
    23: GGMLType("IQ4_XS", 256, 136),
    24: GGMLType("I8", 1, 1),
    25: GGMLType("I16", 1, 2),
    26: GGMLType("I32", 1, 4),
    27: GGMLType("I64", 1, 8),
    28: GGMLType("F64", 1, 8),
    29: GGMLType("IQ1_M", 256, 56),
    30: GGMLType("BF16", 1, 2),
    34: GGMLType("TQ1_0", 256, 54),
    35: GGMLType("TQ2_0", 256, 66),
    39: GGMLType("MXFP4", 32, 17),
}

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_MAX_PAIRS = 4096
_MAX_TENSORS = 16384
_MAX_NAME = 63  # GGML_MAX_NAME counts the terminating zero
_MAX_KEY = 256
_MAX_STRING = 1 << 20
_MAX_ARRAY = 1 << 22
_MAX_HEADER = 1 << 28
_MAX_DIMENSION = 1 << 32
_CHUNK = 1 << 18
_LENGTH = struct.Struct("<Q").unpack_from


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: shape is row-major, [rows, columns]; offset counts bytes from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    size: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class GGUFHeader:
    """Metadata and tensor table of a GGUF file."""

    metadata: dict[str, Any]
    """Python numbers, strings, booleans, and lists of them."""
    tensors: tuple[TensorInfo, ...]
    file_size: int

    @property
    def architecture(self) -> str:
        """`general.architecture`, or an empty string."""
        value = self.metadata.get("general.architecture")
        return value if isinstance(value, str) else ""

    @property
    def parameter_count(self) -> int:
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """True average over all tensors."""
        return 8 * sum(tensor.size for tensor in self.tensors) / max(1, self.parameter_count)

    @property
    def tensor_types(self) -> dict[str, int]:
        """How many tensors have which type."""
        return dict(Counter(tensor.type for tensor in self.tensors))


def read_gguf_header(path: Path | str, *, allow_links: bool = False) -> GGUFHeader:
    """Read the header of a GGUF v3 file and check that every tensor lies inside the file.

    Raises `BundleError` with a reason. What the metadata mean is checked by `gguf_check.check_gguf`.
    """
    with open_regular(Path(path), allow_links=allow_links) as file:
        size = file.seek(0, 2)
        file.seek(0)
        try:
            return _read_header(_Reader(file, size))
        except (ValueError, struct.error) as exc:
            raise BundleError(
                "bad-gguf", f"{path} is no sound GGUF file: {exc}", "copy, download or export it again"
            ) from exc


class _Reader:
    """Little-endian values from a file, through one bounded buffer."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self.size = size
        self._buffer = b""
        self._at = 0  # position in the buffer
        self._start = 0  # position of the buffer in the file

    @property
    def position(self) -> int:
        return self._start + self._at

    def require(self, count: int) -> None:
        """Make `count` bytes available in the buffer."""
        if len(self._buffer) - self._at >= count:
            return
        if self.position + count > min(self.size, _MAX_HEADER):
            where = (
                "the file ends"
                if self.position + count > self.size
                else f"the header exceeds {_MAX_HEADER} bytes"
            )
            raise ValueError(f"{where} inside the header, at byte {self.position}")
        self._buffer = self._buffer[self._at :] + self._file.read(max(_CHUNK, count))
        self._start, self._at = self._start + self._at, 0
        if len(self._buffer) < count:
            raise ValueError("the file shrank while it was read")

    def scalar(self, code: str) -> Any:
        size = struct.calcsize("<" + code)
        self.require(size)
        value = struct.unpack_from("<" + code, self._buffer, self._at)[0]
        self._at += size
        return value

    def numbers(self, code: str, count: int) -> list[Any]:
        size = struct.calcsize("<" + code) * count
        self.require(size)
        values = struct.unpack_from(f"<{count}{code}", self._buffer, self._at)
        self._at += size
        return list(values)

    def string(self, limit: int) -> str:
        return self.strings(1, limit)[0]

    def strings(self, count: int, limit: int) -> list[str]:
        """`count` strings of at most `limit` bytes, each behind its 64-bit length."""
        values = []
        for _ in range(count):
            if len(self._buffer) - self._at < 8:
                self.require(8)
            start = self._at + 8
            (length,) = _LENGTH(self._buffer, self._at)
            if length > limit:
                raise ValueError(f"a string of {length} bytes at byte {self.position}, limit {limit}")
            if len(self._buffer) - start < length:
                self.require(8 + length)
                start = self._at + 8
            self._at = start + length
            values.append(self._buffer[start : self._at].decode("utf-8"))
        return values


def _read_header(reader: _Reader) -> GGUFHeader:
    if reader.size < 24:
        _fail("empty" if not reader.size else f"only {reader.size} bytes", "a GGUF file has at least 24")
    reader.require(24)
    magic = reader.numbers("B", 4)
    if bytes(magic) != b"GGUF":
        text = bytes(magic).decode("latin-1")
        hint = "a git-lfs pointer, run `git lfs pull`" if text == "vers" else f"it starts with {text!r}"
        _fail("it does not start with GGUF", hint)
    version, tensor_count, pair_count = reader.scalar("I"), reader.scalar("Q"), reader.scalar("Q")
    if version != 3:
        _fail(f"version {version} is not supported", "only 3 is")
    if pair_count > _MAX_PAIRS or tensor_count > _MAX_TENSORS:
        _fail(f"{pair_count} keys and {tensor_count} tensors", f"limits {_MAX_PAIRS} and {_MAX_TENSORS}")
    metadata: dict[str, Any] = {}
    for _ in range(pair_count):
        key = reader.string(_MAX_KEY)
        _check_name(key, metadata)
        metadata[key] = _read_value(reader, reader.scalar("I"))
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= 65536 or alignment & (alignment - 1):
        _fail(f"alignment {alignment!r}", "must be a power of two up to 65536")
    tensors = _read_tensors(reader, tensor_count, alignment)
    return GGUFHeader(metadata, tensors, reader.size)


def _read_value(reader: _Reader, kind: int) -> Any:
    if kind == _STRING:
        return reader.string(_MAX_STRING)
    if kind == _ARRAY:
        kind, count = reader.scalar("I"), reader.scalar("Q")
        if count > _MAX_ARRAY:
            _fail(f"an array of {count} entries", f"limit {_MAX_ARRAY}")
        if kind == _STRING:
            return reader.strings(count, _MAX_STRING)
        return reader.numbers(_scalar_code(kind), count)
    if kind == _BOOL:
        return bool(reader.scalar("B"))
    return reader.scalar(_scalar_code(kind))


def _scalar_code(kind: int) -> str:
    if kind not in _SCALARS:
        _fail(f"metadata type {kind}", "unknown or nested")
    return _SCALARS[kind]


def _read_tensors(reader: _Reader, count: int, alignment: int) -> tuple[TensorInfo, ...]:
    infos: list[tuple[str, tuple[int, ...], GGMLType, int]] = []
    names: set[str] = set()
    for _ in range(count):
        name = reader.string(_MAX_NAME)
        _check_name(name, names)
        names.add(name)
        dimensions = reader.scalar("I")
        if not 1 <= dimensions <= 4:
            _fail(f"tensor {name} has {dimensions} dimensions", "1 to 4 are allowed")
        extents = reader.numbers("Q", dimensions)  # fastest dimension first
        if not all(1 <= extent <= _MAX_DIMENSION for extent in extents):
            _fail(f"tensor {name} has the extents {extents}", f"each must lie in [1, {_MAX_DIMENSION}]")
        kind = GGML_TYPES.get(code := reader.scalar("I"))
        if kind is None:
            _fail(f"tensor {name} has the type {code}", "unknown")
        if extents[0] % kind.block_size:
            _fail(
                f"tensor {name} has rows of {extents[0]}",
                f"{kind.name} needs {kind.block_size} n",
            )
        infos.append((name, tuple(reversed(extents)), kind, reader.scalar("Q")))
    return _place(infos, reader, alignment)


def _place(
    infos: list[tuple[str, tuple[int, ...], GGMLType, int]], reader: _Reader, alignment: int
) -> tuple[TensorInfo, ...]:
    """Absolute offsets; tensors must follow one another without gap or overlap, as libllama demands."""
    data = _padded(reader.position, alignment)
    expected = 0
    tensors = []
    for name, shape, kind, offset in infos:
        size = math.prod(shape) // kind.block_size * kind.block_bytes
        if offset != expected:
            _fail(f"tensor {name} lies at {offset}", f"expected at {expected}, behind the one before")
        if data + offset + size > reader.size:
            _fail(
                f"tensor {name} ends at byte {data + offset + size}",
                f"the file has {reader.size}, is it truncated?",
            )
        tensors.append(TensorInfo(name, shape, kind.name, data + offset, size))
        expected = _padded(offset + size, alignment)
    return tuple(tensors)


def _check_name(name: str, known: Container[str]) -> None:
    # libllama reads C strings: behind a zero byte a name could say something else
    if name in known or not name.isascii() or not name.isprintable() or not name:
        _fail(f"the name {name!r}", "it stands twice or is no plain ASCII")


def _padded(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def _fail(what: str, why: str) -> NoReturn:
    raise ValueError(f"{what}, {why}")
