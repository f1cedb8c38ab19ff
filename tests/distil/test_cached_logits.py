"""The cache of a teacher's logits: against the live teacher, killed, resumed, damaged."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edge_distill.distil import cached_logits
from edge_distill.distil.cached_logits import (
    MANIFEST,
    CachedLogits,
    CachedLogitsWriter,
    CachedTeacher,
    teacher_hash,
    text_key,
)
from edge_distill.distil.kinds import ANSWER, PROMPT, REASONING
from edge_distill.distil.losses import DistillationLoss, SpanLoss, distillation_loss
from edge_distill_runtime.errors import BundleError, EdgeDistillError, InputError

VOCABULARY = 13
TEXTS = [([1, 2, 3, 4, 5, 6], 3), ([7, 8, 9], 1), ([2, 2, 2, 2], 2)]  # tokens, first with a loss


def logits_of(tokens: list[int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(tokens))
    return 2 * torch.randn(len(tokens), VOCABULARY, generator=generator)


def teacher(k: int = 4, temperature: float = 1.0) -> CachedTeacher:
    return CachedTeacher("a" * 64, k, VOCABULARY, temperature)


def write(directory: Path, of: CachedTeacher, shard_bytes: int = 1) -> Path:
    with CachedLogitsWriter(directory, of, shard_bytes=shard_bytes) as writer:
        for tokens, first in TEXTS:
            writer.add(tokens, logits_of(tokens), first=first)
    return directory


def test_keys_by_hand() -> None:
    data = bytes([1, 0, 0, 0, 0, 1, 0, 0])
    assert text_key([1, 256]) == hashlib.sha256(data).hexdigest()
    weights = {"weights": {"b.safetensors": "22", "a.safetensors": "11"}, "name": "x"}
    assert teacher_hash(weights) == hashlib.sha256(b"11\n22").hexdigest()
    assert teacher_hash({**weights, "name": "renamed"}) == teacher_hash(weights)
    assert teacher_hash({"weights": {"adapter": "33"}, "base": weights}) != teacher_hash(weights)


def test_rows_by_hand(tmp_path: Path) -> None:
    logits = torch.tensor([[8.0, 4.0, 2.0, 2.0], [1.0, 1.0, 1.0, 1.0]]).log()
    with CachedLogitsWriter(tmp_path, CachedTeacher("t", 2, 4)) as writer:
        writer.add([0, 3], logits)
    batch = CachedLogits(tmp_path).batch([([0, 3], 1)], 3)
    assert batch.indices.tolist() == [[[0, 0], [0, 1], [0, 0]]]
    torch.testing.assert_close(batch.log_probabilities[0, 1].exp(), torch.tensor([0.5, 0.25]))
    torch.testing.assert_close(batch.log_rest[0, 1].exp(), torch.tensor(0.25))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_cached_loss_equals_the_live_one_at_the_whole_vocabulary(tmp_path: Path, temperature: float) -> None:
    kinds = torch.tensor(
        [[PROMPT] * 3 + [REASONING] * 2 + [ANSWER], [PROMPT, REASONING, ANSWER] + [PROMPT] * 3]
    )
    texts = TEXTS[:2]
    tokens, live = torch.zeros(2, 6, dtype=torch.long), torch.zeros(2, 6, VOCABULARY)
    for row, (text, _) in enumerate(texts):
        tokens[row, : len(text)] = torch.tensor(text)
        live[row, : len(text)] = logits_of(text)
    student = torch.randn(2, 6, VOCABULARY, generator=torch.Generator().manual_seed(5))
    span = SpanLoss(0.5, 1, 1, 1, 0.3, temperature)
    loss = DistillationLoss(1, 1, span, span)
    expected = distillation_loss(loss, student, tokens, kinds, teacher=live).total
    measured = []
    for k in (1, 4, 8, 12, VOCABULARY):
        cache = CachedLogits(write(tmp_path / str(k), teacher(k, temperature)))
        cached = distillation_loss(loss, student, tokens, kinds, teacher=cache.batch(texts, 6)).total
        measured.append(cached.item())
    assert measured == sorted(measured)
    assert measured[0] < expected.item() - 0.01
    assert measured[-1] == pytest.approx(expected.item(), rel=1e-6)  # float32


def test_shards_and_order_do_not_matter(tmp_path: Path) -> None:
    many = CachedLogits(write(tmp_path / "many", teacher(), shard_bytes=1))
    one = CachedLogits(write(tmp_path / "one", teacher(), shard_bytes=1 << 20))
    assert len(list((tmp_path / "many").glob("*.safetensors"))) == 3
    assert len(list((tmp_path / "one").glob("*.safetensors"))) == 1
    assert len(many) == len(one) == 3
    for texts in (TEXTS, TEXTS[::-1], TEXTS[1:2]):
        for first, second in zip(many.batch(texts, 7)[:3], one.batch(texts, 7)[:3], strict=True):
            torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_killed_anywhere_the_cache_is_readable_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = CachedLogits(write(tmp_path / "whole", teacher()))
    replace = cached_logits._replace

    class Killed(BaseException):
        pass

    for kill_at in range(6):  # three shards and three manifests
        directory, calls = tmp_path / str(kill_at), 0

        def killed(path: Path, data: bytes, kill_at: int = kill_at) -> None:
            nonlocal calls
            if calls == kill_at:
                path.with_name(f".{path.name}.partial").write_bytes(data[: len(data) // 2])
                raise Killed
            calls += 1
            replace(path, data)

        monkeypatch.setattr(cached_logits, "_replace", killed)
        with pytest.raises(Killed):
            write(directory, teacher())
        monkeypatch.setattr(cached_logits, "_replace", replace)
        kept = kill_at // 2
        with CachedLogitsWriter(directory, teacher()) as writer:
            assert [tokens in writer for tokens, _ in TEXTS] == [number < kept for number in range(3)]
        if kept:
            assert len(CachedLogits(directory)) == kept
        resumed = CachedLogits(write(directory, teacher()))
        for first, second in zip(resumed.batch(TEXTS, 6)[:3], whole.batch(TEXTS, 6)[:3], strict=True):
            assert torch.equal(first, second)


def test_an_exception_keeps_finished_shards_only(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), CachedLogitsWriter(tmp_path, teacher()) as writer:
        writer.add([1, 2], logits_of([1, 2]))
        raise ZeroDivisionError
    assert not (tmp_path / MANIFEST).exists()


def test_texts_are_written_once(tmp_path: Path) -> None:
    write(tmp_path, teacher())
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    write(tmp_path, teacher())
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_other_teachers_are_refused(tmp_path: Path) -> None:
    write(tmp_path, teacher())
    for other in (teacher(5), teacher(4, 2.0), CachedTeacher("b" * 64, 4, VOCABULARY)):
        with pytest.raises(InputError) as caught:
            CachedLogitsWriter(tmp_path, other)
        assert caught.value.code == "other-cache"


def test_what_is_not_cached(tmp_path: Path) -> None:
    cache = CachedLogits(write(tmp_path, teacher()))
    assert [1, 2, 3, 4, 5, 6] in cache
    assert [1, 2, 3, 4, 5] not in cache
    with pytest.raises(InputError, match="not in the cache"):
        cache.batch([([1, 2, 3, 4, 5], 3)], 6)
    with pytest.raises(InputError, match="from token 3 on"):
        cache.batch([([1, 2, 3, 4, 5, 6], 2)], 6)
    cache.batch([([1, 2, 3, 4, 5, 6], 4)], 6)  # a shorter span is fine


def test_bad_input(tmp_path: Path) -> None:
    with CachedLogitsWriter(tmp_path, teacher()) as writer:
        for tokens, logits, first in (
            ([1, 2], torch.zeros(2, VOCABULARY + 1), 1),
            ([1, 2], torch.zeros(3, VOCABULARY), 1),
            ([1, 2], torch.zeros(2, VOCABULARY), 0),
            ([1, 2], torch.zeros(2, VOCABULARY), 2),
            ([1, 2], torch.full((2, VOCABULARY), float("nan")), 1),
        ):
            with pytest.raises(InputError):
                writer.add(tokens, logits, first=first)
    for k in (0, VOCABULARY + 1):
        with pytest.raises(InputError) as caught:
            teacher(k)
        assert caught.value.code == "bad-k"


def mutate(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


DAMAGE: dict[str, Callable[[Any], object]] = {
    "version": lambda c: c.update(schema_version=2),
    "no teacher": lambda c: c.pop("teacher"),
    "k": lambda c: c["teacher"].update(k=5),
    "k is no number": lambda c: c["teacher"].update(k="4"),
    "k is true": lambda c: c["teacher"].update(k=True),
    "vocabulary": lambda c: c["teacher"].update(vocabulary=2),
    "path out": lambda c: c["shards"][0].update(path="../x.safetensors"),
    "absolute path": lambda c: c["shards"][0].update(path="/etc/passwd"),
    "missing file": lambda c: c["shards"][0].update(path="none.safetensors"),
    "size": lambda c: c["shards"][0].update(size=1),
    "hash": lambda c: c["shards"][0].update(sha256="0" * 64),
    "surplus": lambda c: c["shards"][0].update(extra=1),
    "rows": lambda c: c["shards"][0]["texts"][0].update(first=1),
    "no rows": lambda c: c["shards"][0]["texts"][0].update(first=6),
    "negative": lambda c: c["shards"][0]["texts"][0].update(first=-5),
    "huge": lambda c: c["shards"][0]["texts"][0].update(length=1 << 40),
    "shards": lambda c: c.update(shards={}),
    "shards of text": lambda c: c.update(shards="abc"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_manifest(tmp_path: Path, name: str) -> None:
    write(tmp_path, teacher())
    mutate(tmp_path / MANIFEST, DAMAGE[name])
    with pytest.raises(EdgeDistillError):
        CachedLogits(tmp_path)


def test_damaged_shard(tmp_path: Path) -> None:
    write(tmp_path, teacher())
    shard = next(tmp_path.glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    for at in (0, 9, len(data) - 1):
        damaged = data.copy()
        damaged[at] ^= 1
        shard.write_bytes(damaged)
        with pytest.raises(BundleError) as caught:
            CachedLogits(tmp_path)
        assert caught.value.code == "damaged-cache"


@pytest.mark.parametrize("bad", ["index", "nan", "positive"])
def test_rows_that_are_no_distributions(tmp_path: Path, bad: str) -> None:
    """Of a cache with right hashes, made by something else."""
    from safetensors.torch import load_file, save_file

    write(tmp_path, teacher(), shard_bytes=1 << 20)
    shard = next(tmp_path.glob("*.safetensors"))
    tensors = load_file(shard)
    if bad == "index":
        tensors["indices"][:] = VOCABULARY
    else:
        tensors["log_probabilities"][:] = float("nan") if bad == "nan" else 1.0
    save_file(tensors, shard)
    data = shard.read_bytes()
    entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    mutate(tmp_path / MANIFEST, lambda content: content["shards"][0].update(entry))
    with pytest.raises(BundleError, match="no distribution"):
        CachedLogits(tmp_path).batch(TEXTS, 6)


def test_links_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", teacher())
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shard = next((tmp_path / "b").glob("*.safetensors"))
    shard.unlink()
    shard.symlink_to(tmp_path / "a" / shard.name)
    with pytest.raises(BundleError):
        CachedLogits(tmp_path / "b")
