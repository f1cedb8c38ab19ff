"""A fixed computation that takes the same time whenever nothing else runs: what varies is the machine."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

__all__ = ["WHAT", "fixed_computation"]

_BYTES = 32 << 20
WHAT = f"SHA-256 of {_BYTES >> 20} MiB in every thread at the same time"


def fixed_computation(threads: int) -> list[bytes]:
    """One hash a thread, until the last one is done: a core that somebody else uses shows."""
    data = bytes(_BYTES)
    with ThreadPoolExecutor(threads) as pool:  # hashlib gives the interpreter's lock away
        return list(pool.map(lambda _: hashlib.sha256(data).digest(), range(threads)))
