"""Convolutions of each channel by itself in float64, for which torch has no kernel on CPUs that takes all channels at
once: tap by tap 0.1 s for 4 to 10 s, of one of SANA's feed-forward layers. Any other convolution is torch's own.

In float64 both nets of a comparison run this: `tests/nets/test_depthwise.py` holds it to torch's kernel, and the same
comparison in float32 runs that.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None = None, padding: tuple[int, int] = (0, 0)) -> Tensor:
    """(B, C, H, W), a kernel (C, 1, h, w) for each channel, zeros around, one step at a time: (B, C, H', W').

    >>> ones = torch.ones(1, 2, 3, 3, dtype=torch.float64)
    >>> depthwise(ones, torch.ones(2, 1, 3, 3, dtype=torch.float64), None, (1, 1))[0, 0].tolist()
    [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]
    """
    if x.dtype != torch.float64 or x.device.type != "cpu" or x.shape[1:2] != weight.shape[:1] or x.ndim != 4:
        return F.conv2d(x, weight, bias, padding=padding, groups=len(weight))
    (height, width), (above, beside) = weight.shape[2:], padding
    padded = F.pad(x, (beside, beside, above, above))
    rows, columns = padded.shape[2] - height + 1, padded.shape[3] - width + 1
    out = torch.zeros(*x.shape[:2], rows, columns, dtype=x.dtype) if bias is None else bias[None, :, None, None]
    for i, j in product(range(height), range(width)):
        out = out + padded[:, :, i : i + rows, j : j + columns] * weight[:, 0, i, j, None, None]
    return out


def speed_up(model: nn.Module) -> None:
    """Let the depthwise convolutions of a module be computed so, where they are no more than that."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels > 1:
            padding: Any = module.padding  # or a word
            plain = module.stride == module.dilation == (1, 1) and module.padding_mode == "zeros"
            if plain and isinstance(padding, tuple):
                vars(module)["_conv_forward"] = partial(depthwise, padding=padding)
