"""HTTP/1.1 as uvicorn speaks it, with patience that ends."""
# ruff: noqa: TID253 - the one module that imports uvicorn's protocol; `serve` imports it when it is called

from __future__ import annotations

import asyncio
from typing import ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["PatientProtocol"]


class PatientProtocol(H11Protocol):
    """Closes connections that do not bring a whole request head in time; uvicorn waits for ever (slow loris)."""

    head_seconds: ClassVar[float] = 10.0
    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def _watch(self) -> None:
        """The clock runs from the first byte (or the connection) until a request is being answered."""
        if not self._is_idle():
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None
        elif self._patience is None:
            self._patience = self.loop.call_later(self.head_seconds, self._give_up)

    def _give_up(self) -> None:
        self._patience = None
        if self._is_idle():
            self.transport.close()

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete
