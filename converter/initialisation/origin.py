"""What a DiT becomes: the tensors that are carried over, those that are re-parameterised, those that are drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..checkpoint import LazyTensor
from ..checkpoint.dtypes import F32
from ..conversion.analysis import Analysis
from ..conversion.buffers import computed, computed_on_demand
from ..conversion.to_diffusers import compare_with_computed
from ..errors import UsageError
from ..families.sincos import SinCosTable
from ..mapping import Computed, Extra, KeyMapping, Parameter, Refused
from ..mapping.rows import PARAMETER, Row, Value, spell
from ..models.dit.table import DIT
from ..models.pixart.hyper_parameters import MICRO, RELEASED, TOKENS, VAE_FACTOR
from ..models.pixart.table import PIXART
from . import draws
from .options import Options

if TYPE_CHECKING:
    from torch import Tensor

    from .modulation import Modulation

# What of a PixArt is drawn, by its path.
DRAWN: dict[str, draws.Draw] = {
    "y_embedder.y_proj.fc1": draws.EMBEDDER,
    "y_embedder.y_proj.fc2": draws.EMBEDDER,
    "y_embedder.y_embedding": draws.NULL_CAPTION,
    "blocks.{}.cross_attn.q_linear": draws.xavier,
    "blocks.{}.cross_attn.kv_linear": draws.xavier,
    "csize_embedder.mlp.0": draws.EMBEDDER,
    "ar_embedder.mlp.0": draws.EMBEDDER,
}
T_BLOCK, TABLE, FINAL_TABLE = "t_block.1", "blocks.{}.scale_shift_table", "final_layer.scale_shift_table"


def _becomes(row: Row) -> Value:
    """What a row of the DiT's table is to the PixArt: the same tensor, a buffer to be computed anew, or what goes into
    the re-parameterisation."""
    if isinstance(row.value, Computed):
        return row.value
    if not any(own.source == row.source and own.pattern == row.pattern for own in PIXART.keys.rows):
        return Extra()
    return Parameter(row.source) if row.suffixes == PARAMETER else row.source


# From the DiT's original layout to the PixArt's: what both have under one path and in one shape is carried over.
KEYS = KeyMapping({f"{row.source} [{' '.join(map(str, row.pattern))}]": _becomes(row) for row in DIT.keys.rows})

# What its rows say that an initialisation leaves at zero. So do the embedders of micro-conditions end, and add nothing
# at first: anything else would move the timestep's embedding, and with it every modulation.
DRAWN |= {
    row.source: draws.zeros
    for row in PIXART.keys.rows
    if row.zero_init and row.source not in {carried.source for carried in KEYS.rows if carried.targets}
}


@dataclass(frozen=True)
class Origin:
    """A DiT as it was analysed, and what is to be made of it.

    Raises: `UsageError` for choices that this DiT does not allow for.
    """

    analysis: Analysis
    options: Options

    @property
    def depth(self) -> int:
        return self.analysis.plan.blocks

    @property
    def image_size(self) -> int:
        """Of the PixArt, in pixels."""
        return int(self.options.image_size or self.analysis.findings.value("image_size"))

    @property
    def side(self) -> int:
        """Of the latents that the PixArt is made for."""
        return self.image_size // VAE_FACTOR

    @property
    def choices(self) -> dict[str, Any]:
        """The options, with what they come to for this DiT."""
        heads = self.analysis.findings.value("num_attention_heads")
        settled = {"image_size": self.image_size, "interpolation_scale": self.scale, "num_attention_heads": heads}
        return {name: value for name, value in asdict(self.options).items() if name != "timesteps"} | settled

    @property
    def scale(self) -> float:
        """Of the positions: in the user's word, of the released model, or 1 as in a DiT."""
        version = TOKENS.get(self.options.caption_tokens, "")
        return self.options.interpolation_scale or RELEASED.get((version, self.image_size), 1.0)

    @cached_property
    def same_positions(self) -> bool:
        """Whether the DiT's file holds the very table of positions that the PixArt is to have.

        Raises: `InputError` where the DiT was trained with other positions than those computed here.
        """
        held = False
        for key in self.analysis.plan.computed:
            tensor = self.analysis.checkpoint[key]
            equal = compare_with_computed(self.analysis, key, tensor)[0].equal
            held = equal and tensor.dtype.itemsize >= F32.itemsize  # in fewer bits it is equal once rounded
        return held and (self.image_size, self.scale) == (self.analysis.findings.value("image_size"), 1.0)

    @cached_property
    def dims(self) -> dict[str, int]:
        """The sizes of the PixArt, by the symbols of its table."""
        patch = self.analysis.plan.dims["p"]
        if self.image_size % (patch * VAE_FACTOR):
            rule = f"not a multiple of {patch * VAE_FACTOR}, the pixels that one patch covers"
            raise UsageError(f"`image_size` {self.image_size}: {rule}")
        tokens, channels = self.options.caption_tokens, self.options.caption_channels
        return self.analysis.plan.dims | {"L": tokens, "K": channels, "N": (self.side // patch) ** 2}

    @cached_property
    def modulation(self) -> Modulation:
        from .modulation import Modulation

        return Modulation(self.analysis.checkpoint, self.depth, self.options)

    def with_t_block(self, choice: str) -> Origin:
        """The same with another start of the shared layer."""
        return self if choice == self.options.t_block else replace(self, options=replace(self.options, t_block=choice))

    def state(self) -> dict[str, LazyTensor]:
        """The PixArt's state dict, every row of its table filled, nothing read or drawn before it is asked for.

        Raises: `MappingError` where a key of the DiT has no place, or the PixArt lacks one, which is a mistake of this
        module.
        """
        carried = KEYS(self.analysis.checkpoint)
        state = {key: replace(tensor, key=key) for key, tensor in carried.items()}
        groups = {"", MICRO} if self.options.micro_condition else {""}
        for row in PIXART.keys.rows:
            if isinstance(row.value, Refused) or row.group not in groups:
                continue
            for index in range(self.depth) if "{}" in row.source else (None,):
                for suffix in sorted(row.suffixes or {""}, reverse=True):
                    key = spell(row.source, index, suffix)
                    if key not in state:
                        state[key] = self._made(row, key, suffix)
        PIXART.keys.plan(state)
        return state

    @cached_property
    def tables(self) -> dict[str, Tensor]:
        """The tables of the blocks and of the final layer by their keys, in float64, before they are rounded."""
        tables = {spell(TABLE, index): self.modulation.table(index) for index in range(self.depth)}
        return tables | {FINAL_TABLE: self.modulation.final_table}

    def _made(self, row: Row, key: str, suffix: str) -> LazyTensor:
        """A tensor that the DiT does not have, made when it is asked for: positions, the re-parameterisation, or a draw
        (of a bias: zero)."""
        if isinstance(row.value, Computed):
            return computed(key, SinCosTable(self.dims["D"], self.side // self.dims["p"], self.scale), F32)
        shape = tuple(dim.value(self.dims) or 0 for dim in row.shape_pattern(suffix))
        if 0 in shape:
            what = f"`{row.group}`: " if row.group else ""
            raise UsageError(f"{what}{row.source} needs a hidden size that divides, and this DiT has {self.dims['D']}")

        def pieces() -> Iterator[bytes]:
            if row.source == T_BLOCK:
                values: Any = self.modulation.t_block[suffix == ".bias"].numpy()
            elif row.source in (TABLE, FINAL_TABLE):
                values = self.tables[key].numpy()
            else:
                draw = draws.zeros if suffix == ".bias" else DRAWN[row.source]
                values = draw(self.options.seed, key, shape)
            yield values.astype("<f4", copy=False).tobytes()

        return computed_on_demand(key, F32, shape, pieces)
