"""The teacher behind a URL against a server that is none of its tests': `edge-distill serve`."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from edge_distill.traces.teachers.opening import open_teacher
from edge_distill.traces.teachers.teacher import Request, Sampling, Written
from edge_distill_runtime.errors import InputError
from tests.serve.processes import wait_for_url
from tests.traces.teachers.conftest import LEARNED, Taught, question

KEY = "only-for-tests"


def test_it_speaks_with_our_own_server(
    taught: Taught, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    errors = tmp_path / "stderr"
    command = [
        sys.executable,
        "-m",
        "edge_distill",
        "serve",
        str(taught.bundle),
        "--port",
        "0",
        "--threads",
        "1",
    ]
    environment = {**os.environ, "EDGE_DISTILL_API_KEY": KEY}
    with (
        errors.open("w") as stderr,
        subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=stderr, text=True, env=environment
        ) as process,
    ):
        try:
            url = wait_for_url(process, errors)
            _ask(f"openai:{url}", monkeypatch)
        finally:
            process.kill()


def _ask(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    with pytest.raises(InputError, match="HTTP 401"):
        open_teacher(spec)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    long = Request(({"role": "user", "content": "word " * 1000},), 0)
    with closing(open_teacher(spec, at_once=2, deadline=30.0)) as teacher:
        assert teacher.name == "openai:taught"
        requests = [*(question(text) for text in LEARNED), long]
        found = dict(teacher.write(requests, Sampling(temperature=0.0, max_tokens=60)))
        (_, short), *_ = teacher.write([question("2 + 2?")], Sampling(temperature=0.0, max_tokens=6))
    expected = [
        Written(*parts, "stop", tokens) for parts, tokens in zip(LEARNED.values(), (27, 21, 37), strict=True)
    ]
    assert [found[i] for i in range(3)] == expected
    assert found[3].finish_reason == "error"
    assert "HTTP 400" in found[3].error
    assert short.finish_reason == "length"
