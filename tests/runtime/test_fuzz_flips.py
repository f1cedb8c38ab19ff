"""Any bit that flips in a bundle is found: 500 of them, in every file of both formats."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from edge_distill_runtime import load
from edge_distill_runtime.bundles.manifest import MANIFEST_NAME, read_manifest, verify_files
from edge_distill_runtime.errors import BundleError, EdgeDistillError
from tests.runtime.bundles import write_manifest

SEED = 20262
FLIPS = 250  # in each format


@pytest.mark.parametrize("kind", ["gguf", "onnx"])
def test_flipped_bits_are_found(bundles: dict[str, Path], kind: str, tmp_path: Path) -> None:
    print(f"seed {SEED}")
    bundle = Path(shutil.copytree(bundles[kind], tmp_path / "bundle"))
    write_manifest(bundle, kind, lineage={"teacher": "somebody's model", "notes": ["by hand", 17, 0.25]})  # type: ignore[arg-type]
    manifest = read_manifest(bundle)
    verify_files(bundle, manifest)
    generator = random.Random(SEED)
    names = sorted(path.name for path in bundle.iterdir())
    missed = []
    for count in range(FLIPS):
        name = names[count % len(names)]
        path = bundle / name
        data = path.read_bytes()
        at, bit = generator.randrange(len(data)), generator.randrange(8)
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
        try:
            found = read_manifest(bundle)
            verify_files(bundle, found)
            # white space and the way a character is written may change nothing
            if name != MANIFEST_NAME or found != manifest:
                missed.append(f"{name}, byte {at}, bit {bit}: {data[at - 20 : at + 20]!r}")
        except EdgeDistillError:
            with pytest.raises(EdgeDistillError):
                load(bundle, threads=1)
        path.write_bytes(data)
    assert not missed, "\n".join([f"{len(missed)} flips were not found", *missed])
    load(bundle, threads=1).close()


def test_each_bit_of_the_manifests_hashes(bundles: dict[str, Path], tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(bundles["gguf"], tmp_path / "bundle"))
    path = bundle / MANIFEST_NAME
    data = path.read_bytes()
    start = data.index(read_manifest(bundle).files[0].sha256.encode())
    for position in range(start, start + 64):
        for bit in range(8):
            path.write_bytes(data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :])
            with pytest.raises(BundleError):
                verify_files(bundle, read_manifest(bundle))
