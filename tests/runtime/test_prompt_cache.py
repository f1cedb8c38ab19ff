"""The prompt cache: longest beginnings, bounds, and files that somebody tampered with."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_distill_runtime import Model, ResourceError
from edge_distill_runtime.generation import prompt_cache
from edge_distill_runtime.generation.prompt_cache import PromptCache, default_directory

MODEL = hashlib.sha256(b"a model").hexdigest()
STATE = bytes(range(256)) * 4
TOKENS = list(range(100, 140))

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="owners and modes are POSIX's")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory of the user that is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edge-distill"


def open_cache(**options: Any) -> PromptCache:
    options = {"format": "onnx", "directory": default_directory(), **options}
    return PromptCache(options.pop("model_hash", MODEL), **options)


def state_file() -> Path:
    (path,) = default_directory().glob("*.kv")
    return path


def test_longest_beginning_in_memory() -> None:
    cache = open_cache(directory=None)
    assert cache.lookup(TOKENS) is None
    for length in (3, 20, 7):
        cache.store(TOKENS[:length], bytes([length]), disk=False)
    cache.store([*TOKENS[:25], 9], b"another", disk=False)
    assert cache.lookup(TOKENS[:2]) is None
    assert cache.lookup([]) is None
    assert cache.lookup(TOKENS[:3]) == (3, b"\x03")  # all of it: the caller rewinds by one
    assert cache.lookup(TOKENS[:6]) == (3, b"\x03")
    assert cache.lookup(TOKENS[:19]) == (7, b"\x07")
    assert cache.lookup(TOKENS) == (20, b"\x14")
    assert cache.lookup([*TOKENS[:25], 9, 9]) == (26, b"another")
    # 0x00000101 and 0x01 0x01: tokens are compared, not bytes that look like them
    cache.store([0x0101], b"one", disk=False)
    assert cache.lookup([1, 1]) is None


def test_longest_beginning_on_disk_and_in_memory() -> None:
    first = open_cache()
    for length in (3, 20, 7):
        first.store(TOKENS[:length], STATE + bytes([length]), disk=True)
    first.store(TOKENS[:30], b"only in memory", disk=False)
    second = open_cache()
    assert second.lookup(TOKENS[:2]) is None
    assert second.lookup(TOKENS[:8]) == (7, STATE + b"\x07")
    assert second.lookup(TOKENS) == (20, STATE + b"\x14")  # longer on disk than in memory
    for path in default_directory().glob("*.kv"):
        path.unlink()
    assert second.lookup(TOKENS) == (20, STATE + b"\x14")  # now in memory
    assert first.lookup(TOKENS) == (30, b"only in memory")
    assert open_cache().lookup(TOKENS) is None


def test_used_longest_ago_leaves_memory_first() -> None:
    cache = open_cache(directory=None, memory_bytes=100)
    for token, size in ((1, 40), (2, 30), (3, 30)):
        cache.store([token], bytes(size), disk=False)
    assert cache.lookup([1, 0]) is not None  # 2 is the oldest now
    cache.store([4], bytes(20), disk=False)  # 40 + 30 + 20 are left
    assert [token for token in (1, 2, 3, 4) if cache.lookup([token])] == [1, 3, 4]
    cache.store([1], bytes(50), disk=False)  # replaced, not counted twice
    assert [token for token in (1, 3, 4) if cache.lookup([token])] == [1, 3, 4]
    cache.store([5], bytes(100), disk=False)
    assert [token for token in (1, 3, 4, 5) if cache.lookup([token])] == [5]
    with pytest.raises(ResourceError, match="1 tokens takes 101 bytes, the prompt cache holds 100"):
        cache.store([6], bytes(101), disk=False)
    assert cache.lookup([5]) is not None
    assert cache.lookup([6]) is None


def test_files_and_key_are_private(home: Path) -> None:
    old = os.umask(0)
    try:
        open_cache().store(TOKENS, STATE, disk=True)
    finally:
        os.umask(old)
    key = home / "prompts.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert len(key.read_bytes()) == 32
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE(default_directory().stat().st_mode) == 0o700
    assert stat.S_IMODE(state_file().stat().st_mode) == 0o600
    assert os.listdir(default_directory()) == [state_file().name]
    assert MODEL[:16] not in state_file().name


def test_any_changed_byte_is_noticed_and_replaced() -> None:
    open_cache().store(TOKENS, STATE, disk=True)
    path = state_file()
    data = path.read_bytes()
    assert data.endswith(STATE)
    for at in [*range(0, 81), *range(81, len(data), 97), len(data) - 1]:
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert open_cache().lookup(TOKENS) is None, f"byte {at}"
    for damaged in (b"", data[:50], data[:-1], data + b"\0", data[:80]):
        path.write_bytes(damaged)
        assert open_cache().lookup(TOKENS) is None, f"{len(damaged)} bytes"
    cache = open_cache()
    cache.store(TOKENS, STATE, disk=True)
    assert path.read_bytes() == data
    assert open_cache().lookup(TOKENS) == (len(TOKENS), STATE)


def test_shorter_sound_file_is_found_behind_a_damaged_one() -> None:
    open_cache().store(TOKENS[:10], STATE, disk=True)
    short = state_file()
    open_cache().store(TOKENS[:20], STATE, disk=True)
    (long,) = set(default_directory().glob("*.kv")) - {short}
    long.write_bytes(b"damaged")
    assert open_cache().lookup(TOKENS) == (10, STATE)


def test_file_under_another_name_is_not_loaded() -> None:
    cache = open_cache()
    cache.store(TOKENS, b"x" * 100, disk=True)
    first = state_file()
    content = first.read_bytes()
    first.unlink()
    cache.store([1, *TOKENS[1:]], b"y" * 100, disk=True)
    state_file().write_bytes(content)
    assert open_cache().lookup([1, *TOKENS[1:]]) is None


@pytest.mark.parametrize(
    "other", ["model", "format", "engine", "runtime", "state format", "key"], ids=lambda name: name
)
def test_what_was_written_under_other_conditions_is_ignored(
    other: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_cache().store(TOKENS, STATE, disk=True)
    assert open_cache().lookup(TOKENS) is not None
    cache = open_cache()
    if other == "model":
        cache = open_cache(model_hash=hashlib.sha256(b"another").hexdigest())
    elif other == "format":
        cache = open_cache(format="gguf")
    elif other == "engine":
        monkeypatch.setattr("importlib.metadata.version", lambda name: "9.9")
    elif other == "runtime":
        monkeypatch.setattr("edge_distill_runtime.__version__", "9.9")
    elif other == "state format":
        monkeypatch.setattr(prompt_cache, "_FORMAT", 2)
    else:
        (home / "prompts.key").write_bytes(bytes(32))
    assert cache.lookup(TOKENS) is None
    cache.store(TOKENS, b"mine", disk=True)
    assert cache.lookup([*TOKENS, 1]) == (len(TOKENS), b"mine")


def spoil(path: Path, how: str, elsewhere: Path) -> None:
    if how == "readable by others":
        path.chmod(0o644)
    elif how == "a link":
        path.rename(elsewhere)
        path.symlink_to(elsewhere)
    elif how == "a pipe":
        path.unlink()
        os.mkfifo(path, 0o600)
    elif os.geteuid() == 0:
        os.chown(path, 12345, 12345)
    else:
        pytest.skip("only root may give files away")


HOW = ["readable by others", "a link", "somebody else's", "a pipe"]


@pytest.mark.parametrize("how", HOW)
def test_spoiled_key_is_replaced(how: str, home: Path, tmp_path: Path) -> None:
    open_cache().store(TOKENS, STATE, disk=True)
    key = home / "prompts.key"
    secret = key.read_bytes()
    spoil(key, how, tmp_path / "elsewhere")
    cache = open_cache()
    assert cache.lookup(TOKENS) is None  # who knows that key could have written the file
    cache.store(TOKENS, STATE, disk=True)
    assert open_cache().lookup(TOKENS) is not None
    assert not key.is_symlink()
    assert key.read_bytes() != secret
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    if how == "a link":
        assert (tmp_path / "elsewhere").read_bytes() == secret


@pytest.mark.parametrize("how", HOW)
def test_spoiled_state_is_ignored_and_replaced(how: str, tmp_path: Path) -> None:
    open_cache().store(TOKENS, STATE, disk=True)
    path = state_file()
    spoil(path, how, tmp_path / "elsewhere")
    assert open_cache().lookup(TOKENS) is None
    open_cache().store(TOKENS, STATE, disk=True)
    assert path.is_file()
    assert not path.is_symlink()
    assert open_cache().lookup(TOKENS) == (len(TOKENS), STATE)


@pytest.mark.parametrize("how", ["a link", "somebody else's"])
def test_spoiled_directory_is_refused(how: str, tmp_path: Path) -> None:
    open_cache().store(TOKENS, STATE, disk=True)
    spoil(default_directory(), how, tmp_path / "elsewhere")
    cache = open_cache()
    assert cache.lookup(TOKENS) is None
    with pytest.raises(ResourceError, match="is a link or belongs to somebody else"):
        cache.store(TOKENS, STATE, disk=True)
    assert cache.lookup(TOKENS) == (len(TOKENS), STATE)  # memory is not concerned


def test_open_directory_is_closed() -> None:
    default_directory().mkdir(parents=True, mode=0o755)
    open_cache().store(TOKENS, STATE, disk=True)
    assert stat.S_IMODE(default_directory().stat().st_mode) == 0o700


def test_huge_files_are_not_read() -> None:
    open_cache().store(TOKENS, STATE, disk=True)
    path = state_file()
    with path.open("r+b") as file:
        file.truncate(1 << 40)  # its authentic header promises 1,024 bytes
    assert open_cache().lookup(TOKENS) is None
    with path.open("r+b") as file:
        file.truncate(0)
        file.truncate(1 << 40)
    assert open_cache().lookup(TOKENS) is None
    # it is no reason to throw the sound ones away
    open_cache().store(TOKENS[:5], STATE, disk=True)
    open_cache().store(TOKENS[:6], STATE, disk=True)
    assert not path.exists()
    assert len(list(default_directory().glob("*.kv"))) == 2


def test_used_longest_ago_leaves_the_disk_first() -> None:
    size = len(STATE) + 80
    cache = open_cache(disk_bytes=3 * size)
    known: set[Path] = set()
    for token in (1, 2, 3):
        cache.store([token], STATE, disk=True)
        (path,) = set(default_directory().glob("*.kv")) - known
        os.utime(path, (token, token))
        known.add(path)
    assert open_cache(disk_bytes=3 * size).lookup([1]) is not None  # 2 is the oldest now
    cache.store([4], STATE, disk=True)
    found = [token for token in (1, 2, 3, 4) if open_cache().lookup([token])]
    assert found == [1, 3, 4]
    cache.store([4], STATE, disk=True)  # replaced: nothing has to go
    assert len(list(default_directory().glob("*.kv"))) == 3
    with pytest.raises(ResourceError, match="the directory may hold 3312"):
        cache.store([5], STATE * 4, disk=True)
    assert len(list(default_directory().glob("*.kv"))) == 3


def test_only_own_files_are_deleted() -> None:
    directory = default_directory()
    open_cache().store([1], STATE, disk=True)
    (directory / "notes.txt").write_text("mine")
    (directory / ("0" * 16 + "-1-" + "0" * 32 + ".kv")).mkdir()
    old, new = directory / ".unfinished-old", directory / ".unfinished-new"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    open_cache(disk_bytes=1200).store([2], STATE, disk=True)
    assert (directory / "notes.txt").read_text() == "mine"
    assert (old.exists(), new.exists()) == (False, True)
    assert [token for token in (1, 2) if open_cache().lookup([token])] == [2]


def test_full_disk_is_a_typed_error_and_leaves_no_half_file(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = open_cache()
    cache.store([1], STATE, disk=True)

    def no_space(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(ResourceError, match="cannot be written: No space left on device") as error:
        cache.store([2], STATE, disk=True)
    assert error.value.code == "cache-write"
    assert cache.lookup([2]) == (1, STATE)  # in memory it is
    assert len(os.listdir(default_directory())) == 1


def test_really_full_disk() -> None:
    """The size of files is limited for a process of its own; the kernel then fails the write itself."""
    script = """
