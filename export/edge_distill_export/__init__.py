"""A trained checkpoint becomes verified int4/int8 GGUF and ONNX bundles.

`export`, `plan`, `inspect` and `verify` are the verbs of the command line; each is imported on first use.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_distill_export.export import export
    from edge_distill_export.inspect import inspect
    from edge_distill_export.plan import plan
    from edge_distill_export.verify import verify

__all__ = ["export", "inspect", "plan", "verify"]


class _Package(ModuleType):
    """A verb and its module share a name; the name in this package always means the function."""

    def __getattr__(self, name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{name}"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        # the import system stores each submodule here as soon as it is loaded
        if name in __all__ and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
