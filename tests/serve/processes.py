"""A running `edge-distill serve`, for tests."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from openai import OpenAI


@dataclass
class Server:
    """A running `edge-distill serve`."""

    process: subprocess.Popen[str]
    url: str
    errors: Path
    """What it printed."""

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @contextmanager
    def client(self, key: str = "none") -> Iterator[OpenAI]:
        """The official client; it neither retries nor uses a proxy."""
        with (
            httpx2.Client(trust_env=False, timeout=60) as http,
            OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, http_client=http) as client,
        ):
            yield client

    def post(self, **options: Any) -> httpx2.Response:
        with httpx2.Client(trust_env=False, timeout=60) as http:
            return http.post(f"{self.url}/v1/chat/completions", **options)

    def health(self) -> dict[str, Any]:
        with httpx2.Client(trust_env=False, timeout=10) as http:
            return dict(http.get(f"{self.url}/health").json())

    def wait_for(self, active: int, waiting: int, seconds: float = 5.0) -> None:
        """Until the server has so many requests; it fails long before a whole context is generated."""
        ends = time.monotonic() + seconds
        while (now := self.health()) and (now["active"], now["waiting"]) != (active, waiting):
            assert time.monotonic() < ends, f"the server still says {now}"
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


def wait_for_url(process: subprocess.Popen[str], errors: Path) -> str:
    ends = time.monotonic() + 60
    while time.monotonic() < ends and process.poll() is None:
        if found := re.search(r" on (http://\S+)/v1 ", errors.read_text()):
            return found[1]
        time.sleep(0.02)
    raise AssertionError(f"the server did not start: {errors.read_text()}")
