"""The store: appended once, torn lines are cut, one writer, and ten kills."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from edge_distill.traces.store import Rejects, TraceStore
from edge_distill.traces.trace import Trace, make_trace, read_traces, to_line
from edge_distill_runtime import InputError, ResourceError

WRITER = Path(__file__).with_name("trace_writer.py")


def numbered(number: int) -> Trace:
    return make_trace(f"What is {number} + 1?", f"{number} + 1 = {number + 1}", str(number + 1), seed=number)


def test_a_trace_is_stored_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "traces.jsonl"
    with TraceStore(path) as store:
        assert store.add(numbered(1))
        assert not store.add(numbered(1))
        assert store.add(numbered(2))
        assert numbered(2).id in store
    with TraceStore(path) as store:
        assert len(store) == 2
        assert not store.add(numbered(2))
        assert store.add(numbered(3))
    assert list(read_traces(path)) == [numbered(1), numbered(2), numbered(3)]


def test_a_torn_last_line_is_cut_wherever_it_is_torn(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    first, second = (to_line(numbered(n)).encode() + b"\n" for n in (1, 2))
    for length in [*range(0, len(second), 7), len(second) - 2, len(second) - 1]:
        path.write_bytes(first + second[:length])
        with TraceStore(path) as store:
            assert len(store) == 1 + (length == len(second) - 1)  # only the line's end is missing
            store.add(numbered(2))
        assert path.read_bytes() == first + second


def test_a_damaged_line_that_is_not_the_last_is_named(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    path.write_text(to_line(numbered(1)) + "\n{\n" + to_line(numbered(2)) + "\n", encoding="utf-8")
    before = path.read_bytes()
    with pytest.raises(InputError, match="line 2"):
        TraceStore(path)
    assert path.read_bytes() == before


def test_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    with TraceStore(path), pytest.raises(ResourceError) as error:
        TraceStore(path)
    assert error.value.code == "locked"
    with TraceStore(path) as store:
        assert store.add(numbered(1))
    with pytest.raises(InputError, match="closed"):
        store.add(numbered(2))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("fifo", "folder", "link"):
        with pytest.raises((InputError, ResourceError)):
            TraceStore(tmp_path / name)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "traces.jsonl"
    with TraceStore(path) as store:
        store.add(numbered(1))
        real, calls = os.write, []

        def half(descriptor: int, data: bytes) -> int:
            calls.append(len(data))
            if len(calls) == 1:
                return real(descriptor, data[: len(data) // 2])
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", half)
            with pytest.raises(ResourceError, match="No space left"):
                store.add(numbered(2))
        assert len(calls) == 2
        assert store.add(numbered(2))
    assert list(read_traces(path)) == [numbered(1), numbered(2)]


def test_many_threads(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    with TraceStore(path) as store:
        threads = [
            threading.Thread(target=lambda: [store.add(numbered(n)) for n in range(100)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {trace.seed for trace in read_traces(path)} == set(range(100))
    assert path.read_bytes().count(b"\n") == 100


def test_rejects(tmp_path: Path) -> None:
    for _ in range(2):
        with Rejects(tmp_path) as rejects:
            rejects.add("problems.jsonl", 3, "is no JSON: ü")
            rejects.add("problems.jsonl", 7, "answer: is missing")
    lines = (tmp_path / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"source": "problems.jsonl", "line": 3, "reason": "is no JSON: ü"},
        {"source": "problems.jsonl", "line": 7, "reason": "answer: is missing"},
    ]


def test_killed_at_ten_points(tmp_path: Path) -> None:
    path, generator, total = tmp_path / "traces.jsonl", random.Random(10), 40_000
    kept = 0
    for _ in range(10):
        # the child says with each line which trace is stored: none of those may be lost
        child = subprocess.Popen(
            [sys.executable, WRITER, path, str(total)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
        )
        assert child.stdout is not None
        first = child.stdout.readline()  # it has opened the store
        time.sleep(generator.uniform(0, 0.15))
        child.send_signal(signal.SIGKILL)
        said = first + child.stdout.read()
        child.stdout.close()
        assert child.wait() == -signal.SIGKILL
        complete = [int(line) for line in said[: said.rfind(b"\n") + 1].split()]
        lines = path.read_bytes().split(b"\n")
        stored = [json.loads(line)["seed"] for line in lines[:-1]]
        assert stored == list(range(len(stored)))  # in order, none twice, none missing
        assert len(stored) >= max([kept, *complete])
        kept = len(stored)
    assert 10 < kept < total
    with TraceStore(path) as store:
        assert kept <= len(store) <= kept + 1
