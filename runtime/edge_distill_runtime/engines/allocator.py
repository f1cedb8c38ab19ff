"""Memory that was freed and still counts as used."""

from __future__ import annotations

import ctypes


def give_back_freed_memory() -> None:
    """Return what is free inside glibc's heap to the system; elsewhere nothing happens.

    glibc keeps blocks of up to 32 MiB for later and only shrinks its heap from the end, where some small block
    is in the way: hundreds of megabytes after tensors of that size have come and gone.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
