"""A tiny bundle with a long context, so that an answer can take a while, and the real server on it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from edge_distill_export.checkpoint import Checkpoint
from edge_distill_export.gguf_writer import write_gguf
from edge_distill_runtime import Model, load
from tests.random_models import random_checkpoint, variant_named
from tests.runtime.bundles import write_manifest
from tests.serve.processes import Server, wait_for_url

CONTEXT = 32_768
"""More than ten seconds of text."""


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("serve") / "tiny"
    directory.mkdir()
    model, tokenizer = random_checkpoint(variant_named("llama-tied-gqa"))
    model.config.max_position_embeddings = CONTEXT  # rotary positions need no weights
    checkpoint = Checkpoint(model, tokenizer, "tiny", {})
    write_gguf(checkpoint, directory / "model.gguf", float_type="f32", context_length=CONTEXT)
    tokenizer.backend_tokenizer.save(str(directory / "tokenizer.json"))
    write_manifest(directory, "gguf", context_length=CONTEXT)
    return directory


@pytest.fixture(scope="session")
def reference(bundle: Path) -> Iterator[Model]:
    """The same model in this process."""
    with load(bundle, context=1024, threads=1) as model:
        yield model


@pytest.fixture(scope="session")
def start(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:  # a context manager
    """Starts servers; keyword arguments are added to the environment."""

    @contextmanager
    def running(*options: str, **environment: str) -> Iterator[Server]:
        errors = tmp_path_factory.mktemp("server") / "stderr"
        command = [sys.executable, "-m", "edge_distill", "serve", str(bundle)]
        with errors.open("w") as stderr:
            process = subprocess.Popen(
                [*command, "--port", "0", "--threads", "1", *options],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, "EDGE_DISTILL_API_KEY": "", **environment},
            )
        with process:
            try:
                yield Server(process, wait_for_url(process, errors), errors)
            finally:
                process.kill()

    return running


@pytest.fixture(scope="session")
def server(start: Callable[..., Any]) -> Iterator[Server]:
    """Two requests at once, one may wait."""
    with start("--parallel", "2", "--max-waiting", "1") as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    with server.client() as client:
        yield client
