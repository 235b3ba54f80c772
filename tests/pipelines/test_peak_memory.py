"""What is measured of memory: the peak of a stage, what is there, and what is given back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from fresh_memory import fresh_memory

from converter.pipelines.memory import INTERVAL, available, peak, release, resident

SIZE = 80_000_000


def test_a_peak_is_that_of_its_own_stage() -> None:
    with peak() as first, fresh_memory(SIZE):
        before = resident()
    release()
    with peak() as second:
        pass
    assert first.rss_bytes > before - SIZE / 20  # the kernel counts in batches
    assert first.rss_bytes - second.rss_bytes > SIZE / 2
    assert second.gpu_bytes == 0


def test_where_the_systems_peak_cannot_be_reset_it_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, *_: Any) -> int:
        raise PermissionError(path)

    with fresh_memory(4 * SIZE):  # what the system remembers, and the samples must not
        pass
    monkeypatch.setattr(Path, "write_bytes", refused)
    before = resident()
    with peak() as stage, fresh_memory(SIZE):
        time.sleep(20 * INTERVAL)
    assert SIZE * 0.9 < stage.rss_bytes - before < 2 * SIZE


@pytest.mark.parametrize(
    ("group", "files", "left"),
    [
        ("0::/a/b", {"a/b/memory.max": "max", "a/memory.max": "900", "a/memory.current": "700"}, 250),
        ("0::/host/only", {"memory.max": "500", "memory.current": "450"}, 100),
        ("4:cpu:/a\n3:memory:/a", {"memory/a/memory.limit_in_bytes": "8", "memory/a/memory.usage_in_bytes": "9"}, 49),
        ("0::/a", {"a/memory.max": "9000000", "a/memory.current": "1"}, 2048),
        ("0::/a", {"a/memory.max": "70", "a/memory.current": "400"}, 0),
        ("0::/", {}, 2048),
    ],
)
def test_the_limits_of_control_groups_count(tmp_path: Path, group: str, files: dict[str, str], left: int) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal:       9 kB\nMemAvailable:       2 kB\n")
    (tmp_path / "proc/self/cgroup").write_text(group + "\n")
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        (path.parent / "memory.stat").write_text("anon 7\ninactive_file 50\n")
    assert available(root=tmp_path) == left


def test_what_there_is_is_no_more_than_the_machine_has() -> None:
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < available() <= total
