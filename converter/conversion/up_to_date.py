"""Does a target hold already what a conversion would write? Decided by digests of both sides, not by names or dates."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..checkpoint import open_checkpoint
from ..checkpoint.file import InputFile, reading
from ..checkpoint.write.transfer import DifferentError, Output, transfer
from ..errors import InputError
from ..filenames import PARITY, PARITY_PAGE, RECORD
from ..remote import is_url, target_at
from .additions import Adding
from .options import ConversionOptions, with_shortcuts
from .plan import ConversionPlan, open_plan
from .record import files_we_wrote
from .verdicts import give_verdict
from .write import Written, summary


def is_up_to_date(
    orig_ckpt_path: str | os.PathLike[str],
    dump_path: str | os.PathLike[str],
    options: ConversionOptions | None = None,
    *,
    hyper_parameters: Mapping[str, Any] | None = None,
    components: Adding | None = None,
    **shortcuts: Any,
) -> list[str] | None:
    """The notes of `convert` on the tensors, if `dump_path` holds exactly what it would write; else None.

    Both sides are read and hashed. The arguments are those of `convert`.

    Raises: as `convert` does, for what it refuses of the source.
    """
    options = with_shortcuts(options or ConversionOptions(), shortcuts | {"overwrite": True})
    if is_url(dump_path):
        with target_at(dump_path, orig_ckpt_path) as target:
            known: dict[str, Any] = {"hyper_parameters": hyper_parameters, "components": components}
            return is_up_to_date(orig_ckpt_path, target.path, options, **known)
    if not os.path.lexists(dump_path):
        return None
    with open_plan(orig_ckpt_path, dump_path, options, hyper_parameters or {}, components=components) as plan:
        path, files = plan.destination.path, [*plan.texts, *(file.name for file in plan.files)]
        names = [RECORD, PARITY, PARITY_PAGE, *files]
        if plan.destination.folder and files_we_wrote(path) != dict.fromkeys(names, "") | plan.additions.links:
            return None  # without its record, or with more than we would write, it is another result
        if not plan.additions.match(path):
            return None
        with reading(plan.analysis.checkpoint.path):
            written = _written_before(path if plan.destination.folder else path.parent, plan)
            given = plan.sidecar.given
            return give_verdict(plan.analysis, plan.writes, written, options, given=given)[0] if written else None


def _written_before(folder: Path, plan: ConversionPlan) -> Written | None:
    """What `write_files` would return, without `files`, if the folder already holds these files with these
    tensors and texts, bit for bit; else None.

    Raises: `InputError` where the source is damaged.
    """
    with ExitStack() as stack:
        there: dict[str, Output] = {}
        try:
            for name, text in plan.texts.items():
                file = stack.enter_context(InputFile(folder / name))
                if file.size != len(data := text.encode()) or file.read(0, file.size) != data:
                    return None
            for planned in plan.files:
                opened = stack.enter_context(open_checkpoint(folder / planned.name))
                tensors = {tensor.key: tensor for tensor in opened.values()}
                frame = planned.layout.frame({key: tensor.storage.crc or 0 for key, tensor in tensors.items()})
                file = opened.files[0]
                if file.size != planned.layout.size or any(file.read(at, len(data)) != data for at, data in frame):
                    return None  # another container, or more than these tensors
                there |= {tensor.key: Output(tensor, None) for tensor in planned.tensors(opened)}
        except InputError:
            return None  # absent, or no checkpoint
        wanted = {e.key: (e.dtype, e.shape) for part in plan.parts for e in part.entries}
        if wanted != {key: (output.tensor.dtype, output.tensor.shape) for key, output in there.items()}:
            return None
        copies = [copy for part in plan.parts for copy in part.tensor_copies(there, plan.writes.stated)]
        try:
            transfer(copies)
        except DifferentError:
            return None
        return summary(copies, {})
