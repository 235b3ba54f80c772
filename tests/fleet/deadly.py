"""What workers are given to do that does not go well. Nothing here imports much, since every worker imports it."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.conversion.additions import Additions


@dataclass(frozen=True)
class Dying(Additions):
    """A component of a pipeline that kills its process in the middle of writing a folder, as the system does."""

    folder: Path = Path()
    name: str = ""
    times: int = 0

    def write(self, out: Any, step: Any) -> dict[str, dict[str, int | str]]:
        before = len([*self.folder.glob(f"{self.name}.*")])
        (self.folder / f"{self.name}.{before}").write_text(str(os.getpid()))
        assert any(file.stat().st_size for file in out.path.iterdir())  # weights, and no record of them yet
        if before < self.times:
            os.kill(os.getpid(), signal.SIGKILL)
        return {}


@dataclass(frozen=True)
class Deadly:
    """The argument `components`: of a target of this name, the first so many conversions die. Who came so far is told
    in `folder`, with its process."""

    folder: Path
    times: dict[str, int]

    def __call__(self, analysis: Any, sidecar: Any, target: Path, quiet: bool = True) -> Additions:
        return Dying(folder=self.folder, name=target.name, times=self.times.get(target.name, 0))


def stopped() -> None:
    """Stops its process by SIGTERM."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


def threads() -> tuple[int, str]:
    import torch

    return torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]
