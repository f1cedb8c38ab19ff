"""What this process may use of the machine: CPUs and memory, containers included."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["address_space_left", "memory_limit", "usable_cpus"]

_CGROUP_ROOT = Path("/sys/fs/cgroup")


def usable_cpus(root: Path = _CGROUP_ROOT) -> int:
    """CPUs that this process may use: its affinity, capped by the cgroup's CPU quota; at least 1."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    quota = _cpu_quota(root)
    if quota is not None:
        count = min(count, max(1, int(quota + 0.5)))
    return max(1, count)


def memory_limit(root: Path = _CGROUP_ROOT) -> int | None:
    """Most bytes that this process may have: the least of physical memory, cgroup and RLIMIT_AS, if known."""
    limits = [_physical_memory(), _rlimit_as()]
    for folder in _cgroup_folders(root):
        limits.append(_read_integer(folder / "memory.max"))
    for folder in _cgroup_folders(root / "memory"):
        limits.append(_read_integer(folder / "memory.limit_in_bytes"))
    return min((limit for limit in limits if limit is not None), default=None)


def address_space_left() -> int | None:
    """Bytes that RLIMIT_AS still lets this process map, beside what it has mapped; None without a limit."""
    limit, pages = _rlimit_as(), _read_text(Path("/proc/self/statm")).split()
    if limit is None or not pages:
        return limit
    return max(0, limit - int(pages[0]) * os.sysconf("SC_PAGE_SIZE"))


def _cpu_quota(root: Path) -> float | None:
    """CPUs that the tightest cgroup grants, or None: version 2 `cpu.max`, version 1 `cpu.cfs_*`."""
    quotas = []
    for folder in _cgroup_folders(root):
        words = _read_text(folder / "cpu.max").split()
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]) > 0:
            quotas.append(int(words[0]) / int(words[1]))
    for folder in _cgroup_folders(root / "cpu"):
        quota = _read_integer(folder / "cpu.cfs_quota_us")
        period = _read_integer(folder / "cpu.cfs_period_us")
        if quota and period:
            quotas.append(quota / period)
    return min(quotas, default=None)


def _cgroup_folders(root: Path) -> list[Path]:
    """The hierarchy's root and every folder on the way to this process's group."""
    folders = [root]
    for line in _read_text(Path("/proc/self/cgroup")).splitlines():
        number, _, path = line.partition(":")
        controllers, _, path = path.partition(":")
        # version 2 is hierarchy 0 without controllers; version 1 names the controller, as the folder does
        if (number == "0" and not controllers) or root.name in controllers.split(","):
            folder = root
            for part in path.strip("/").split("/"):
                folder = folder / part
                folders.append(folder)
    return folders


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _rlimit_as() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""


def _read_integer(path: Path) -> int | None:
    """A positive number in a file; None for `max`, -1 and unreadable files."""
    text = _read_text(path).strip()
    # version 1 writes a huge number for "unlimited"
    return int(text) if text.isdigit() and 0 < int(text) < 1 << 62 else None
