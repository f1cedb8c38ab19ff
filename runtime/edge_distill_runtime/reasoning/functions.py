"""Python functions as tools: described from their signature, called with arguments that a model wrote."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

from edge_distill_runtime.errors import InputError

__all__ = ["Tool", "ToolFunction", "tools_by_name"]

Tool = Callable[..., object]

_TYPES = (str, int, float, bool)


@dataclass(frozen=True)
class ToolFunction:
    """A function with what its signature and docstring say."""

    function: Tool
    signature: inspect.Signature
    types: Mapping[str, type]
    usage: str
    purpose: str

    def call(self, argument: str) -> str:
        """What the function returns, as text; what goes wrong, as `Error: ...`."""
        try:
            bound = inspect.BoundArguments(self.signature, OrderedDict(self._arguments(argument)))
            return str(self.function(*bound.args, **bound.kwargs))
        except InputError as exc:
            return f"Error: {exc}"
        except Exception as exc:
            return f"Error: {type(exc).__name__}: {_message(exc)}"

    def _arguments(self, argument: str) -> dict[str, Any]:
        parameters = self.signature.parameters
        given = _json_object(argument)
        single = _single(self.signature)
        if single and (given is None or (self.types[single] is str and given.keys() != {single})):
            return {single: self._converted(single, argument)}
        if given is None:
            if argument or any(parameter.default is parameter.empty for parameter in parameters.values()):
                raise InputError("bad-argument", "the arguments do not fit", f"write {self.usage}")
            return {}
        if unknown := sorted(given.keys() - parameters.keys()):
            raise InputError("bad-argument", f"there is no argument {unknown[0][:40]}", f"write {self.usage}")
        for name, parameter in parameters.items():
            if parameter.default is parameter.empty and name not in given:
                raise InputError("bad-argument", f"the argument {name} is missing", f"write {self.usage}")
        return {name: self._checked(name, given[name]) for name in parameters if name in given}

    def _converted(self, name: str, text: str) -> Any:
        """One value that is written without JSON."""
        expected = self.types[name]
        if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
            text = text[1:-1]
        if expected is str:
            return text
        try:
            if expected is bool:
                return {"true": True, "false": False}[text.lower()]
            return self._checked(name, expected(text))
        except (ValueError, KeyError):
            raise _wrong_type(name, expected, text) from None

    def _checked(self, name: str, value: Any) -> Any:
        expected = self.types[name]
        if expected is float and type(value) is int:
            value = float(value)
        if type(value) is not expected or (isinstance(value, float) and not math.isfinite(value)):
            raise _wrong_type(name, expected, value)
        return value


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _single(signature: inspect.Signature) -> str | None:
    """The parameter that an argument without JSON means."""
    names = list(signature.parameters)
    required = [name for name in names if signature.parameters[name].default is inspect.Parameter.empty]
    return required[0] if len(required) == 1 else names[0] if len(names) == 1 else None


def _wrong_type(name: str, expected: type, value: object) -> InputError:
    return InputError("bad-argument", f"{name} must be {expected.__name__}, not {str(value)[:60]!r}")


def _message(exc: Exception) -> str:
    try:
        return str(exc)
    except Exception:  # a tool may raise anything
        return ""


def tools_by_name(tools: Sequence[Tool]) -> dict[str, ToolFunction]:
    if not tools:
        raise InputError("no-tools", "there are no tools", "give at least one function")
    named: dict[str, ToolFunction] = {}
    for function in tools:
        name = getattr(function, "__name__", "")
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) or name in named:
            what = f"{function!r:.80} has no name of its own"
            raise InputError("bad-tool", what, "give functions with different names, defined with def")
        named[name] = _tool_function(name, function)
    return named


def _tool_function(name: str, function: Tool) -> ToolFunction:
    try:
        signature = inspect.signature(function)
        hints = get_type_hints(function)
    except (TypeError, ValueError, NameError) as exc:
        raise InputError(
            "bad-tool", f"{name} has no signature that can be read: {exc}", "wrap it in a function"
        ) from exc
    types = {parameter: hints.get(parameter, str) for parameter in signature.parameters}
    for parameter in signature.parameters.values():
        if types[parameter.name] not in _TYPES or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            raise InputError(
                "bad-tool",
                f"{name} has the parameter {parameter}",
                "a tool's parameters must be str, int, float or bool",
            )
    if inspect.iscoroutinefunction(function):
        raise InputError("bad-tool", f"{name} is a coroutine function", "wrap it in asyncio.run")
    purpose = " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())
    return ToolFunction(function, signature, types, _usage(name, signature, types), purpose)


def _usage(name: str, signature: inspect.Signature, types: Mapping[str, type]) -> str:
    parameters = list(signature.parameters.values())
    if len(parameters) <= 1:
        return f"{name}[{parameters[0].name if parameters else ''}]"
    shown = ", ".join(
        f'"{parameter.name}": {types[parameter.name].__name__}'
        + ("" if parameter.default is parameter.empty else " (optional)")
        for parameter in parameters
    )
    return f"{name}[{{{shown}}}]"
