"""Damage for model files: GGUF headers, protobuf graphs and JSON, taken apart, changed and put together again.

Half of the changes keep a file well-formed, so that they reach what lies behind the parser; the others hit bytes.
"""

from __future__ import annotations

import json
import random
import struct
from functools import cache
from typing import Any

__all__ = ["mutate_bytes", "mutate_gguf", "mutate_json", "mutate_onnx"]

INTEGERS = [
    0,
    1,
    2,
    3,
    7,
    8,
    16,
    31,
    32,
    64,
    255,
    256,
    512,
    1 << 16,
    1 << 24,
    1 << 30,
    (1 << 31) - 1,
    1 << 31,
]
_INTEGERS = [*INTEGERS, (1 << 32) - 1, 1 << 32, 1 << 40, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
_FLOATS = [0.0, -0.0, -1.0, 1e-45, -1e-5, 1e38, float("nan"), float("inf"), float("-inf")]
_TEXTS = [
    b"",
    b"\0",
    b"a",
    b"gpt2",
    b"llama",
    b"<think>",
    b"\xff\xfe",
    b"%s%n",
    b"../x",
    b"a" * 5000,
    b"<0x0A>",
]


def mutate_bytes(data: bytes, generator: random.Random, low: int = 0, high: int | None = None) -> bytes:
    """One to three changes of bits, numbers or stretches between `low` and `high`."""
    changed = bytearray(data)
    for _ in range(generator.choice((1, 1, 1, 2, 3))):
        if not changed:
            break
        at = min(generator.randrange(low, max(low + 1, high or len(data))), len(changed) - 1)
        match generator.randrange(9):
            case 0 | 1:
                changed[at] ^= 1 << generator.randrange(8)
            case 2:
                changed[at] = generator.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 3:
                changed[at : at + 4] = struct.pack("<I", generator.choice(_INTEGERS) & 0xFFFFFFFF)
            case 4:
                changed[at : at + 8] = struct.pack("<Q", generator.choice(_INTEGERS))
            case 5:
                changed[at : at + 4] = struct.pack("<f", generator.choice(_FLOATS))
            case 6:
                other = generator.randrange(len(changed))
                changed[at : at + 24] = changed[other : other + generator.randrange(1, 48)]
            case 7:
                del changed[at : at + generator.randrange(1, 16)]
            case 8:
                if generator.random() < 0.3:
                    del changed[at:]
                else:
                    changed[at:at] = changed[at : at + generator.randrange(1, 64)]
    return bytes(changed)


# -- GGUF ---------------------------------------------------------------------------------------------------------

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_TENSOR_TYPES = [0, 1, 2, 3, 6, 7, 8, 9, 10, 12, 14, 15, 20, 24, 26, 27, 28, 30, 34, 39, 99]

Pair = tuple[bytes, int, Any]  # key, type, value; an array's value is (type of its entries, entries)
Tensor = tuple[bytes, tuple[int, ...], int, int]  # name, extents, type, offset


@cache
def _parse_gguf(data: bytes) -> tuple[tuple[Pair, ...], tuple[Tensor, ...], int]:
    """Metadata, tensor table and where the table ends."""
    at = 24
    tensor_count, pair_count = struct.unpack_from("<QQ", data, 8)

    def number(code: str) -> Any:
        nonlocal at
        (value,) = struct.unpack_from("<" + code, data, at)
        at += struct.calcsize("<" + code)
        return value

    def text() -> bytes:
        nonlocal at
        length = number("Q")
        at += length
        return data[at - length : at]

    def value(kind: int) -> Any:
        if kind == _ARRAY:
            inner, count = number("I"), number("Q")
            return inner, [value(inner) for _ in range(count)]
        return text() if kind == _STRING else number(_SCALARS[kind])

    pairs = []
    for _ in range(pair_count):
        key, kind = text(), number("I")
        pairs.append((key, kind, value(kind)))
    tensors = []
    for _ in range(tensor_count):
        name, dimensions = text(), number("I")
        extents = tuple(number("Q") for _ in range(dimensions))
        tensors.append((name, extents, number("I"), number("Q")))
    return tuple(pairs), tuple(tensors), at


def _write_gguf(pairs: list[Pair], tensors: list[Tensor], weights: bytes) -> bytes:
    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    def scalar(code: str, value: Any) -> bytes:
        if code in "fd":
            return struct.pack("<" + code, value)
        size = struct.calcsize("<" + code)
        return (int(value) & ((1 << 8 * size) - 1)).to_bytes(size, "little")

    def encoded(kind: int, value: Any) -> bytes:
        if kind == _STRING:
            return text(value)
        if kind == _ARRAY:
            inner, entries = value
            return struct.pack("<IQ", inner, len(entries)) + b"".join(encoded(inner, e) for e in entries)
        return scalar(_SCALARS[kind], value)

    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(pairs))]
    parts += [text(key) + struct.pack("<I", kind) + encoded(kind, value) for key, kind, value in pairs]
    parts += [
        text(name) + struct.pack(f"<I{len(extents)}QIQ", len(extents), *extents, kind, offset)
        for name, extents, kind, offset in tensors
    ]
    header = b"".join(parts)
    return header + bytes(-len(header) % 32) + weights


