"""Convolutions channel by channel in float64 are torch's own, but for the order of the sums."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from converter.nets.depthwise import depthwise, speed_up


@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.integers(3, 7), st.integers(0, 2), st.booleans())
def test_it_is_torchs_own(channels: int, height: int, width: int, side: int, padding: int, biased: bool) -> None:
    x, weight = torch.randn(2, channels, side, side + 1), torch.randn(channels, 1, height, width)
    bias = torch.randn(channels) if biased else None
    for dtype in (torch.float32, torch.float64):
        values: list[Any] = [None if value is None else value.to(dtype) for value in (x, weight, bias)]
        wanted = F.conv2d(*values, padding=(padding, 1), groups=channels)
        made = depthwise(*values, (padding, 1))
        assert made.dtype == dtype
        torch.testing.assert_close(made, wanted, rtol=0, atol=1e-13 if dtype == torch.float64 else 0)


def conv(**how: Any) -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, **({"groups": 4, "padding": 1} | how))


@pytest.mark.parametrize(
    ("module", "taken"),
    [
        (conv(), True),
        (conv(bias=False), True),
        (conv(stride=2), False),
        (conv(dilation=2), False),
        (conv(padding="same"), False),
        (conv(padding_mode="reflect"), False),
        (conv(groups=2), False),
        (conv(groups=1), False),
        (nn.Conv2d(1, 1, 3), False),
    ],
)
def test_only_plain_ones_are_computed_so(module: nn.Conv2d, taken: bool) -> None:
    net = nn.Sequential(module).double()
    x = torch.randn(2, module.in_channels, 5, 6, dtype=torch.float64)
    before = net(x)
    speed_up(net)
    assert ("_conv_forward" in vars(module)) == taken
    torch.testing.assert_close(net(x), before, rtol=0, atol=1e-13)
