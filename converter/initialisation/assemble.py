"""`init_from_dit`: a whole PixArt out of a DiT, proven, then written."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint import LazyTensor
from ..checkpoint.write.publish import Publication
from ..checkpoint.write.transfer import Progress
from ..conversion.analysis import analyse
from ..conversion.convert import convert
from ..conversion.model_files import open_model
from ..conversion.options import ConversionOptions
from ..conversion.output import DIFFUSERS, ORIGINAL, SUFFIXES, Destination
from ..conversion.remarks import checkpoint_notes
from ..conversion.verdicts import NONFINITE
from ..conversion.write import TensorWrite, counted, write_files
from ..conversion.zeros import find_zeros
from ..errors import InputError, printable
from ..hub import local
from ..models.dit.table import DIT
from ..models.pixart.hyper_parameters import HEAD_SIZE, PLACEHOLDER, TOKENS
from .options import ZERO, Options
from .origin import Origin

if TYPE_CHECKING:
    from .proof import Proof


@dataclass
class Initialisation:
    """What was made: where, by which choices, and the proof. If the proof failed, nothing is written."""

    path: Path
    choices: dict[str, Any]
    notes: list[str]
    proof: Proof
    written: bool = False
    files: dict[str, int] = field(default_factory=dict)


def init_from_dit(
    orig_ckpt_path: str | os.PathLike[str],
    dump_path: str | os.PathLike[str],
    options: Options | None = None,
    *,
    num_attention_heads: int | None = None,
    weights: str | None = None,
    state_dict_key: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int], Progress] | None = None,
) -> Initialisation:
    """Write a PixArt that computes at t = 500, without a class and whatever the caption, what a DiT does.

    Args:
        orig_ckpt_path: a DiT in its original layout, a file or a place on the hub.
        dump_path: a `.pth`, `.pt` or `.safetensors` in PixArt's original layout, or a folder for diffusers, just as
            `convert` makes one of such a file.
        options: see `Options`.
        num_attention_heads: where hidden size and depth are none of the published DiTs'.
        weights, state_dict_key, overwrite, progress: as of `convert`.

    Returns: an `Initialisation`. Nothing is written where its proof failed.

    Raises: `InputError` for a file that is no DiT, `UsageError` for options that conflict.

    Example:
        >>> options = Options(caption_channels=32, caption_tokens=12)
        >>> done = init_from_dit("fixtures/golden/dit.pt", tmp / "init.pth", options, num_attention_heads=4)
        >>> done.proof.verdict
        'PASS'
    """
    from ..parity.determinism import deterministic
    from .proof import prove
    from .timesteps import measure

    target = Path(dump_path)
    options = options or Options()
    to = ORIGINAL if target.suffix.lower() in SUFFIXES[ORIGINAL] else DIFFUSERS
    wanted = Destination.of(target, ConversionOptions(to))
    wanted.check(Path(orig_ckpt_path), overwrite=overwrite)
    source = local(orig_ckpt_path, quiet=progress is None)
    wanted = wanted.check(source, overwrite=overwrite)
    with open_model(source, weights, state_dict_key) as checkpoint:
        analysis = analyse(checkpoint, {"num_attention_heads": num_attention_heads})
        family = analysis.require()
        if family.name != DIT.name:
            raise InputError(f"{printable(source)}: this is a {family.title}, and a DiT is needed")
        if analysis.diffusers:
            rule = "a DiT in diffusers' layout, and one in its original layout is needed (`pixart revert` makes it)"
            raise InputError.at(source, "", f"this is {rule}")
        analysis.config()  # all that a DiT has to show, or an error that says what is missing
        origin = Origin(analysis, options)
        state = origin.state()
        with deterministic():
            done = Initialisation(wanted.path, origin.choices, notes(origin, wanted), prove(origin, state))
            if refused := find_zeros(analysis.plan, checkpoint).refused:  # a sound proof: of what has been lost
                raise InputError(f"{printable(source)}: {refused}")
            if options.timesteps:
                done.proof.distances = measure(origin)
        if done.proof.passed:
            done.files, afterwards = _write(origin, state, wanted, overwrite=overwrite, progress=progress)
            done.notes += afterwards
            done.written = True
        return done


def notes(origin: Origin, wanted: Destination) -> list[str]:
    """What the user should know."""
    analysis, options = origin.analysis, origin.options
    words, heads = checkpoint_notes(analysis.checkpoint), analysis.findings["num_attention_heads"]
    if heads.source == "assumed":
        words.append(f"assumed: num_attention_heads = {heads.value} ({heads.evidence})")
    rows = analysis.plan.dims["Y"]
    if options.none != ZERO:
        words.append(
            f"no class is row {rows - 1} of its class table, the last of {rows}, if it was trained to have one "
            "(or use --none zero)"
        )
    own = analysis.findings.value("sample_size")
    positions = f"positions: latent side {origin.side}, scale {origin.scale:g}"
    if (origin.side, origin.scale) != (own, 1.0):
        positions += f"; the DiT has {own} and 1, so that the blocks get other inputs than it was trained on"
    words.append(positions)
    if options.caption_tokens not in TOKENS:
        words.append(f"{options.caption_tokens} caption tokens are neither alpha's (120) nor sigma's (300)")
    if not wanted.folder and (flags := _unshown(origin)):
        stated = " ".join(f"--{name} {value}" for name, value in flags.items())
        words.append(f"the file does not show everything: convert it with {stated}")
    return words


def _unshown(origin: Origin) -> dict[str, Any]:
    """What a file of this PixArt does not show, or shows as another's: flags for its conversion."""
    heads, hidden = origin.analysis.findings.value("num_attention_heads"), origin.dims["D"]
    flags: dict[str, Any] = {} if heads * HEAD_SIZE == hidden else {"num_attention_heads": heads}
    if origin.dims["N"] == 1 or (origin.side, origin.scale) == PLACEHOLDER:
        flags |= {"image_size": origin.image_size, "interpolation_scale": origin.scale}
    return flags


def _write(
    origin: Origin,
    state: Mapping[str, LazyTensor],
    wanted: Destination,
    *,
    overwrite: bool,
    progress: Callable[[int], Progress] | None,
) -> tuple[dict[str, int], list[str]]:
    """Write what was proven; returns the files' sizes, and notes on what happened on the disk. A folder is what
    `convert` makes of the file."""
    parts = [TensorWrite((tensor,), (key,), tensor.dtype) for key, tensor in state.items()]
    total = sum(part.nbytes for part in parts)
    if wanted.folder:  # beside it: never published, so never over it
        with Publication(wanted.path, needed_bytes=2 * total + (1 << 20), overwrite=True) as beside:
            place = replace(wanted, path=beside.path / "init.pth", to=ORIGINAL)
            _write(origin, state, place, overwrite=False, progress=progress)
            # Whatever is zero in it is so by the choices: the DiT was analysed.
            how = ConversionOptions(overwrite=overwrite, allow_zeros=True)
            done = convert(place.path, wanted.path, how, hyper_parameters=_unshown(origin))
            return done.files, [note for note in done.notes if note not in done.record["notes"]]
    (file,), _ = wanted.files(parts, origin.analysis.require())
    step = progress(total) if progress else lambda count: None
    with wanted.publication(file.layout.size + (1 << 20), overwrite=overwrite) as out:
        written = write_files(out, [file], parts, step=step, digests={})
        if written.nonfinite:
            raise InputError.at(origin.analysis.checkpoint.path, "", counted(written.nonfinite, NONFINITE))
        out.publish()
    return {file.name: file.layout.size}, out.notes
