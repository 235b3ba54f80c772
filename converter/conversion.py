"""`convert`: an original checkpoint becomes a folder that diffusers loads, whole or not at all, with its record."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ._version import __version__
from .buffers import Comparison, compare
from .checkpoint import Checkpoint, LazyTensor, open_checkpoint
from .checkpoint.publish import Publication, check_target, leftovers
from .checkpoint.safetensors_writer import Entry, Layout, lay_out_file
from .checkpoint.transfer import Delivery, Output, Progress, transfer, verify, write_at
from .errors import ConverterError, InputError, UsageError, printable
from .inspection import report
from .mapping import fold
from .survey import Survey, survey

WEIGHTS = "diffusion_pytorch_model.safetensors"
EXTRAS = "original_extras.safetensors"
RECORD = "conversion.json"
# What a folder of ours may hold, so that --overwrite never deletes anything else.
_OURS = re.compile(rf"\w+/(config\.json|diffusion_pytorch_model[\w.-]*)|{re.escape(EXTRAS)}|{re.escape(RECORD)}")


def _ours(name: str) -> bool:
    return _OURS.fullmatch(name) is not None


@dataclass
class Conversion:
    """What was done, or in a dry run would be: `record` is the content of `conversion.json`."""

    path: Path
    record: dict[str, Any]
    notes: list[str]
    written: bool


@dataclass
class _File:
    """A safetensors file in the making: which source tensors go into it, under which keys."""

    name: str
    metadata: dict[str, str] | None
    parts: list[tuple[LazyTensor, tuple[str, ...]]] = field(default_factory=list)
    layout: Layout = field(init=False)

    def plan(self) -> None:
        self.layout = lay_out_file((entry for tensor, keys in self.parts for entry in split(tensor, keys)), self.metadata)

    def deliveries(self, fd: int) -> list[Delivery]:
        return [Delivery(tensor, [Output(e.key, e.dtype, e.nbytes, fd, self.layout.starts[e.key]) for e in split(tensor, keys)])
                for tensor, keys in self.parts]


def split(tensor: LazyTensor, keys: tuple[str, ...]) -> list[Entry]:
    """What a tensor becomes: itself under one key, or equal parts of its first axis under several."""
    if len(keys) == 1:
        return [Entry(keys[0], tensor.dtype, tensor.shape)]
    return [Entry(key, tensor.dtype, (tensor.shape[0] // len(keys), *tensor.shape[1:])) for key in keys]


def convert(
    orig_ckpt_path: str | os.PathLike[str],
    dump_path: str | os.PathLike[str],
    *,
    weights: str | None = None,
    family: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    allow_nonfinite: bool = False,
    progress: Callable[[int], Progress] | None = None,
    **given: Any,
) -> Conversion:
    """Convert a checkpoint to the diffusers layout.

    Args:
        orig_ckpt_path: any accepted file or folder.
        dump_path: the folder to make; it appears whole or not at all.
        weights: 'raw' or 'ema' where the file holds both (default: raw).
        family: insist on a model family instead of recognising it.
        overwrite: replace a folder that an earlier conversion wrote.
        dry_run: plan, and write nothing.
        allow_nonfinite: let NaN and infinity through, bit for bit.
        progress: called with the number of bytes to come; returns what is called with each count of bytes done.
        given: hyper-parameters by flag name, such as `num_attention_heads=16`, for what the file cannot show.

    Returns: a `Conversion`.

    Raises: `InputError` (exit code 3) for a file that is refused, `UsageError` (2) for a call that is.

    Example:
        >>> done = convert("fixtures/golden/sigma-ms.pth", tmp / "out", num_attention_heads=4)
        >>> sorted(p.name for p in done.path.rglob("*.*"))
        ['config.json', 'conversion.json', 'diffusion_pytorch_model.safetensors', 'original_extras.safetensors']
    """
    source, target = Path(orig_ckpt_path), Path(dump_path)
    target = check_target(target, source, overwrite=overwrite, allowed=_ours)
    with open_checkpoint(source, weights) as checkpoint:
        looked = survey(checkpoint, given, family)
        maker = looked.require()
        config = maker.config(looked.found)
        notes = [*_notes(checkpoint, looked), *(f"{printable(path)} is left from an interrupted run: delete it" for path in leftovers(target))]
        model = _File(f"{maker.subfolder}/{WEIGHTS}", {"format": "pt"})
        extras = _File(EXTRAS, None)
        rows = _fill(looked, model, extras, notes)
        files = [f for f in (model, extras) if f.parts]
        for file in files:
            file.plan()
        record = report(looked) | {"tool": {"name": "convert-pixart", "version": __version__}, "notes": notes, "plan": rows}
        if dry_run:
            return Conversion(target, record, notes, False)
        config_text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        needed = sum(f.layout.size for f in files) + len(config_text) + (1 << 20)
        with Publication(target, needed_bytes=needed, overwrite=overwrite, allowed=_ours) as out:
            digests = _write(out, checkpoint, files, rows, allow_nonfinite, notes, progress)
            config_name = f"{maker.subfolder}/config.json"
            out.write_text(config_name, config_text)
            digests[config_name] = {"size": len(config_text), "sha256": hashlib.sha256(config_text.encode()).hexdigest()}
            record["written"] = digests
            out.write_text(RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
            out.publish()
        return Conversion(target, record, notes, True)


def _notes(checkpoint: Checkpoint, looked: Survey) -> list[str]:
    notes = list(looked.found.notes)
    chosen = checkpoint.selected
    other = [c for c in checkpoint.candidates if c is not chosen]
    if other and checkpoint.asked is None:
        notes.append(f"took the {chosen.weights} weights ({chosen.where}); {other[0].weights.upper()} weights are there too: choose them with --weights {other[0].weights}")
    notes += [f"the file asks to import {name}, which can run code in other readers; nothing of it ran here" for name, danger in checkpoint.foreign if danger]
    return notes


def _fill(looked: Survey, model: _File, extras: _File, notes: list[str]) -> list[dict[str, Any]]:
    """Assign every source tensor to a file, or to nothing with the reason; returns the rows of the record."""
    checkpoint, plan, rows = looked.checkpoint, looked.plan, []
    storages: dict[tuple[int, tuple[int, int]], str] = {}
    for key, tensor in checkpoint.items():
        twin = storages.setdefault((id(tensor.storage), tensor.span), key)
        if twin != key and tensor.nbytes:
            notes.append(f"{printable(key)} and {printable(twin)} share one storage: each gets its own copy")
    targets = {move.sources[0]: move.targets for move in plan.moves}
    for key, tensor in checkpoint.items():
        row = {"source": key, "dtype": tensor.dtype.name, "shape": list(tensor.shape)}
        if key in targets:
            model.parts.append((tensor, targets[key]))
            row |= {"operation": "split" if len(targets[key]) > 1 else "rename", "targets": list(targets[key])}
        elif key in plan.computed:
            kept, compared = _recompute(looked, key, tensor)
            row |= {"operation": "recompute", "sha256": compared.sha256, "reproduced": compared.equal}
            if kept:
                notes.append(kept)
                extras.parts.append((tensor, (key,)))
                row["sidecar"] = key
        else:
            extras.parts.append((tensor, (plan.extras[key],)))
            row |= {"operation": "sidecar", "sidecar": plan.extras[key]}
        rows.append(row)
    return rows


def _recompute(looked: Survey, key: str, tensor: LazyTensor) -> tuple[str, Comparison]:
    """(why the stored buffer has to be kept, '' where recomputing gives it; the comparison)."""
    family = looked.require()
    compared = compare(tensor, looked.plan.computed[key].value.function(looked.found))  # type: ignore[union-attr]
    if compared.equal:
        return "", compared
    reason = family.unreproduced(looked.found, compared.difference)
    if reason.startswith("refused: "):
        raise tensor.storage.file.error(key, reason.removeprefix("refused: "))
    return f"{printable(key)} {reason}: kept in {EXTRAS}", compared


def _write(out: Publication, checkpoint: Checkpoint, files: list[_File], rows: list[dict[str, Any]], allow_nonfinite: bool,
           notes: list[str], progress: Callable[[int], Progress] | None) -> dict[str, Any]:
    """Write the tensor files, read them back, and say what was written; fills the digests of the rows."""
    step = progress(2 * sum(f.layout.size for f in files)) if progress else lambda count: None
    deliveries: list[Delivery] = []
    fds = []
    try:
        for file in files:
            fd = out.create(file.name)
            fds.append(fd)
            write_at(fd, file.layout.header, 0)
            os.ftruncate(fd, file.layout.size)
            deliveries += file.deliveries(fd)
        transfer(deliveries, step)
        outputs = [output for delivery in deliveries for output in delivery.outputs]
        _check_finite(checkpoint, outputs, allow_nonfinite, notes)
        # Flushing waits for the disk and reading back for the processor: side by side.
        with _flushing(fds):
            for file, fd in zip(files, fds, strict=True):
                digests = {o.key: o.sha256 for o in outputs if o.fd == fd}
                _read_back(out.path / file.name, file, digests, step)
    finally:
        for fd in fds:
            os.close(fd)
    by_source = {delivery.tensor.key: delivery for delivery in deliveries}
    for row in rows:
        delivery = by_source.get(row["source"])
        if delivery:
            row["sha256"] = delivery.sha256
            if "targets" in row:
                row["targets"] = {o.key: o.sha256 for o in delivery.outputs}
    return {file.name: {"size": file.layout.size, "header_sha256": hashlib.sha256(file.layout.header).hexdigest()} for file in files}


def _check_finite(checkpoint: Checkpoint, outputs: list[Output], allowed: bool, notes: list[str]) -> None:
    bad = {output.key: output.nonfinite for output in outputs if output.nonfinite}
    if bad:
        what = f"{sum(bad.values())} elements are NaN or infinite, in {', '.join(fold(bad)[:6])}"
        if not allowed:
            raise InputError(f"{printable(checkpoint.path)}: {what}; --allow_nonfinite converts them as they are")
        notes.append(f"{what}: converted as they are")


def _read_back(path: Path, file: _File, digests: dict[str, str], step: Progress) -> None:
    """Open what was written as a stranger would, and compare keys, dtypes, shapes and bytes."""
    with open_checkpoint(path) as written:
        wanted = {e.key: (e.dtype, e.shape) for tensor, keys in file.parts for e in split(tensor, keys)}
        tensors = dict(written.selected.tensors)
        wrong = [key for key in wanted if key not in tensors or (tensors[key].dtype, tensors[key].shape) != wanted[key]]
        wrong += [key for key in tensors if key not in wanted]
        wrong = wrong or verify(tensors, digests, step)
    if wrong:
        raise ConverterError(f"{printable(path)}: what was read back is not what was written (a faulty disk?): {', '.join(fold(wrong)[:6])}")


@contextmanager
def _flushing(fds: list[int]) -> Iterator[None]:
    """Flush files to disk on another thread while the block runs; a failure to flush is raised at its end."""
    failures: list[OSError] = []

    def flush() -> None:
        try:
            for fd in fds:
                os.fsync(fd)
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=flush)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if failures:
        raise UsageError(f"the result cannot be written to disk: {failures[0].strerror}")
