"""The re-parameterisation: one shared layer and a table per block in place of a layer per block.

A DiT modulates block i by six vectors, m_i(t) = W_i silu(e(t) + y) + b_i, with e(t) the embedded timestep and y a class
embedding. PixArt modulates it by S_i + W silu(e(t)) + b, with W and b (`t_block`) the same in every block and S_i
(`scale_shift_table`) six learned vectors. So that both agree at t = 500 where there is no class,

    S_i = m_i(500) - W silu(e(500)) - b

whatever W and b are. Of another t nothing is promised: there they are apart by

    (W - W_i) (silu(e(t)) - silu(e(500))) + W_i (silu(e(t)) - silu(e(500)) - silu(e(t) + y) + silu(e(500) + y)),

of which the first part is smallest, over all blocks together, where W is the mean of the W_i. The final layer is
modulated by two vectors, in a DiT W_f silu(e(t) + y) + b_f, in PixArt its own table plus e(t) itself and not `t_block`
of it, so that table is m_f(500) - e(500). The order (shift, scale, gate of the attention, then of the MLP; shift, scale
of the final layer) is the same in both. Everything is computed in float64, a run of rows of one block at a time.
Source: arXiv 2310.00426, section 2.3, "Re-parameterization"; arXiv 2212.09748, section 3.2, for m_i.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nets import Weights
from ..nets.layers import embed_sinusoids, sinusoid
from .draws import EMBEDDER
from .options import MEAN, TIMESTEP, ZERO, Options

LAYER, FINAL = "blocks.{}.adaLN_modulation.1", "final_layer.adaLN_modulation.1"
CLASSES = "y_embedder.embedding_table.weight"
ROWS = 256  # of a layer that are widened to float64 at once


@dataclass(frozen=True)
class Modulation:
    """What the DiT of a state dict is modulated by, and the PixArt that agrees with it at t = 500.

    Args:
        state: of the DiT, key -> tensor or lazy tensor.

    Example:
        >>> state = torch.load("fixtures/golden/dit.pt", weights_only=True)
        >>> begun = Modulation(state, 3, Options())
        >>> [list(begun.table(0).shape), list(begun.final_table.shape), list(begun.t_block[0].shape)]
        [[6, 48], [2, 48], [288, 48]]
    """

    state: Mapping[str, Any]
    depth: int
    options: Options

    @cached_property
    def embedded(self) -> Tensor:
        """e(500), (D,). Sinusoids are float32, as in both nets, so that both have the same bits."""
        weights = Weights(self.state, torch.float64).under("t_embedder.")
        return embed_sinusoids(weights, sinusoid(torch.tensor([float(TIMESTEP)])).double())[0]

    @cached_property
    def condition(self) -> Tensor:
        """e(500) + y, (D,)."""
        if self.options.none == ZERO:
            return self.embedded
        return self.embedded + self._rows(CLASSES, self.state[CLASSES].shape[0] - 1)[0]

    @cached_property
    def t_block(self) -> tuple[Tensor, Tensor]:
        """The shared layer as it is stored, (6 D, D) and (6 D,) in float32."""
        rows, columns = self.state[f"{LAYER.format(0)}.weight"].shape
        if self.options.t_block != MEAN:
            drawn = EMBEDDER(self.options.seed, "t_block.1.weight", (rows, columns))
            return torch.from_numpy(drawn), torch.zeros(rows)
        mean = torch.empty(rows, columns), torch.empty(rows)
        for whole, end in zip(mean, (".weight", ".bias"), strict=True):
            for start in range(0, rows, ROWS):
                layers = (self._rows(f"{LAYER.format(i)}{end}", start, start + ROWS) for i in range(self.depth))
                whole[start : start + ROWS] = reduce(Tensor.add_, layers) / self.depth
        return mean

    @cached_property
    def _shared(self) -> Tensor:
        """What `t_block`, as it is stored, gives at t = 500: (6, D)."""
        weight, bias = self.t_block
        products = [row.double() @ F.silu(self.embedded) for row in weight.split(ROWS)]
        return (torch.cat(products) + bias.double()).reshape(6, -1)

    def table(self, index: int) -> Tensor:
        """`scale_shift_table` of block `index`, (6, D) in float64; it is stored in float32."""
        return self._applied(LAYER.format(index)).reshape(6, -1) - self._shared

    @cached_property
    def final_table(self) -> Tensor:
        """`scale_shift_table` of the final layer, (2, D) in float64; it is stored in float32."""
        return self._applied(FINAL).reshape(2, -1) - self.embedded

    def _applied(self, layer: str) -> Tensor:
        """A layer of the DiT on silu(e(500) + y): for a block m_i(500)."""
        count, heard = self.state[f"{layer}.weight"].shape[0], F.silu(self.condition)
        products = [self._rows(f"{layer}.weight", start, start + ROWS) @ heard for start in range(0, count, ROWS)]
        return torch.cat(products) + self._rows(f"{layer}.bias", 0, count)

    def _rows(self, key: str, start: int, stop: int | None = None) -> Tensor:
        """Rows of a tensor in float64, the only ones that are read."""
        held = self.state[key][start:stop]
        return (held if isinstance(held, Tensor) else held.torch()).double()