import resource, signal, sys
from edge_distill_runtime import ResourceError
from edge_distill_runtime.generation.prompt_cache import PromptCache, default_directory
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
cache = PromptCache("m", format="onnx", directory=default_directory())
cache.store([1], bytes(100), disk=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    cache.store([2], bytes(100_000), disk=True)
except ResourceError as error:
    assert error.code == "cache-write", error
else:
    raise AssertionError("it was written")
assert cache.lookup([2]) == (1, bytes(100_000))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    assert len(os.listdir(default_directory())) == 1


def test_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = open_cache(directory=tmp_path / "file" / "prompts")
    assert cache.lookup(TOKENS) is None
    with pytest.raises(ResourceError, match="cannot be used"):
        cache.store(TOKENS, STATE, disk=True)
    with pytest.raises(ResourceError, match="no directory"):
        open_cache(directory=None).store(TOKENS, STATE, disk=True)


WRITER = """
import sys
from edge_distill_runtime.generation.prompt_cache import PromptCache, default_directory
who = int(sys.argv[1])
for round in range(30):
    cache = PromptCache("m", format="onnx", directory=default_directory(), disk_bytes=60_000)
    cache.store([7, 7, round], bytes([round]) * 5000, disk=True)  # both write the same
    cache.store([who, round], bytes([who]) * 5000, disk=True)
    for tokens, byte in (([7, 7, round], round), ([who, round], who)):
        found = cache.lookup([*tokens, 1])
        assert found == (len(tokens), bytes([byte]) * 5000), found
    fresh = PromptCache("m", format="onnx", directory=default_directory())
    found = fresh.lookup([3 - who, round])
    assert found in (None, (2, bytes([3 - who]) * 5000)), found
"""


def test_two_processes_write_at_once(home: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(who)], stderr=subprocess.PIPE, text=True)
        for who in (1, 2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=100)
        assert (process.returncode, errors) == (0, "")
    files = list(default_directory().glob("*.kv"))
    assert 0 < sum(path.stat().st_size for path in files) < 60_000 + 2 * 5100
    assert not list(default_directory().glob(".unfinished-*"))
    # one key for both: what lies there can be read
    cache = PromptCache("m", format="onnx", directory=default_directory())
    assert [who for who in (1, 2) if cache.lookup([who, 29])]


