"""What a user may choose of a PixArt that begins as a DiT."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UsageError
from ..families.evidence import sensible

UNCONDITIONAL, ZERO = NONES = ("unconditional", "zero")
T_BLOCKS = ("mean", "paper")
MEAN = T_BLOCKS[0]
TIMESTEP = 500  # at which the two agree (arXiv 2310.00426, section 2.3)


@dataclass(frozen=True)
class Options:
    """Choices, with the defaults of the paper's code where it has any.

    Attributes:
        none: which class embedding stands for "no class": the unconditional one, the last of the table, or zero.
        t_block: what the shared layer starts as: the mean of the blocks' own layers, or random as in the paper's code.
        image_size: pixels; None for the DiT's own. interpolation_scale: None for the released model's of that size.
        caption_tokens: 120 in alpha and 300 in sigma. micro_condition: embedders of size and aspect ratio.
        timesteps: measure how far apart the two are at other timesteps too, for a report.
    """

    none: str = UNCONDITIONAL
    t_block: str = MEAN
    image_size: int | None = None
    interpolation_scale: float | None = None
    caption_tokens: int = 120
    caption_channels: int = 4096
    micro_condition: bool = False
    seed: int = 0
    timesteps: bool = False

    def __post_init__(self) -> None:
        for name, value, choices in (("none", self.none, NONES), ("t_block", self.t_block, T_BLOCKS)):
            if value not in choices:
                raise UsageError(f"`{name}` {value}: one of {', '.join(choices)}")
        for name in ("caption_tokens", "caption_channels", "interpolation_scale"):
            number = getattr(self, name)
            if number is not None and not sensible(number):
                raise UsageError(f"`{name}` {number}: not a sensible positive number")
        if not 0 <= self.seed < 1 << 63:
            raise UsageError(f"`seed` {self.seed}: a whole number from 0 up")
