"""Bundles are complete or absent: staging, sealing, replacing, full disks, killed processes."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edge_distill_export.bundle import check_destination, publish, seal, staged
from edge_distill_runtime.bundles.manifest import KVLayout, Manifest, Precision, read_manifest, verify_files
from edge_distill_runtime.errors import InputError, ResourceError

MANIFEST = Manifest(
    name="student-q4_0",
    format="gguf",
    precision=Precision("q4_0", "rtn", 4.5, {"Q4_0": 1}),
    architecture="llama",
    parameter_count=1,
    vocab_size=8,
    context_length=32,
    kv=KVLayout(1, 1, 32, 2),
    stop_ids=(1,),
    bos_id=None,
    chat=None,
    reasoning=None,
    files=(),
)


def make(place: Path, content: bytes = b"weights") -> None:
    with staged(place) as staging:
        (staging / "model.gguf").write_bytes(content)
        (staging / "tokenizer.json").write_text("{}")
        seal(staging, MANIFEST)
        publish(staging, place)


def test_a_published_bundle_is_whole(tmp_path: Path) -> None:
    make(tmp_path / "bundle")
    verify_files(tmp_path / "bundle", read_manifest(tmp_path / "bundle"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]
    assert (tmp_path / "bundle").stat().st_mode & 0o777 == 0o755


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), staged(tmp_path / "bundle") as staging:
        (staging / "model.gguf").write_bytes(b"half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_replacing_swaps_whole_bundles(tmp_path: Path) -> None:
    make(tmp_path / "bundle", b"old")
    make(tmp_path / "bundle", b"new")
    assert (tmp_path / "bundle" / "model.gguf").read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def test_replacing_without_renameat2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "bundle", b"old")
    monkeypatch.setattr("edge_distill_export.bundle.ctypes.CDLL", lambda *_, **__: object())
    make(tmp_path / "bundle", b"new")
    assert (tmp_path / "bundle" / "model.gguf").read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def test_sealing_twice_hashes_anew(tmp_path: Path) -> None:
    with staged(tmp_path / "bundle") as staging:
        (staging / "model.gguf").write_bytes(b"weights")
        (staging / "tokenizer.json").write_text("{}")
        first = seal(staging, MANIFEST)
        (staging / "README.md").write_text("card")
        second = seal(staging, replace(first, verification={"parity": None}))
        assert {entry.path for entry in second.files} == {"model.gguf", "tokenizer.json", "README.md"}
        verify_files(staging, read_manifest(staging))


def test_existing_outputs_need_force(tmp_path: Path) -> None:
    make(tmp_path / "bundle")
    with pytest.raises(InputError, match=r"bundle exists already.*--force"):
        check_destination(tmp_path / "bundle", force=False)
    check_destination(tmp_path / "bundle", force=True)


def test_force_replaces_nothing_but_bundles(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError, match="is no bundle"):
        check_destination(tmp_path / "photos", force=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is no bundle"):
        check_destination(tmp_path / "file", force=True)
    with pytest.raises(ResourceError):
        check_destination(tmp_path / "file" / "bundle", force=False)


_UNWRITABLE = """
import os, sys
from pathlib import Path
from edge_distill_export.bundle import check_destination
from edge_distill_runtime.errors import ResourceError
os.setgroups([]); os.setgid(65534); os.setuid(65534)  # root may write everywhere
try:
    check_destination(Path(sys.argv[1]), False)
except ResourceError as error:
    print(error.code, error)
"""


def test_a_read_only_directory_is_told_before_the_work(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o555)
    if os.geteuid() != 0:
        with pytest.raises(ResourceError, match="cannot be written"):
            check_destination(closed / "bundle", force=False)
        return
    for parent in (closed, *closed.parents):  # let the other user reach it
        if parent.stat().st_uid == 0 and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    output = subprocess.run(
        [sys.executable, "-c", _UNWRITABLE, str(closed / "bundle")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert output.stdout.startswith("not-writable"), output.stderr[-500:]


def test_a_full_disk_leaves_nothing(small_disk: Path) -> None:
    make(small_disk / "kept", b"old")
    with pytest.raises(ResourceError, match="is full"):
        make(small_disk / "bundle", b"\0" * (2 << 20))
    assert sorted(path.name for path in small_disk.iterdir()) == ["kept"]
    verify_files(small_disk / "kept", read_manifest(small_disk / "kept"))


def test_a_file_size_limit_is_told(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from tests.export.test_bundle import make\n"
        "from edge_distill_runtime.errors import ResourceError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        "    make(Path(sys.argv[1]) / 'bundle', bytes(1 << 20))\n"
        "except ResourceError as error:\n"
        "    print(error.code)\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert output.stdout.strip() == "disk-full", output.stderr[-500:]
    assert not list(tmp_path.iterdir())


def test_stages_of_dead_processes_are_removed_and_live_ones_kept(tmp_path: Path) -> None:
    killed = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path; from edge_distill_export.bundle import staged\n"
            "with staged(Path(sys.argv[1])): print('ready', flush=True); time.sleep(60)",
            str(tmp_path / "bundle"),
        ],
        stdout=subprocess.PIPE,
    )
    assert killed.stdout is not None
    killed.stdout.readline()
    with staged(tmp_path / "bundle"):
        assert len(list(tmp_path.iterdir())) == 2  # the other export is at work
    killed.kill()
    killed.wait()
    killed.stdout.close()
    assert len(list(tmp_path.iterdir())) == 1
    make(tmp_path / "bundle")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]
