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
    from edge_distill_runtime.model import Event, Generation, Model, load

__version__ = "0.1.0"

__all__ = [
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
    "ResourceError",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    # numpy and tokenizers are loaded with the first use, not with the package
    if name in ("Event", "Generation", "Model", "load"):
        from edge_distill_runtime import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
