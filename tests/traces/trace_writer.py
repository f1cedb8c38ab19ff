"""Writes numbered traces to a store and says after each how many there are: python trace_writer.py PATH TOTAL."""

from __future__ import annotations

import sys
from pathlib import Path

from edge_distill.traces.store import TraceStore
from edge_distill.traces.trace import make_trace


def main() -> None:
    with TraceStore(Path(sys.argv[1])) as store:
        print(len(store), flush=True)
        for n in range(int(sys.argv[2])):
            trace = make_trace(f"What is {n} + 1?", f"{n} + 1 = {n + 1}", str(n + 1), seed=n)
            if store.add(trace):
                print(len(store), flush=True)


main()
