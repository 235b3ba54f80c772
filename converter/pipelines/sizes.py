"""How large a picture is: as it was asked for, by a table of sizes that the model was trained with, or its own size."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UsageError
from ..nets.pipeline_spec import Conventions
from .model import PictureModel

# The ratio of height to width; or both in pixels, None where nothing was said.
Asked = float | tuple[int | None, int | None]


@dataclass(frozen=True)
class PictureSize:
    """What is drawn: height and width in pixels, multiples of a patch; `ratio`, that the net is told; `asked`, the size
    that the picture is resized and cropped to, where that differs."""

    height: int
    width: int
    ratio: float
    asked: tuple[int, int] | None = None


def picture_size(model: PictureModel, how: Conventions, asked: Asked, *, binning: bool = True) -> PictureSize:
    """The size to draw; `binning`: the one of the model's table that is closest in its ratio.

    Raises: `UsageError` for a size that cannot be drawn.
    """
    own, cell = model.findings.value("image_size"), model.spec.vae_factor * model.findings.value("patch_size")
    if isinstance(asked, float):
        height, width = round(own * asked**0.5 / cell) * cell, round(own / asked**0.5 / cell) * cell
    else:
        height, width = asked[0] or own, asked[1] or own
    for name, side in (("height", height), ("width", width)):
        if side < cell:
            raise UsageError(f"`{name}` {side}: must be at least {cell} pixels, one patch")
    if how.own_size_only:
        if (height, width) != (own, own):
            raise UsageError(
                f"`height` {height}, `width` {width}: the training code draws {own} x {own} with it, as it is of "
                "the fixed-size class; other sizes: `conventions` diffusers"
            )
        return PictureSize(own, own, 1.0)
    wanted, ratio = (height, width), round(height / width, 2)  # as the training told the net
    if binning and (table := model.spec.bins(model.findings, how)):
        ratio = min(table, key=lambda each: abs(each - height / width))
        height, width = table[ratio]
    for name, side in (("height", height), ("width", width)):
        if side % cell:
            near = f"{side // cell * cell} or {side // cell * cell + cell}"
            raise UsageError(f"`{name}` {side}: must be a multiple of {cell}, such as {near}")
    resized = wanted if how.resize and wanted != (height, width) else None
    return PictureSize(height, width, ratio if how.ratio_of_table else height / width, resized)
