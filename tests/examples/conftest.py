"""A random llama on the int4 grid, with room for a few-shot prompt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edge_distill_export.checkpoint import Checkpoint
from edge_distill_export.onnx_graph import write_onnx
from tests.export.onnx_files import quantize_all
from tests.random_models import random_checkpoint, variant_named
from tests.runtime.bundles import write_manifest

CONTEXT = 1024


@pytest.fixture(scope="session")
def int4_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    variant = variant_named("llama-tied-gqa")
    variant = replace(variant, config=variant.config | {"max_position_embeddings": CONTEXT})
    model, tokenizer = random_checkpoint(variant)
    checkpoint = Checkpoint(model, tokenizer, "tiny", {})
    directory = tmp_path_factory.mktemp("examples") / "tiny-int4"
    directory.mkdir()
    # float32 activations: two engines can be compared token by token
    quantized = quantize_all(checkpoint, 4)
    write_onnx(checkpoint, directory, quantized=quantized, context_length=CONTEXT, accuracy_level=0)
    tokenizer.backend_tokenizer.save(str(directory / "tokenizer.json"))
    write_manifest(directory, "onnx", context_length=CONTEXT)
    return directory
