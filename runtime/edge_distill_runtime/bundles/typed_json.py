"""JSON values as frozen dataclasses: strict, without conversion, every fault with its place."""

from __future__ import annotations

import dataclasses
import math
import types
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = ["typed"]

T = TypeVar("T")


def typed(expected: type[T], value: Any, where: str) -> T:
    """A JSON value as a type hint asks, or ValueError; only int to float and list to tuple are converted.

    Hints: dataclasses, `X | None`, `Literal` of strings, `tuple`, `dict[str, X]`, `Any` and JSON's own types.
    """
    origin, arguments = get_origin(expected), get_args(expected)
    result: Any = value
    if expected is Any:
        pass
    elif dataclasses.is_dataclass(expected):
        result = _dataclass(expected, value, where)
    elif origin in (Union, types.UnionType):  # only X | None occurs
        result = None if value is None else typed(arguments[0], value, where)
    elif origin is Literal:
        if value not in arguments or not isinstance(value, str):
            raise ValueError(f"{where} is {str(value)[:40]!r}, expected one of {', '.join(arguments)}")
    elif origin is tuple:
        items = _exactly(list, value, where)
        if arguments[-1] is Ellipsis:
            arguments = arguments[:1] * len(items)
        if len(items) != len(arguments):
            raise ValueError(f"{where} has {len(items)} entries, expected {len(arguments)}")
        pairs = zip(arguments, items, strict=True)
        result = tuple(typed(kind, item, f"{where}[{index}]") for index, (kind, item) in enumerate(pairs))
    elif origin is dict:
        items = _exactly(dict, value, where)
        result = {key: typed(arguments[1], item, f"{where}.{key[:40]}") for key, item in items.items()}
    elif expected is float:
        result = float(_exactly(int, value, where)) if type(value) is int else _exactly(float, value, where)
        if not math.isfinite(result):
            raise ValueError(f"{where} is not finite")
    else:
        result = _exactly(expected, value, where)
    return result  # type: ignore[no-any-return]


def _dataclass(expected: Any, value: Any, where: str) -> Any:
    items = _exactly(dict, value, where)
    hints, required = _fields(expected)
    if unknown := sorted(items.keys() - hints.keys()):
        raise ValueError(f"{where} has the unknown key {unknown[0][:40]!r}")
    if missing := sorted(required - items.keys()):
        raise ValueError(f"{where} lacks the key {missing[0]!r}")
    return expected(**{key: typed(hints[key], item, f"{where}.{key}") for key, item in items.items()})


@cache  # rows come by the ten thousand, and hints are compiled each time
def _fields(expected: Any) -> tuple[dict[str, Any], set[str]]:
    required = {
        f.name
        for f in dataclasses.fields(expected)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    return get_type_hints(expected), required


def _exactly(expected: type, value: Any, where: str) -> Any:
    if type(value) is not expected:  # exact: True is no int
        raise ValueError(f"{where} is of type {type(value).__name__}, expected {expected.__name__}")
    return value
