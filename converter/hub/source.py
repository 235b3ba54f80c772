"""Sources on the hub: what the reader needs is fetched into the hub's cache, once."""

from __future__ import annotations

import os
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint.json_file import read_json
from ..errors import InputError
from . import answers
from .client import failures, said, talking, unreachable
from .names import Place, place_of
from .selection import absent, choose


def local(path: str | os.PathLike[str], *, quiet: bool = False) -> Path:
    """Where a source lies on this machine: a local path as it is, one on the hub once it is fetched.

    Args:
        path: a path, and where nothing is there: `hf://OWNER/NAME`, with `@REVISION`, with `/FILE` or `/FOLDER`, or
            just OWNER/NAME (unless there is a folder OWNER here). Of a repository only what the reader needs is
            fetched: see `selection.choose`.
        quiet: no progress bars, which are shown on a terminal only anyway.

    Returns: the path, unchanged where it is not the hub's; of a repository a folder in the hub's cache, of a file (or
    of a repository that holds just one checkpoint) the file there. What is in the cache is not fetched again.

    Raises: `InputError` where there is no such thing or it cannot be had, `UsageError` for an `hf://` that is
    misspelt, `ConverterError` where the cache cannot be written.

    Example:
        >>> local("fixtures/golden/sigma-ms.pth").name
        'sigma-ms.pth'
    """
    place = place_of(os.fspath(path))
    if place is None:
        return Path(path)
    with talking(place.asked, quiet=quiet, before="not in the cache, and "):
        return _fetched(place)


@dataclass(frozen=True)
class _Snapshot:
    """One commit of a repository.

    Attributes:
        names: the files it holds; `whole`: whether these are all.
        fetch: what fetches one of them.
        remember: what lets the cache know, by way of one of them, that the revision asked for is this commit.
    """

    names: Set[str]
    whole: bool
    fetch: Callable[[str], Path]
    remember: Callable[[str], object]


def _fetched(place: Place) -> Path:
    snapshot = _snapshot(place)
    choice = choose(snapshot.names, place, whole=snapshot.whole)
    found = {name: snapshot.fetch(name) for name in choice.files}
    if choice.index:
        folder = choice.index[: choice.index.rfind("/") + 1]
        shards = [folder + shard for shard in _shards(found[choice.index])]
        for name in shards:
            if name not in snapshot.names:
                rule = f"the shard {said(name)} that the index names {absent(snapshot.whole)}"
                raise InputError.at(place.asked, choice.index, rule)
        for name in shards:
            snapshot.fetch(name)
    snapshot.remember(choice.files[0])
    if choice.result in found:
        return found[choice.result]
    name, path = next(iter(found.items()))
    return path.parents[name.count("/")] / choice.result


def _snapshot(place: Place) -> _Snapshot:
    """The repository at the revision asked for; where the hub cannot be asked, what is in the cache of it."""
    from huggingface_hub import HfApi, constants, hf_hub_download

    try:
        info = HfApi().model_info(place.repo, revision=place.revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except failures() as error:
        folder = _cached(place) if unreachable(error) else None
        if folder is None:
            raise
        names = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
        return _Snapshot(names, False, folder.joinpath, lambda name: None)

    commit = answers.commit(info.sha)

    def fetch(name: str) -> Path:
        path = Path(hf_hub_download(place.repo, name, revision=commit))
        # Where it lies is what the hub said when it was asked for the file: another commit would not fit the rest.
        answers.same_commit(commit, path.parents[name.count("/")].name)
        return path

    # Every file of the same commit, whatever is pushed meanwhile; of a commit, what is in the cache is not asked for.
    return _Snapshot(
        answers.names(info.siblings),
        True,
        fetch,
        lambda name: hf_hub_download(place.repo, name, revision=place.revision),
    )


def _cached(place: Place) -> Path | None:
    """The folder in the cache with what was fetched of that revision before, as far as it was."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(place.repo, revision=place.revision, allow_patterns=[], local_files_only=True)
    except LocalEntryNotFoundError:
        return None
    answers.commit(os.path.basename(folder))  # what an earlier answer left in the cache
    return Path(folder)


def _shards(index: Path) -> list[str]:
    """The names in an index of shards; whether it makes sense otherwise, the reader checks."""
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    return sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
