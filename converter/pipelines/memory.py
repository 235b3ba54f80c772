"""Memory: the peak of a stage, giving back what is free, and how much there is."""

from __future__ import annotations

import gc
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import require
from ..system import trim_memory

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
INTERVAL = 0.005  # seconds between two looks, where the peak that the system keeps cannot be reset


@dataclass
class Peak:
    """Of a stage, once it is over: the largest resident memory of the process, and what torch held at most on a GPU."""

    rss_bytes: int = 0
    gpu_bytes: int = 0


@contextmanager
def peak(device: str = "cpu") -> Iterator[Peak]:
    """The peak of memory while this block runs, with all that the process held before. Blocks do not overlap.

    Source: proc(5), `clear_refs` and `VmHWM`; elsewhere a thread looks at what is resident.

    Example:
        >>> with peak() as stage:
        ...     data = bytearray(50_000_000)
        >>> stage.rss_bytes > 50_000_000, stage.gpu_bytes
        (True, 0)
    """
    stage, cuda, over = Peak(), device.startswith("cuda"), threading.Event()
    if cuda:
        import torch

        torch.cuda.reset_peak_memory_stats(device)

    def watch() -> None:
        while not over.wait(INTERVAL):
            stage.rss_bytes = max(stage.rss_bytes, resident())

    watcher = threading.Thread(target=watch, daemon=True)
    try:
        RESET.write_bytes(b"5")
        field = "VmHWM"
    except OSError:
        watcher.start()
        field = "VmRSS"
    try:
        yield stage
    finally:
        over.set()
        if watcher.ident:
            watcher.join()
        stage.rss_bytes = max(stage.rss_bytes, resident(field))
        if cuda:
            stage.gpu_bytes = torch.cuda.max_memory_allocated(device)


def resident(field: str = "VmRSS") -> int:
    """The resident memory of this process in bytes; where there is a /proc, of another field of its status."""
    with suppress(OSError):
        return _kilobytes(STATUS, field)
    return int(_psutil().Process().memory_info().rss)


def _psutil() -> Any:
    require("measuring memory", "psutil")
    import psutil

    return psutil


def _kilobytes(path: Path, field: str) -> int:
    shown = re.search(rf"^{field}:\s*(\d+) kB", path.read_text(encoding="ascii"), re.MULTILINE)
    return int(shown[1]) * 1024 if shown else 0


def release() -> None:
    """Give the memory of objects that are gone back to the system, and torch's on GPUs."""
    gc.collect()
    if (torch := sys.modules.get("torch")) and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    trim_memory()


def available(device: str = "cpu", root: Path = Path("/")) -> int:
    """Bytes that this process could still take: of a GPU's memory, or of the machine's and its control groups'.

    Args:
        root: where /proc and /sys are.

    >>> available() > 0
    True
    """
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    try:
        machine = _kilobytes(root / "proc/meminfo", "MemAvailable")
    except OSError:
        machine = int(_psutil().virtual_memory().available)
    return max(0, min(machine, *_left_in_groups(root), machine))


def _left_in_groups(root: Path) -> Iterator[int]:
    """What the limits of the control groups (version 2 or 1) leave; pages of files that can be dropped are free."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current")
            if controllers:
                top, names = top / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
            place = top / path.lstrip("/")
            # In a container the path may be the host's: then the top is the container's own.
            for group in (place, *place.parents) if controllers.split(",").count("memory") or not controllers else ():
                with suppress(OSError, ValueError):  # not there, or "max": no limit
                    limit, used, kinds = (
                        (group / name).read_text(encoding="ascii") for name in (*names, "memory.stat")
                    )
                    of_files = re.search(r"^inactive_file (\d+)", kinds, re.MULTILINE)
                    yield int(limit) - int(used) + (int(of_files[1]) if of_files else 0)
