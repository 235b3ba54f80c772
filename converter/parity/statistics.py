"""How far apart two outputs are, in float64: one number each for the whole, the worst pixel, channel, patch position.

Every error is relative to the reference: a norm to its norm, an extreme to its RMS.
"""

from __future__ import annotations

from math import inf, log10

import torch
from torch import Tensor

from .gates import GATING, SHOWN, Statistics

MOST = 1 << 22  # numbers that quantiles are taken of, evenly; torch has a limit of its own


def compare(candidate: Tensor, reference: Tensor, patch: int = 1) -> Statistics:
    """Compare two outputs of one shape, (batch, channels, height, width).

    Gated are ||a - b|| / ||b||; max |a - b|, for one bad pixel; and the RMS of the error in the worst channel and at
    the worst place inside a patch.

    Args:
        patch: side of a patch; the height and width are multiples of it.

    Example:
        >>> a = torch.ones(1, 2, 4, 4)
        >>> compare(a * 1.5, a).gated["relative L2"]
        0.5
    """
    if candidate.shape != reference.shape:
        raise ValueError(f"shapes {list(candidate.shape)} and {list(reference.shape)} cannot be compared")
    a, b = candidate.detach().cpu().double(), reference.detach().cpu().double()
    nonfinite = int((~torch.isfinite(a)).sum()), int((~torch.isfinite(b)).sum())
    if any(nonfinite):
        return Statistics(dict.fromkeys(GATING, inf), {}, nonfinite)
    error, scale = a - b, float(b.square().mean().sqrt())
    size = error.abs()
    unit = scale or 1.0
    index = tuple(int(i) for i in torch.unravel_index(size.argmax(), size.shape))
    channel = error.square().mean(dim=(0, 2, 3)).sqrt().max()
    n, c, h, w = error.shape
    patch = patch if h % patch == w % patch == 0 else 1  # of tokens there are no places in a patch
    places = error.reshape(n, c, h // patch, patch, w // patch, patch).square().mean(dim=(0, 1, 2, 4)).sqrt().max()
    thinned = size.flatten()[:: -(-size.numel() // MOST)]  # quantiles are shown and gate nothing
    half, most = torch.quantile(thinned, torch.tensor([0.5, 0.99], dtype=torch.float64)).tolist()
    norms = float(a.norm() * b.norm())
    relative = float(error.norm() / (b.norm() if scale else 1.0))
    gated = relative, float(size.max()) / unit, float(channel) / unit, float(places) / unit
    shown = (
        float((a * b).sum()) / norms if norms else 0.0,
        -20 * log10(relative) if relative > 0 else inf,
        float(error.mean()) / unit,
        half / unit,
        most / unit,
        f"{list(index)}: {float(a[index]):.9g} for {float(b[index]):.9g}",
    )
    return Statistics(
        dict(zip(GATING, gated, strict=True)), dict(zip(SHOWN, shown, strict=True)), nonfinite=(0, 0), scale=scale
    )


def images(output: Tensor) -> Tensor:
    """An output as (batch, channels, height, width): of a video (batch, channels, frames, height, width) the frames one
    below the other, of tokens (batch, tokens, channels) a column."""
    if output.ndim == 5:
        return output.flatten(2, 3)
    return output.transpose(1, 2)[..., None] if output.ndim == 3 else output


def relative(candidate: Tensor, reference: Tensor, base: Tensor | None = None) -> float:
    """||a - b|| / ||b||, or, of something that a block updates, / ||b - base||: the error by the block's own work."""
    a, b = candidate.double(), reference.double()
    work = b if base is None else b - base.double()
    error, norm = float((a - b).norm()), float(work.norm())
    if not (error < inf and norm < inf):
        return inf  # NaN too
    return error / norm if norm else (0.0 if error == 0 else inf)
