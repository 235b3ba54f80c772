"""A whole PixArt out of a DiT: what is carried over, what is re-parameterised, what is drawn; proven, then written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..buffers import computed
from ..buffers import made as made_on_demand
from ..checkpoint import LazyTensor, open_checkpoint
from ..checkpoint.dtypes import F32
from ..checkpoint.transfer import Progress
from ..destination import ORIGINAL, Destination
from ..errors import InputError, UsageError, printable
from ..families.dit import DIT
from ..families.evidence import VAE_FACTOR
from ..families.pixart import PIXART
from ..families.pixart_evidence import MICRO
from ..families.pixart_released import RELEASED, TOKENS
from ..families.sincos import SinCosTable
from ..hub import local
from ..mapping import Computed, Refused
from ..mapping.rows import Row, spell
from ..survey import Survey, survey
from ..writing import Part, counted, write_files
from . import draws
from .options import Options

if TYPE_CHECKING:
    from .modulation import Modulation

# What of a PixArt is drawn, by its path. The embedders of micro-conditions end in zero, so that they add nothing at
# first: anything else would move the timestep's embedding, and with it every modulation.
DRAWN: dict[str, draws.Draw] = {
    "y_embedder.y_proj.fc1": draws.EMBEDDER,
    "y_embedder.y_proj.fc2": draws.EMBEDDER,
    "y_embedder.y_embedding": draws.NULL_CAPTION,
    "blocks.{}.cross_attn.q_linear": draws.xavier,
    "blocks.{}.cross_attn.kv_linear": draws.xavier,
    "blocks.{}.cross_attn.proj": draws.zeros,
    "csize_embedder.mlp.0": draws.EMBEDDER,
    "csize_embedder.mlp.2": draws.zeros,
    "ar_embedder.mlp.0": draws.EMBEDDER,
    "ar_embedder.mlp.2": draws.zeros,
}
# What both layouts have under the same path, and the same shape, is carried over byte for byte.
CARRIED = {row.source for row in DIT.keys.rows if row.targets} & {row.source for row in PIXART.keys.rows if row.targets}


@dataclass
class Initialisation:
    """What was made: where, of what, and the proof (see `proof.prove`)."""

    path: Path
    notes: list[str]
    proof: dict[str, Any]
    written: bool
    files: dict[str, int] = field(default_factory=dict)


@dataclass
class Origin:
    """A DiT that was looked at, and what is to be made of it."""

    looked: Survey
    options: Options

    @property
    def depth(self) -> int:
        return self.looked.plan.blocks

    @property
    def side(self) -> int:
        """Of the latents that the PixArt is made for."""
        size = self.options.image_size
        own: int = self.looked.found.value("image_size")
        return (size or own) // VAE_FACTOR

    @property
    def version(self) -> str:
        return TOKENS.get(self.options.caption_tokens, "")

    @property
    def scale(self) -> float:
        """Of the positions: in the user's word, of the released model, or 1 as in a DiT."""
        return self.options.interpolation_scale or RELEASED.get((self.version, self.side * VAE_FACTOR), 1.0)

    @cached_property
    def dims(self) -> dict[str, int]:
        """The sizes of the PixArt, by the symbols of its table."""
        patch = self.looked.plan.dims["p"]
        if self.side % patch:
            raise UsageError(f"--image_size {self.options.image_size}: not a multiple of {patch * VAE_FACTOR}")
        tokens, channels = self.options.caption_tokens, self.options.caption_channels
        return self.looked.plan.dims | {"L": tokens, "K": channels, "N": (self.side // patch) ** 2}

    @cached_property
    def modulation(self) -> Modulation:
        from .modulation import Modulation

        return Modulation(self.looked.checkpoint, self.depth, self.options)

    def state(self) -> dict[str, LazyTensor]:
        """The PixArt's state dict, every row of its table filled, nothing read or drawn before it is asked for.

        Raises: `MappingError` where it would not be one, which is a mistake of this module.
        """
        state: dict[str, LazyTensor] = {}
        for row in PIXART.keys.rows:
            if isinstance(row.value, Refused) or (row.group == MICRO and not self.options.micro_condition):
                continue
            for index in range(self.depth) if "{}" in row.source else (None,):
                for suffix in sorted(row.suffixes or {""}, reverse=True):
                    state[spell(row.source, index, suffix)] = self._tensor(row, index, suffix)
        PIXART.keys.plan(state)
        return state

    def _tensor(self, row: Row, index: int | None, suffix: str) -> LazyTensor:
        key = spell(row.source, index, suffix)
        if row.source in CARRIED:
            return replace(self.looked.checkpoint[key], key=key)
        if isinstance(row.value, Computed):
            table = SinCosTable(self.dims["D"], self.side // self.dims["p"], self.scale)
            return computed(key, table, F32)
        shape = tuple(dim.value(self.dims) or 0 for dim in row.shape_pattern(suffix))
        if 0 in shape:
            raise UsageError(f"{key}: a hidden size of {self.dims['D']} does not allow for it")
        how = self._how(row.source, index, suffix, shape)

        def pieces() -> Iterator[bytes]:
            yield how().astype("<f4", copy=False).tobytes()

        return made_on_demand(key, F32, shape, pieces)

    def _how(self, path: str, index: int | None, suffix: str, shape: tuple[int, ...]) -> Callable[[], Any]:
        """What makes a tensor: the re-parameterisation, or a draw (of a bias: zero)."""
        if path == "t_block.1":
            return lambda: self.modulation.t_block[suffix == ".bias"].numpy()
        if path == "blocks.{}.scale_shift_table":
            return lambda: self.modulation.table(index or 0).numpy()
        if path == "final_layer.scale_shift_table":
            return lambda: self.modulation.final_table.numpy()
        draw = draws.zeros if suffix == ".bias" else DRAWN[path]
        return lambda: draw(self.options.seed, spell(path, index, suffix), shape)


def init_from_dit(
    orig_ckpt_path: str | os.PathLike[str],
    dump_path: str | os.PathLike[str],
    options: Options | None = None,
    *,
    num_attention_heads: int | None = None,
    weights: str | None = None,
    overwrite: bool = False,
    timesteps: bool = False,
    progress: Callable[[int], Progress] | None = None,
) -> Initialisation:
    """Write a PixArt that computes at t = 500, without a class and whatever the caption, what a DiT does.

    Args:
        orig_ckpt_path: a DiT in its original layout, a file or a place on the hub.
        dump_path: a `.pth`, `.pt` or `.safetensors` in PixArt's original layout, or a folder for diffusers.
        options: see `Options`.
        num_attention_heads: where hidden size and depth are none of the published DiTs'.
        weights: 'raw' or 'ema' where the file holds both.
        overwrite: replace what is there, as `convert` does.
        timesteps: measure how far apart the two are at other timesteps too, for a report.
        progress: as of `convert`.

    Returns: an `Initialisation`. Nothing is written where its proof failed.

    Raises: `InputError` for a file that is no DiT, `UsageError` for words that do not go together.

    Example:
        >>> options = Options(caption_channels=32, caption_tokens=12)
        >>> done = init_from_dit("fixtures/golden/dit.pt", tmp / "init.pth", options, num_attention_heads=4)
        >>> done.proof["passed"]
        True
    """
    from .proof import prove

    options = options or Options()
    target = Path(dump_path)
    to = ORIGINAL if target.suffix.lower() in (".pth", ".pt", ".safetensors") else "diffusers"
    wanted = Destination.of(target, to)
    wanted.check(Path(orig_ckpt_path), overwrite=overwrite)
    source = local(orig_ckpt_path, quiet=progress is None)
    wanted = wanted.check(source, overwrite=overwrite)
    with ExitStack() as stack:
        checkpoint = stack.enter_context(open_checkpoint(source, weights))
        looked = survey(checkpoint, {"num_attention_heads": num_attention_heads}, None)
        if looked.require().name != DIT.name or looked.diffusers:
            what = looked.require().title + (" in diffusers' layout" if looked.diffusers else "")
            raise InputError(f"{printable(source)}: this is a {what}, and a DiT in its original layout is needed")
        looked.config()  # all that a DiT has to show, or an error that says what is missing
        origin = Origin(looked, options)
        state = origin.state()
        done = Initialisation(wanted.path, notes(origin), prove(origin, state, timesteps=timesteps), False)
        if done.proof["passed"]:
            done.files = _write(origin, state, wanted, overwrite, progress)
            done.written = True
        return done


def notes(origin: Origin) -> list[str]:
    """What the user should know."""
    found, options = origin.looked.found, origin.options
    said = [f"positions: latent side {origin.side}, scale {origin.scale:g}"]
    own = found.value("sample_size")
    if (origin.side, origin.scale) != (own, 1.0):
        said[0] += f"; the DiT has {own} and 1, so that what enters the blocks differs from what it was trained on"
    if options.caption_tokens not in TOKENS:
        said.append(f"{options.caption_tokens} caption tokens are neither alpha's (120) nor sigma's (300)")
    return said


def _write(
    origin: Origin,
    state: Mapping[str, LazyTensor],
    wanted: Destination,
    overwrite: bool,
    progress: Callable[[int], Progress] | None,
) -> dict[str, int]:
    if wanted.folder:
        from ..conversion import convert

        heads = origin.looked.found.value("num_attention_heads")
        with tempfile.TemporaryDirectory(dir=_beside(wanted.path), prefix=f".{wanted.path.name}.") as place:
            _write(origin, state, replace(wanted, path=Path(place, "init.pth"), to=ORIGINAL), False, progress)
            made = convert(Path(place, "init.pth"), wanted.path, overwrite=overwrite, num_attention_heads=heads)
            return made.files
    parts = [Part((tensor,), (key,), tensor.dtype) for key, tensor in state.items()]
    files, _ = wanted.files(parts, "")
    step = progress(sum(part.nbytes for part in parts)) if progress else lambda count: None
    with wanted.publication(sum(file.layout.size for file in files) + (1 << 20), overwrite=overwrite) as out:
        written = write_files(out, files, parts, step, {})
        if written.nonfinite:
            raise InputError(f"{printable(origin.looked.checkpoint.path)}: {counted(written.nonfinite, 'not finite')}")
        out.publish()
    return {file.name: file.layout.size for file in files}


def _beside(path: Path) -> Path:
    """A folder on the same disk as a target that may not be there yet."""
    return next(parent for parent in path.parents if parent.is_dir())