def mutate_gguf(data: bytes, generator: random.Random) -> bytes:
    """A GGUF file whose header contradicts itself, or with damaged bytes, most of them in the header."""
    pairs, tensors, end = _parse_gguf(data)
    chance = generator.random()
    if chance < 0.35:
        return mutate_bytes(data, generator, 0, end)
    if chance < 0.5:
        return mutate_bytes(data, generator, end)  # weights: NaN, huge scales
    changed_pairs, changed_tensors = list(pairs), list(tensors)
    for _ in range(generator.choice((1, 1, 2))):
        if generator.random() < 0.65:
            _change_pair(changed_pairs, generator)
        else:
            _change_tensor(changed_tensors, generator)
    return _write_gguf(changed_pairs, changed_tensors, data[-(-end // 32) * 32 :])


def _change_pair(pairs: list[Pair], generator: random.Random) -> None:
    index = generator.randrange(len(pairs))
    key, kind, value = pairs[index]
    match generator.randrange(8):
        case 0:
            del pairs[index]
        case 1:
            pairs.insert(generator.randrange(len(pairs)), pairs[index])
        case 2:  # one value under another one's key
            pairs[index] = (key, *generator.choice(pairs)[1:])
        case 3:
            pairs[index] = (generator.choice(_TEXTS) or key + b".x", kind, value)
        case _:
            pairs[index] = (key, *_other_value(kind, value, generator))


def _other_value(kind: int, value: Any, generator: random.Random) -> tuple[int, Any]:
    if kind == _STRING:
        return kind, generator.choice((*_TEXTS, value + b"x", value[:-1], value[::-1]))
    if kind == _ARRAY:
        inner, entries = value
        entries = list(entries)
        at = generator.randrange(len(entries)) if entries else 0
        match generator.randrange(5) if entries else 4:
            case 0:
                entries[at] = generator.choice(entries)  # a token twice
            case 1:
                del entries[at]
            case 2:
                entries[at] = _other_value(inner, entries[at], generator)[1]
            case 3:
                generator.shuffle(entries)
            case 4:
                entries *= generator.choice((0, 2))
        return kind, (inner, entries)
    if generator.random() < 0.15:  # the same number as another type
        other = generator.choice([code for code in _SCALARS if code not in (6, 12)])
        return other, int(value) if value == value and abs(value) < 1 << 63 else 0
    if kind in (6, 12):
        return kind, generator.choice((*_FLOATS[:5], *_FLOATS[6:], value * 1.5, -value, value * 1e9))
    return kind, generator.choice((*_INTEGERS, value + 1, max(0, value - 1), value * 2, value // 2))


def _change_tensor(tensors: list[Tensor], generator: random.Random) -> None:
    index = generator.randrange(len(tensors))
    name, extents, kind, offset = tensors[index]
    match generator.randrange(7):
        case 0:
            del tensors[index]
        case 1:
            tensors[index] = (generator.choice(tensors)[0], extents, kind, offset)
        case 2:
            tensors[index] = (name, extents, generator.choice(_TENSOR_TYPES), offset)
        case 3:
            at = generator.randrange(len(extents))
            size = generator.choice((*_INTEGERS, extents[at] * 2, extents[at] // 2))
            tensors[index] = (name, (*extents[:at], size, *extents[at + 1 :]), kind, offset)
        case 4:
            tensors[index] = (name, generator.choice((extents[::-1], (*extents, 1), ())), kind, offset)
        case 5:
            tensors[index] = (name, extents, kind, generator.choice((*_INTEGERS, offset + 32, offset + 1)))
        case 6:
            other = generator.randrange(len(tensors))
            tensors[index], tensors[other] = tensors[other], tensors[index]


# -- ONNX ---------------------------------------------------------------------------------------------------------

_OPERATORS = [
    *(
        "Add",
        "Cast",
        "Concat",
        "Constant",
        "Gather",
        "Identity",
        "If",
        "Loop",
        "MatMul",
        "Mul",
        "Reshape",
        "Shape",
    ),
    *(
        "Slice",
        "Sub",
        "Transpose",
        "GroupQueryAttention",
        "MatMulNBits",
        "GatherBlockQuantized",
        "NoSuchOperator",
    ),
]


def mutate_onnx(data: bytes, generator: random.Random) -> bytes:
    """A graph that contradicts itself, or one with damaged bytes."""
    if generator.random() < 0.45:
        return mutate_bytes(data, generator)
    import onnx

    model = onnx.ModelProto.FromString(data)
    for _ in range(generator.choice((1, 1, 2))):
        kind = generator.random()
        if kind < 0.5:
            _change_node(model.graph.node, generator)
        elif kind < 0.75 and model.graph.initializer:
            _change_initializer(generator.choice(model.graph.initializer), generator)
        elif kind < 0.93:
            _change_value(generator.choice([*model.graph.input, *model.graph.output]), generator)
        elif kind < 0.97:
            generator.choice(model.opset_import).version = generator.choice((0, 1, 7, 99, (1 << 63) - 1))
        else:
            model.ir_version = generator.choice((0, 3, 99, (1 << 63) - 1))
    result: bytes = model.SerializeToString()
    return result


def _change_node(nodes: Any, generator: random.Random) -> None:
    node = generator.choice(nodes)
    match generator.randrange(7):
        case 0:
            nodes.remove(node)
        case 1:
            nodes.add().CopyFrom(node)
        case 2:
            node.op_type = generator.choice(_OPERATORS)
        case 3:
            names = generator.choice((node.input, node.output))
            if names:
                other = generator.choice(nodes)
                names[generator.randrange(len(names))] = generator.choice(["", *other.input, *other.output])
        case 4:
            names = generator.choice((node.input, node.output))
            if names:
                del names[generator.randrange(len(names))]
        case _:
            if node.attribute:
                _change_attribute(generator.choice(node.attribute), generator)


def _change_attribute(attribute: Any, generator: random.Random) -> None:
    number = min(generator.choice((*INTEGERS, (1 << 63) - 1)), (1 << 63) - 1) * generator.choice((1, 1, -1))
    match generator.randrange(5):
        case 0:
            attribute.type = generator.choice((1, 2, 3, 4, 6, 7))
        case 1:
            attribute.f = generator.choice(_FLOATS)
        case 2 if attribute.ints:
            attribute.ints[generator.randrange(len(attribute.ints))] = number
        case _:
            attribute.i = number


def _change_initializer(tensor: Any, generator: random.Random) -> None:
    match generator.randrange(4):
        case 0 if tensor.dims:
            at = generator.randrange(len(tensor.dims))
            tensor.dims[at] = generator.choice(
                (*INTEGERS, -1, (1 << 62), tensor.dims[at] * 2, tensor.dims[at] // 2)
            )
        case 1:
            tensor.data_type = generator.choice((0, 1, 2, 3, 6, 7, 8, 9, 10, 16, 21, 22, 99))
        case 2 if tensor.external_data:
            entry = generator.choice(tensor.external_data)
            entry.value = generator.choice(
                ("0", "1", "-1", "4096", str(1 << 62), "model.onnx", "../x", "/dev/zero", "")
            )
        case _:
            tensor.raw_data = generator.choice(_TEXTS)


def _change_value(value: Any, generator: random.Random) -> None:
    tensor = value.type.tensor_type
    match generator.randrange(4):
        case 0:
            value.name = generator.choice(
                ("", "logits", "input_ids", "past_key_values.0.key", "past_key_values.9.key")
            )
        case 1:
            tensor.elem_type = generator.choice((0, 1, 6, 7, 8, 10, 16, 99))
        case 2 if tensor.shape.dim:
            generator.choice(tensor.shape.dim).dim_value = generator.choice((*INTEGERS, -1, 1 << 62))
        case _:
            del tensor.shape.dim[generator.randrange(max(1, len(tensor.shape.dim))) :]


# -- JSON ---------------------------------------------------------------------------------------------------------

_VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        3,
        511,
        512,
        1 << 31,
        1 << 63,
        1 << 70,
        0.5,
        -0.5,
        1e308,
        "",
        "a",
        "x" * 5000,
    ),
    *("\ud800", "\0", "../model.onnx", "BPE", "ByteLevel", [], {}, [[]], [0], {"type": "x"}, [None] * 3),
]


def mutate_json(data: bytes, generator: random.Random) -> bytes:
    """A document with one to three other values, keys or bytes."""
    if generator.random() < 0.3:
        return mutate_bytes(data, generator)
    value = json.loads(data)
    for _ in range(generator.choice((1, 1, 2, 3))):
        _change_json(value, generator)
    return json.dumps(value).encode()


def _change_json(value: Any, generator: random.Random) -> None:
    # deeper one level at a time: a vocabulary of hundreds must not hide the few settings beside it
    parent: Any = None
    while isinstance(value, dict | list) and value and (parent is None or generator.random() < 0.75):
        key = generator.choice(list(value)) if isinstance(value, dict) else generator.randrange(len(value))
        parent, value = value, value[key]
    if parent is None:
        return
    match generator.randrange(6):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[generator.choice((*parent, "x"))] = parent.pop(key)
        case 2 if isinstance(parent, list):
            parent.insert(generator.randrange(len(parent)), value)
        case 3:
            parent[key] = generator.choice(list(parent.values()) if isinstance(parent, dict) else parent)
        case 4 if type(value) in (int, float):
            parent[key] = generator.choice((value + 1, value - 1, value * 2, -value, float(value)))
        case 4 if isinstance(value, str):
            parent[key] = generator.choice((value + "x", value[:-1], value[::-1], value * 9))
        case _:
            parent[key] = generator.choice(_VALUES)
