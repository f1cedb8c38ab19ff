"""edge-distill's runtime: run a verified int4/int8 bundle on a CPU, from numpy and tokenizers alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_distill_runtime.errors import (
    BackendCrashed,
    BackendError,
    BundleError,
    Busy,
    EdgeDistillError,
    InputError,
    MissingExtra,
    ParityError,
    ResourceError,
)

if TYPE_CHECKING:
    from edge_distill_runtime.generation.answer_format import AnswerFormat
    from edge_distill_runtime.generation.decoding import Event
    from edge_distill_runtime.generation.result import Generation
    from edge_distill_runtime.model import Model, load
    from edge_distill_runtime.reasoning.calculator import calculate
    from edge_distill_runtime.reasoning.reason import Reasoning

__version__ = "0.1.0"

__all__ = [
    "AnswerFormat",
    "BackendCrashed",
    "BackendError",
    "BundleError",
    "Busy",
    "EdgeDistillError",
    "Event",
    "Generation",
    "InputError",
    "MissingExtra",
    "Model",
    "ParityError",
    "Reasoning",
    "ResourceError",
    "__version__",
    "calculate",
    "load",
]


# numpy and tokenizers are loaded with the first use, not with the package
_LAZY = {
    "AnswerFormat": "generation.answer_format",
    "Event": "generation.decoding",
    "Generation": "generation.result",
    "Model": "model",
    "Reasoning": "reasoning.reason",
    "calculate": "reasoning.calculator",
    "load": "model",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f"edge_distill_runtime.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
