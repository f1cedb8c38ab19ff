"""What a child process may do instead of answering; see test_child.py."""

from __future__ import annotations

import os
import time
from typing import Any


def answer(request: dict[str, Any]) -> Any:
    """Do what the request names."""
    kind = request["kind"]
    if kind == "abort":
        os.abort()
    if kind == "sleep":
        time.sleep(60)
    if kind == "spin":
        while True:
            pass
    if kind == "memory":
        return len(bytearray(10**9))
    if kind == "raise":
        raise ValueError("wrong")
    if kind == "print":
        print("a library prints")
        os.write(1, b"and writes")
    return request
