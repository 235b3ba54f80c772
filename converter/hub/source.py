"""Sources on the hub: what the reader needs is fetched into the hub's cache, once."""

from __future__ import annotations

import os
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint.json_file import read_json
from ..errors import InputError
from . import answers
from .client import client_errors, hub_calls, one_line, unreachable
from .names import HubPath, hub_path
from .selection import absent, component_files, select


def local(path: str | os.PathLike[str], *, quiet: bool = False) -> Path:
    """Where a source lies on this machine: a local path as it is, one on the hub once it is fetched.

    Args:
        path: a path, and where nothing is there: `hf://OWNER/NAME`, with `@REVISION`, with `/FILE` or `/FOLDER`, or
            just OWNER/NAME (unless there is a folder OWNER here). Of a repository only what the reader needs is
            fetched: see `selection.select`.
        quiet: no progress bars, which are shown on a terminal only anyway.

    Returns: the path, unchanged where it is not the hub's; of a repository a folder in the hub's cache, of a file (or
    of a repository that holds just one checkpoint) the file there. What is in the cache is not fetched again.

    Raises: `InputError` where there is no such thing or it cannot be had, `UsageError` for an `hf://` that is
    misspelt, `ConverterError` where the cache cannot be written.

    Example:
        >>> local("fixtures/golden/sigma-ms.pth").name
        'sigma-ms.pth'
    """
    wanted = hub_path(os.fspath(path))
    if wanted is None:
        return Path(path)
    with hub_calls(wanted.text, quiet=quiet, before="not in the cache, and "):
        return _fetched(wanted)


def local_component(path: str | os.PathLike[str], part: str, *, quiet: bool = False) -> Path:
    """Where the folder of a pipeline's component lies on this machine, once it is fetched if it is on the hub.

    Args:
        path: a path, or a place on the hub, as of `local`: the component's own, or a pipeline's.
        part: the component's name, such as "vae", which is its subfolder in a pipeline.
        quiet: no progress bars.

    Returns: the path, unchanged where it is not the hub's; else a folder in the hub's cache that holds the files of
    this component (`selection.component_files`).

    Raises: as `local` does.

    Example:
        >>> local_component("fixtures/golden", "vae").name
        'golden'
    """
    wanted = hub_path(os.fspath(path))
    if wanted is None:
        return Path(path)
    with hub_calls(wanted.text, quiet=quiet, before="not in the cache, and "):
        snapshot = _snapshot(wanted)
        root = f"{wanted.path}/" if wanted.path else ""
        inner = f"{root}{part}/"
        folder = inner if any(name.startswith(inner) for name in snapshot.names) else root
        names = {name.removeprefix(folder) for name in snapshot.names if name.startswith(folder)}
        try:
            files, index = component_files({name for name in names if "/" not in name}, part)
        except ValueError as error:
            raise InputError.at(wanted.text, folder, str(error)) from None
        if not files:
            rule = f"what a {part} consists of {absent(not snapshot.folder)}"
            raise InputError.at(wanted.text, folder, rule)
        paths = {name: snapshot.fetch(folder + name) for name in files}
        for shard in _shards(paths[index]) if index else ():
            if folder + shard in snapshot.names:  # else the reader says that it is missing
                snapshot.fetch(folder + shard)
        snapshot.record_revision(folder + files[0])
        return paths[files[0]].parent


def _fetched(wanted: HubPath) -> Path:
    snapshot = _snapshot(wanted)
    selection = select(snapshot.names, wanted, complete=not snapshot.folder)
    paths = {name: snapshot.fetch(name) for name in selection.files}
    if selection.index:
        folder = selection.index[: selection.index.rfind("/") + 1]
        shards = [folder + shard for shard in _shards(paths[selection.index])]
        for name in shards:
            if name not in snapshot.names:
                rule = f"the shard {one_line(name)} that the index names {absent(not snapshot.folder)}"
                raise InputError.at(wanted.text, selection.index, rule)
        for name in shards:
            snapshot.fetch(name)
    snapshot.record_revision(selection.files[0])
    if selection.result in paths:
        return paths[selection.result]
    name, path = next(iter(paths.items()))
    return path.parents[name.count("/")] / selection.result


@dataclass(frozen=True)
class _Snapshot:
    """A repository at the revision asked for: its `names` at a `commit` of the hub; or where the hub is out of reach,
    those in the `folder` of the cache."""

    wanted: HubPath
    names: Set[str]
    commit: str = ""
    folder: Path | None = None

    def fetch(self, name: str) -> Path:
        """A file of this commit, whatever is pushed meanwhile; what is in the cache of a commit is not asked for."""
        from huggingface_hub import hf_hub_download

        if self.folder:
            return self.folder / name
        path = Path(hf_hub_download(self.wanted.repo, name, revision=self.commit))
        # Where it lies is what the hub said when it was asked for the file: another commit would not fit the rest.
        answers.check_same_commit(self.commit, path.parents[name.count("/")].name)
        return path

    def record_revision(self, name: str) -> None:
        """Let the cache know, by way of one file, that the revision asked for is this commit."""
        from huggingface_hub import hf_hub_download

        if not self.folder:
            hf_hub_download(self.wanted.repo, name, revision=self.wanted.revision)


def _snapshot(wanted: HubPath) -> _Snapshot:
    from huggingface_hub import HfApi, constants

    try:
        info = HfApi().model_info(wanted.repo, revision=wanted.revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except client_errors() as error:
        folder = _cached(wanted) if unreachable(error) else None
        if folder is None:
            raise
        names = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
        return _Snapshot(wanted, names, folder=folder)
    commit = answers.checked_commit(info.sha)
    return _Snapshot(wanted, answers.checked_names(info.siblings), commit)


def _cached(wanted: HubPath) -> Path | None:
    """The folder in the cache with what was fetched of that revision so far."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(wanted.repo, revision=wanted.revision, allow_patterns=[], local_files_only=True)
    except LocalEntryNotFoundError:
        return None
    answers.checked_commit(os.path.basename(folder))  # what an earlier answer left in the cache
    return Path(folder)


def _shards(index: Path) -> list[str]:
    """The names in an index of shards; whether it makes sense otherwise, the reader checks."""
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    return sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
