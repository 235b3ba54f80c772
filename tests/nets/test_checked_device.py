"""A device is asked for its numbers before anything is loaded onto it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from converter import UsageError
from converter.nets.device import checked_device

NOT_THERE = "cuda:99" if torch.cuda.is_available() else "cuda"


@pytest.mark.parametrize("device", [None, "cpu", "cpu:0", torch.device("cpu")])
def test_the_cpu_is_no_place_to_move_to(device: Any) -> None:
    assert checked_device(device) is None


@pytest.mark.parametrize("device", [NOT_THERE, torch.device(NOT_THERE), "nowhere", "meta", 99, 1.5, "a\nb"])
def test_what_holds_no_numbers_is_refused(device: Any) -> None:
    with pytest.raises(UsageError, match=r"^`device` [^\n]+: [^\n]+$"):
        checked_device(device)


def test_the_cpu_needs_no_torch() -> None:
    code = "import sys, converter.nets.device as d; d.checked_device('cpu'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