def test_home_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_directory() == tmp_path / ".cache" / "edge-distill" / "prompts"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/path")  # to be ignored, says the specification
    assert default_directory() == tmp_path / ".cache" / "edge-distill" / "prompts"


def test_engine_goes_on_from_a_state_on_disk(model: Model) -> None:
    """Through the file, a new cache and the engine: the same logits as without any of them."""
    backend, format = model.backend, model.manifest.format
    tokens = [int(token) for token in np.random.default_rng(1).integers(3, 500, 60)]
    sequence = backend.prefill(tokens[:50])
    open_cache(format=format).store(tokens[:50], backend.save(sequence), disk=True)
    backend.extend(sequence, tokens[50:])
    expected = sequence.logits.copy()
    backend.release(sequence)
    found = open_cache(format=format).lookup(tokens)
    assert found is not None
    length, state = found
    assert length == 50
    copy = backend.restore(state, length)
    backend.extend(copy, tokens[length:])
    # libllama sums attention in the order of its cells, which differs: up to 0.04 of about 3
    np.testing.assert_allclose(copy.logits, expected, atol=0.08)
    # the whole prompt is remembered: one token is computed again
    backend.rewind(copy, 49)
    backend.extend(copy, tokens[49:])
    np.testing.assert_allclose(copy.logits, expected, atol=0.08)
    backend.release(copy)
