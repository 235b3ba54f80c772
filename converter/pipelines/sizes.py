"""How large a picture is: as it was asked for, by a table of sizes that the model was trained with, or its own size."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UsageError
from ..nets.pipeline_spec import Conventions
from .model import PictureModel

Asked = tuple[int | None, int | None]  # height and width in pixels, None where nothing was said


@dataclass(frozen=True)
class PictureSize:
    """What is drawn: height and width in pixels, multiples of a patch; `ratio`, that the net is told; `asked`, the size
    that the picture is resized and cropped to, where that differs."""

    height: int
    width: int
    ratio: float
    asked: tuple[int, int] | None = None


def picture_size(
    model: PictureModel, how: Conventions, asked: Asked, *, ratio: float | None = None, binning: bool = True
) -> PictureSize:
    """The size to draw.

    Args:
        ratio: height over width, where that was asked for and no size.
        binning: draw the size of the model's table that is closest in its ratio.

    Raises: `UsageError` for a size that cannot be drawn.
    """
    own, cell = model.findings.value("image_size"), model.spec.vae_factor * model.findings.value("patch_size")
    height, width = asked[0] or own, asked[1] or own
    if ratio:
        height, width = round(own * ratio**0.5 / cell) * cell, round(own / ratio**0.5 / cell) * cell
    for name, side in (("height", height), ("width", width)):
        if side < cell:
            raise UsageError(f"`{name}` {side}: must be at least {cell} pixels, one patch")
    table = model.spec.bins(model.findings, how)
    if how.own_size_only:
        if (height, width) != (own, own) and (*asked, ratio) != (None, None, None):
            raise UsageError(
                f"`height` {height}, `width` {width}: the training code draws {own} x {own} with it, as it is of "
                "the fixed-size class; other sizes: `conventions` diffusers"
            )
        return PictureSize(own, own, 1.0)
    if binning and table:
        asked_for, key = (height, width), min(table, key=lambda each: abs(each - height / width))
        height, width = table[key]
    else:
        asked_for = (height, width)
        for name, side in (("height", height), ("width", width)):
            if side % cell:
                near = f"{side // cell * cell} or {side // cell * cell + cell}"
                raise UsageError(f"`{name}` {side}: must be a multiple of {cell}, such as {near}")
        # As the keys of the tables are, and what the training told the net.
        key = round(height / width, 2)
    told = key if how.ratio_of_table else height / width
    return PictureSize(height, width, told, asked_for if how.resize and asked_for != (height, width) else None)
