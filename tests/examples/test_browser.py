"""The page of examples/browser in a real browser, headless, against the Python runtime.

It needs node, chromium and the npm packages:
    (cd examples/browser && npm ci) && .venv/bin/pytest -rs tests/examples/test_browser.py
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from edge_distill_runtime import load

BROWSER = Path(__file__).parents[2] / "examples" / "browser"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
QUESTION = "How many rolls are on 4 trays of 28? Räumen 你好 🙂"

needs_node = pytest.mark.skipif(not shutil.which("node"), reason="node is not installed")
needs_browser = pytest.mark.skipif(
    not (shutil.which("node") and CHROMIUM and (BROWSER / "node_modules").is_dir()),
    reason="needs node, chromium and `npm ci` in examples/browser",
)


def ask_page(bundle: Path, tokens: int) -> subprocess.CompletedProcess[str]:
    command = ["node", "headless.mjs", str(bundle), "--question", QUESTION, "--tokens", str(tokens)]
    return subprocess.run(command, cwd=BROWSER, capture_output=True, text=True, timeout=240)


@needs_browser
def test_the_page_says_what_the_runtime_says(int4_bundle: Path) -> None:
    done = ask_page(int4_bundle, 20)
    assert done.returncode == 0, done.stderr
    page: dict[str, Any] = json.loads(done.stdout)
    with load(int4_bundle, threads=1) as model:
        expected = model.generate(QUESTION, max_tokens=20, temperature=0)
        assert page["prompt"] == model.encode(QUESTION)
    assert len(expected.tokens) == 20
    assert tuple(page["tokens"]) == expected.tokens
    assert page["text"] == expected.text
    assert page["problems"] == []


@needs_browser
def test_a_damaged_file_is_told_on_the_page(int4_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "damaged"
    shutil.copytree(int4_bundle, bundle)
    data = bytearray((bundle / "model.onnx.data").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "model.onnx.data").write_bytes(data)
    done = ask_page(bundle, 1)
    assert done.returncode == 1
    assert "model.onnx.data is damaged: its SHA-256 is " in done.stderr


@pytest.fixture(scope="module")
def server(int4_bundle: Path) -> Iterator[str]:
    """Host and port of the page's server."""
    command = ["node", "server.mjs", str(int4_bundle), "0"]
    with subprocess.Popen(command, cwd=BROWSER, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield urlsplit(process.stdout.readline().split()[-1]).netloc
        process.kill()


def status(server: str, path: str, method: str = "GET") -> int:
    connection = http.client.HTTPConnection(server, timeout=10)
    connection.request(method, path)
    result = connection.getresponse().status
    connection.close()
    return result


@needs_node
def test_the_server_gives_the_page_and_the_bundle(server: str) -> None:
    assert status(server, "/") == status(server, "/unpack.js") == 200
    assert status(server, "/bundle/edge_distill.json") == 200
    assert status(server, "/", "POST") == 404


@needs_node
@pytest.mark.parametrize(
    "path",
    [
        "/server.mjs",
        "/package.json",
        "/bundle/",
        "/bundle/../server.mjs",
        "/bundle/..%2f..%2fetc%2fpasswd",
        "/bundle/%2fetc%2fpasswd",
        "/npm/%2e%2e/package.json",
        "/npm/..%5cpackage.json",
        "/bundle/%00",
        "/%",
        "//",
    ],
)
def test_the_server_gives_nothing_else(server: str, path: str) -> None:
    assert status(server, path) == 404
