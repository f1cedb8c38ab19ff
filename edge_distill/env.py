"""`edge-distill env`: what a bug report or a published number needs to say about the machine."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Environment", "env"]

PACKAGES = (
    "edge-distill", "edge-distill-runtime", "numpy", "tokenizers", "torch", "transformers", "accelerate",
    "peft", "safetensors", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-genai", "gguf", "llama-cpp-python",
    "typer", "rich",
)  # fmt: skip

# What llama.cpp and ONNX Runtime choose their int4 and int8 kernels by, as /proc/cpuinfo spells it.
FEATURES = (
    "avx", "avx2", "f16c", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni",
    "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme",
)  # fmt: skip

_ARM_KEYS = ("CPU implementer", "CPU part")


@dataclass(frozen=True)
class Environment:
    """Versions (None: not installed), the processor, and what this process may use of it and of memory."""

    python: str
    platform: str
    packages: dict[str, str | None]
    cpu: dict[str, Any]
    memory: dict[str, int | None]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def render(self, console: Console) -> None:
        from rich.table import Table

        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_row("python", self.python)
        table.add_row("platform", self.platform)
        for name, installed in self.packages.items():
            table.add_row(name, installed or "not installed")
        for name, value in self.cpu.items():
            table.add_row(f"cpu {name}", " ".join(value) if isinstance(value, list) else str(value))
        for name, size in self.memory.items():
            table.add_row(f"memory {name}", "no limit" if size is None else f"{size / 2**20:,.0f} MiB")
        console.print(table)


def env() -> Environment:
    """Print versions, CPU features, usable CPUs and memory, for bug reports and beside published numbers."""
    from edge_distill_runtime.engines.machine import memory_limit, usable_cpus

    model, features = read_cpuinfo()
    return Environment(
        python=f"{platform.python_version()} ({platform.python_implementation()})",
        platform=platform.platform(),
        packages={name: _version(name) for name in PACKAGES},
        cpu={
            "model": model,
            "architecture": platform.machine(),
            "features": features,
            "logical": os.cpu_count(),
            "usable": usable_cpus(),
        },
        memory={"physical": _physical_memory(), "usable": memory_limit()},
    )


def read_cpuinfo(path: Path = Path("/proc/cpuinfo")) -> tuple[str, list[str]]:
    """The processor's name and those of `FEATURES` that it has; other systems than Linux tell only a name."""
    fields: dict[str, str] = {}
    try:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    # x86 says "flags", aarch64 "Features"; aarch64 has no name there, but numbers of the maker and the part
    present = set(fields.get("flags", fields.get("Features", "")).split())
    numbers = " ".join(f"{key.removeprefix('CPU ')} {fields[key]}" for key in _ARM_KEYS if key in fields)
    name = fields.get("model name") or numbers or platform.processor() or platform.machine()
    return name, [feature for feature in FEATURES if feature in present]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
