"""Publishing a conversion on the hub: what the record lists, the record, and a model card, in one commit."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from .._version import __version__
from ..checkpoint.folders.folder import CONFIG, read_config
from ..checkpoint.json_file import read_json
from ..errors import ConverterError, InputError, UsageError, printable
from ..filenames import PARITY, RECORD, TOOL
from ..hub import answers
from ..hub.client import LOGIN, said, talking
from ..hub.names import place_of, valid
from ..reports.published import without_paths
from .target import CARD, listed, target


@dataclass(frozen=True)
class Pushed:
    """What was published: the `url` of its page, the `commit` (a URL too), the `files`, and what to know of it."""

    url: str
    commit: str
    files: list[str]
    notes: list[str]

    def __str__(self) -> str:
        return self.url


def check(repo_id: str) -> None:
    """Whether a push could succeed, as far as that can be told: asked before any long work.

    Raises: `UsageError` for a name that cannot be, without a token that may write, or where the hub is out of reach.
    """
    from huggingface_hub import HfApi, get_token

    _check_name(repo_id)
    with talking(repo_id, refusal=UsageError, failure=UsageError):
        if not get_token():
            raise UsageError(f"{printable(repo_id)}: publishing on the hub takes a token: {LOGIN}")
        whoami = HfApi().whoami()
        if whoami.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise UsageError(f"{printable(repo_id)}: the token may only read: one that may write is needed")


def push(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str = "",
    source: str | None = None,
    quiet: bool = False,
) -> Pushed:
    """Publish what a conversion made as a model repository on the hub, in one commit.

    What our record lists is published, the record, `parity.json` if there is one (without its paths and command), and
    a model card; nothing else that may lie in the folder, and nothing that is only a link to elsewhere. What an earlier
    push wrote and this one does not replace is deleted. A card that a person wrote is kept.

    Args:
        folder: what a conversion made.
        repo_id: OWNER/NAME, or NAME of your own; it is made where there is none.
        private: whether only you can see it. Default: as the hub has it.
        revision: the branch, made where there is none. Default: the main one.
        message: of the commit; by default it says what was converted.
        source: how the source was named; a place on the hub is told in the card, a path is nobody's business.
        quiet: no progress bars, which are shown on a terminal only anyway.

    Returns: `Pushed`; as a string it is the URL.

    Raises: `UsageError` where the hub or what lies there stands against it, `InputError` where the folder does not
    hold what its record says, or the hub's answers are not to be trusted, `ConverterError` where the hub cannot be
    reached or breaks off. The repository is then as it was, or new and empty.
    """
    from urllib.parse import quote

    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    _check_name(repo_id)
    record, contents = _made(folder)
    parity = _parity(folder, contents)
    if parity is not None:
        contents[PARITY] = (json.dumps(parity, indent=1, sort_keys=True) + "\n").encode()
    words = partial(_card, folder, record, parity, source=source, revision=revision)
    words(repo_id)  # once before anything is published: what cannot be told stops here
    named = source if source and place_of(source) else record["source"]["name"]
    with talking(repo_id, quiet=quiet, refusal=UsageError, failure=ConverterError):
        api = HfApi()
        page = api.create_repo(repo_id, private=private, exist_ok=True)
        answers.same_repo(repo_id, page.repo_id)
        if revision:
            api.create_branch(page.repo_id, branch=revision, exist_ok=True)
        there = target(page.repo_id, revision)
        there.check(contents, private)
        notes = []
        if there.has_other_card:
            notes.append(f"{CARD} in {page.repo_id} is not of this tool's making: it is kept as it is")
        else:
            contents[CARD] = words(page.repo_id).encode()
        done = api.create_commit(
            page.repo_id,
            [CommitOperationAdd(name, content) for name, content in contents.items()]
            + [CommitOperationDelete(name) for name in sorted(there.stale(contents))],
            commit_message=message or f"{named}, converted by {TOOL} {__version__}",
            revision=revision,
            parent_commit=there.commit,
        )
        _arrived(page.repo_id, contents, answers.commit(done.oid))
    branch = f"/tree/{quote(revision, safe='')}" if revision else ""
    return Pushed(f"{said(page)}{branch}", said(done.commit_url), [*contents], notes)


def _check_name(repo_id: str) -> None:
    if not valid(repo_id):
        raise UsageError(f"{printable(repo_id)}: not a name that the hub allows: OWNER/NAME")


def _made(folder: Path) -> tuple[dict[str, Any], dict[str, Path | bytes]]:
    """The record of a conversion, and what is to be published under which name."""
    from ..parity.digests import sha256

    _own(folder, RECORD)
    record = read_json(folder / RECORD)
    written = listed(record)
    if not written:
        raise InputError.at(folder / RECORD, "", "not the record of a conversion by this tool")
    for name, about in written.items():
        path = _own(folder, name)
        as_written = path.is_file() and path.stat().st_size == about["size"]
        if not as_written or ("sha256" in about and about["sha256"] != sha256(path)):
            raise InputError.at(path, "", f"missing, or not what {RECORD} says was written")
    return record, {name: folder / name for name in [*written, RECORD]}


def _own(folder: Path, name: str) -> Path:
    """Where a file of a folder lies, which has to be in it.

    Raises: `InputError` for a symbolic link, be it a folder on the way: what it leads to is not of the conversion's
    making, and may be nobody's business.
    """
    path = folder
    for part in PurePosixPath(name).parts:
        path /= part
        if path.is_symlink():
            raise InputError.at(path, "", "a symbolic link, which is not published: put the file itself in its place")
    return path


def _parity(folder: Path, files: Collection[str]) -> dict[str, Any] | None:
    """The content of `parity.json`, if there is one, fit to be published: it has to be of these very files."""
    from ..parity.digests import sha256

    if not _own(folder, PARITY).exists():
        return None
    parity: dict[str, Any] = read_json(folder / PARITY)
    try:
        compared = {name: about["sha256"] for name, about in parity["converted"]["files"].items()}
        ours = RECORD in compared and compared.keys() <= {*files}
        if ours and all(sha256(folder / name) == digest for name, digest in compared.items()):
            # What differs between two runs: the date may be told, the paths and the command are nobody's business.
            run = {name: parity["run"][name] for name in ("date", "seconds")}
            paths = [folder, *(parity["run"].get(name, "") for name in ("original", "converted"))]
            return without_paths(parity | {"run": run}, paths)
    except (TypeError, KeyError, AttributeError):
        pass
    raise InputError.at(folder / PARITY, "", "not of this conversion: compare again, or delete it")


def _card(
    folder: Path,
    record: dict[str, Any],
    parity: dict[str, Any] | None,
    repo: str,
    *,
    source: str | None,
    revision: str | None,
) -> str:
    from .card import card

    try:
        config = next((name for name in record["written"] if PurePosixPath(name).name == CONFIG), "")
        kind = read_config((folder / config).parent).get("_class_name") if config else None
        return card(record, parity, repo=repo, source=source, revision=revision, class_name=kind, paths=[folder])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        names = f"{RECORD} or {PARITY}" if parity else RECORD
        raise InputError.at(folder, names, f"not as this tool writes it ({type(error).__name__})") from error


def _arrived(repo: str, contents: dict[str, Path | bytes], commit: str) -> None:
    """Whether every file is in the commit: what a .gitignore there names is left out without a word."""
    from huggingface_hub import HfApi

    sizes = {name: len(c) if isinstance(c, bytes) else c.stat().st_size for name, c in contents.items()}
    found = {info.path: getattr(info, "size", None) for info in HfApi().get_paths_info(repo, [*sizes], revision=commit)}
    if lost := [name for name, size in sizes.items() if found.get(name) != size]:
        raise UsageError(f"{printable(repo)}: published, but without {', '.join(lost[:4])} (a .gitignore there?)")
