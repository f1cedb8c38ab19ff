"""The typed errors of edge-distill; every one names the value, the limit and the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

__all__ = [
    "BackendCrashed",
    "BackendError",
    "BundleError",
    "Busy",
    "EdgeDistillError",
    "GateError",
    "InputError",
    "MissingExtra",
    "ParityError",
    "ResourceError",
]


class EdgeDistillError(Exception):
    """Base class. `code` is a kebab-case slug, `what` says what happened, `hint` what to do about it.

    `data` holds the same numbers for programs, in JSON's types; most errors have none.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, code: str, what: str, hint: str = "", data: Mapping[str, Any] | None = None) -> None:
        super().__init__(code, what, hint)
        self.code = code
        self.what = what
        self.hint = hint
        self.data = dict(data or {})

    def __str__(self) -> str:
        return f"{self.what} ({self.hint})" if self.hint else self.what


class InputError(EdgeDistillError):
    """Bad input from the user: a missing file, an unknown target, a prompt longer than the context."""

    exit_code = 2


class BundleError(EdgeDistillError):
    """A bundle or model file is damaged, hostile, or does not match its manifest."""

    exit_code = 3


class ParityError(EdgeDistillError):
    """The artifact is too far from the checkpoint it was made from."""

    exit_code = 4


class ResourceError(EdgeDistillError):
    """Memory or disk space does not suffice, or a directory cannot be written."""

    exit_code = 5


class Busy(ResourceError):
    """The queue of waiting requests is full."""


class MissingExtra(EdgeDistillError):
    """An optional dependency is not installed; the hint is the exact pip command."""

    exit_code = 6


class BackendError(EdgeDistillError):
    """libllama or ONNX Runtime failed, or the model computed NaN."""

    exit_code = 7


class BackendCrashed(BackendError):
    """The process of an isolated engine died, hung or answered nonsense; a new `load` starts another one."""


class GateError(EdgeDistillError):
    """A measured model, or its change against an earlier measurement, is outside a limit that the user set.

    Not 4: a parity error means that an export must not be shipped, this one that a build is to fail.
    """

    exit_code = 8
