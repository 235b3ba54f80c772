"""An input, and replacing a folder both ways."""

from __future__ import annotations

from pathlib import Path

import pytest
from publications import exchanges

from converter import system


@pytest.fixture(params=["exchange", "two renames"])
def both_ways(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Replacing is tried with the system's exchange (where there is one) and without."""
    if request.param == "two renames":
        monkeypatch.setattr(system, "exchange", lambda one, other: False)
    elif not exchanges(tmp_path):
        pytest.skip("this system cannot exchange two folders")
    return str(request.param)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint in a folder of its own."""
    path = tmp_path / "in" / "model.pth"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    return path
