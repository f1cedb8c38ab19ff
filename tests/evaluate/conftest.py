"""The runtime's tiny bundles."""

from tests.runtime.conftest import bundles, checkpoint, model

__all__ = ["bundles", "checkpoint", "model"]
