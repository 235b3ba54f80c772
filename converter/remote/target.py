"""A target in a store: written and proven on this machine, and then sent, complete or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..checkpoint.write.interrupt import signals_deferred
from ..errors import ConverterError, UsageError, plural
from ..filenames import RECORD
from .source import PIECE, Mirror, mirrored
from .store import Store, shown, version

PART = 32 << 20  # bytes of a part of an upload


def send(mirror: Mirror) -> str:
    """Put there what was written to the mirror's path; returns a note. Where this fails, what was sent is deleted.

    What is replaced stays until all is sent; then its record goes first, and the new one comes last: without it, what
    lies there is no conversion. What is killed before all was proven leaves a whole target, or one without a record.

    Raises: `UsageError` where the store does not let us write, `ConverterError` where it fails.
    """
    store, here, fs = mirror.store, mirror.path, mirror.store.fs
    before = {name: version(about) for name, about in mirror.files.items()}
    inside = [path for path in (here, *here.rglob("*")) if not path.is_dir()]
    inside.sort(key=lambda path: path == here / RECORD)
    files = {"/".join((store.path, *path.relative_to(here).parts)): path for path in inside}
    record, replacing = f"{store.path}/{RECORD}", False
    ours: dict[str, tuple[str, ...]] = {}  # that of another run, which came after, is not ours to delete
    if any(path.is_symlink() for path in inside):
        raise UsageError(f"{store}: no links can be sent there: use `components` copy")
    if {name: version(about) for name, about in store.files().items()} != before:
        raise UsageError(f"{store}: was changed by someone else in the meantime")
    with store.errors():
        before = {name: version(fs.info(name)) for name in before}  # which some stores put otherwise than a listing
    try:
        with store.errors("cannot be written: "):
            with fs.transaction:  # none appears before all are sent, and then in this order
                for name, path in files.items():
                    if not store.of_objects:
                        fs.makedirs(name.rpartition("/")[0], exist_ok=True)
                    with open(path, "rb") as file, fs.open(name, "wb", block_size=PART) as there:
                        shutil.copyfileobj(file, there, PART)
                replacing = record in before
                for name in (record, *(before.keys() - files.keys())) if replacing else ():
                    fs.rm_file(name)
            ours = {name: version(fs.info(name)) for name in files}
            proofs = {_prove(store.at(name), path) for name, path in files.items()}
    except BaseException:
        with signals_deferred:
            for name in sorted({*files, *(before if replacing else ())}, reverse=True):
                with suppress(Exception):  # the store is gone, or it was not yet there
                    now = version(fs.info(name))
                    if now == ours.get(name, now) and (replacing or now != before.get(name)):
                        fs.rm_file(name)
                with suppress(Exception):  # it is not empty
                    if name != store.path and not store.of_objects:
                        fs.rmdir(name.rpartition("/")[0])
        raise
    how = " and ".join(sorted(proofs))
    return f"{store}: {plural(len(files), 'file')} sent, what lies there proven by {how}"


def _prove(store: Store, path: Path) -> str:
    """Prove that what lies there is this file, by the MD5 of its parts' MD5s that S3 states, or else by reading it
    back; returns which. Raises: `ConverterError` where it is not."""
    about = store.fs.info(store.path)
    with open(path, "rb") as file:
        if about.get("ETag"):
            md5s = [hashlib.md5(part).digest() for part in iter(lambda: file.read(PART), b"")]
            if about["ETag"].strip('"') == f"{hashlib.md5(b''.join(md5s)).hexdigest()}-{len(md5s)}":
                return "the store's MD5"
        for start in range(0, max(about["size"], path.stat().st_size), PIECE):
            file.seek(start)
            if store.fs.cat_file(store.path, start=start, end=start + PIECE) != file.read(PIECE):
                raise ConverterError(f"{store}: what lies there is not what was sent")
    return "reading it back"


@contextmanager
def target_at(url: str, source: str | os.PathLike[str]) -> Iterator[Mirror]:
    """A target at a URL, of what is made of a `source`: at the mirror's path is seen what lies there already, and what
    is written there is for `send`.

    Raises: `UsageError` where nothing can be written there, `ConverterError` where the store cannot be reached. Errors
    in the block name the URL.
    """
    one, other = (f"{os.fspath(place)}/".replace("//", "/") for place in (source, url))
    if one.startswith(other) or other.startswith(one):
        raise UsageError(f"{shown(url)}: is the input, holds it, or lies inside it; name a place elsewhere")
    store = Store(url, target=True)
    files = store.files()
    if not files and store.of_objects:
        with store.errors("its bucket: "), suppress(PermissionError):  # of one who may only write
            store.fs.info(store.path.partition("/")[0])
    with mirrored(store, files) as mirror:
        yield mirror
