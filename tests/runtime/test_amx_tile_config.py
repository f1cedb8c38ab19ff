"""The header that libllama is built with: the whole of an AMX tile configuration is stored before it is loaded."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

HEADER = Path(__file__).parents[2] / "runtime" / "amx_tile_config.h"
SOURCE = """
#include <immintrin.h>
#include <stdint.h>
struct config { uint8_t palette, start; uint8_t reserved[14]; uint16_t columns[16]; uint8_t rows[16]; };
void load(void) {
    struct config c __attribute__((aligned(64))) = {};
    c.palette = 1;
    c.rows[15] = 0x5a;
    _tile_loadconfig(&c);
}
"""


@pytest.mark.skipif(platform.machine() != "x86_64" or not shutil.which("gcc"), reason="GCC for x86-64 alone")
def test_all_of_a_configuration_is_stored(tmp_path: Path) -> None:
    file = tmp_path / "load.c"
    file.write_text(SOURCE)
    command = ["gcc", "-O3", "-mamx-tile", "-include", str(HEADER), "-S", "-o", "-", str(file)]
    assembly = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    before = assembly[: assembly.index("ldtilecfg")]
    assert re.search(r"\$90\b", before), "the number of the last tile's rows is not stored"
