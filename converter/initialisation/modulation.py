"""The re-parameterisation: one shared layer and a table per block in place of a layer per block.

A DiT modulates block i by six vectors, m_i(t) = W_i silu(e(t) + y) + b_i, with e(t) the embedded timestep and y a class
embedding. PixArt modulates it by S_i + W silu(e(t)) + b, with W and b (`t_block`) the same in every block and S_i
(`scale_shift_table`) six learned vectors. So that both agree at t = 500 where there is no class,

    S_i = m_i(500) - W silu(e(500)) - b

whatever W and b are. The final layer is modulated by two vectors, in a DiT W_f silu(e(t) + y) + b_f, in PixArt its
own table plus e(t) itself, so that table is the difference of those. The order (shift, scale, gate of the attention,
then of the MLP; shift, scale of the final layer) is the same in both. Everything is computed in float64, of one block
at a time.
Source: arXiv 2310.00426, section 2.3, "Re-parameterization"; arXiv 2212.09748, section 3.2, for m_i.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..reference import Weights
from ..reference.embeddings import embed_sinusoids, linear, sinusoid
from .draws import EMBEDDER
from .options import MEAN, TIMESTEP, ZERO, Options


@dataclass(frozen=True)
class Modulation:
    """What the DiT of a state dict is modulated by, and the PixArt that agrees with it at t = 500.

    Args:
        state: of the DiT, key -> tensor or lazy tensor.

    Example:
        >>> state = torch.load("fixtures/golden/dit.pt", weights_only=True)
        >>> made = Modulation(state, 3, Options())
        >>> [list(made.table(0).shape), list(made.final_table.shape), list(made.t_block[0].shape)]
        [[6, 48], [2, 48], [288, 48]]
    """

    state: Mapping[str, Any]
    depth: int
    options: Options

    @cached_property
    def weights(self) -> Weights:
        return Weights(self.state, torch.float64)

    @cached_property
    def embedded(self) -> Tensor:
        """e(500), (D,). Sinusoids are float32, as in both nets, so that both have the same bits."""
        return embed_sinusoids(self.weights.under("t_embedder."), sinusoid(torch.tensor([float(TIMESTEP)])).double())[0]

    @cached_property
    def condition(self) -> Tensor:
        """e(500) + y, (D,)."""
        if self.options.none == ZERO:
            return self.embedded
        return self.embedded + self.weights["y_embedder.embedding_table.weight"][-1]

    def wanted(self, index: int) -> Tensor:
        """m_i(500), (6, D)."""
        return linear(self.weights, f"blocks.{index}.adaLN_modulation.1", F.silu(self.condition)).reshape(6, -1)

    @cached_property
    def t_block(self) -> tuple[Tensor, Tensor]:
        """The shared layer as it is stored, (6 D, D) and (6 D,) in float32."""
        first = self.weights["blocks.0.adaLN_modulation.1.bias"]
        if self.options.t_block != MEAN:
            shape = (len(first), len(first) // 6)
            return torch.from_numpy(EMBEDDER(self.options.seed, "t_block.1.weight", shape)), torch.zeros(len(first))

        def mean(of: Callable[[int], Tensor]) -> Tensor:
            total = of(0)
            for i in range(1, self.depth):
                total += of(i)
            return (total / self.depth).float()

        layers = [f"blocks.{i}.adaLN_modulation.1" for i in range(self.depth)]
        return mean(lambda i: self.weights[f"{layers[i]}.weight"]), mean(lambda i: self.weights[f"{layers[i]}.bias"])

    @cached_property
    def _shared(self) -> Tensor:
        """What `t_block`, as it is stored, gives at t = 500: (6, D)."""
        weight, bias = self.t_block
        return F.linear(F.silu(self.embedded), weight.double(), bias.double()).reshape(6, -1)

    def table(self, index: int) -> Tensor:
        """`scale_shift_table` of block `index`, (6, D) in float32."""
        return (self.wanted(index) - self._shared).float()

    @cached_property
    def final_table(self) -> Tensor:
        """`scale_shift_table` of the final layer, (2, D) in float32."""
        wanted = linear(self.weights, "final_layer.adaLN_modulation.1", F.silu(self.condition)).reshape(2, -1)
        return (wanted - self.embedded).float()
