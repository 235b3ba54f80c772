"""Names on the hub: `hf://OWNER/NAME[@REVISION][/PATH]`, or just OWNER/NAME."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from ..checkpoint.weight_names import SUFFIXES
from ..errors import InputError, UsageError, printable

FORM = "hf://OWNER/NAME[@REVISION][/FILE]"
# Of the revisions with a slash, the hub's own client spells these as they are; in others the slash is %2F.
_HUB_PATH = re.compile(
    r"(?:models/)?(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:pr/\d+|convert/[^/]+)|[^/]+))?(?:/(?P<path>.*))?",
    re.DOTALL,
)
# Control characters, unpaired surrogates, Windows' separator and drives.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\\\ud800-\udfff]|(?:^|/)[A-Za-z]:")
_OTHER_KINDS = {"datasets": "a data set", "spaces": "a space", "kernels": "a kernel", "buckets": "a bucket"}


@dataclass(frozen=True)
class HubPath:
    """A repository on the hub, or a file or folder in it.

    Attributes:
        text: as the user wrote it.
        repo: OWNER/NAME.
        revision: None for the main branch.
        path: '' for the whole repository.
    """

    text: str
    repo: str
    revision: str | None = None
    path: str = ""


def hub_path(text: str) -> HubPath | None:
    """What a text names on the hub; None for a path on this machine, which wins if something is there.

    Raises: `UsageError` for an `hf://` that is misspelt, `InputError` for what may be meant either way.

    >>> hub_path("hf://owner/name@v1/epoch_5.pth")
    HubPath(text='hf://owner/name@v1/epoch_5.pth', repo='owner/name', revision='v1', path='epoch_5.pth')
    >>> hub_path("runs/epoch_5.pth")
    """
    if os.path.lexists(text):
        return None
    # A `Path` has made one slash of two; on Windows, backslashes of all.
    if scheme := re.match(r"hf:(/{1,2}|\\)", text):
        rest = text[scheme.end() :]
        return _parse(text, rest if scheme[1].startswith("/") else rest.replace("\\", "/"))
    if text.count("/") != 1 or text.lower().endswith(SUFFIXES) or not is_repo_id(text):
        return None
    if os.path.isdir(os.path.dirname(text)):
        # A slip in a path is likelier, and must not fetch what somebody keeps under that name on the hub.
        raise InputError.at(text, "", f"no such file or folder here (on the hub, that would be hf://{text})")
    return HubPath(text, text)


def _parse(text: str, rest: str) -> HubPath:
    """What comes after `hf://`. (The client parses it too, but not in all versions that we support.)"""
    from urllib.parse import unquote

    if kind := _OTHER_KINDS.get(rest.partition("/")[0]):
        raise UsageError(f"{printable(text)}: {kind} on the hub; only model repositories are read")
    match = _HUB_PATH.fullmatch(rest)
    if match and is_repo_id(match["repo"]):
        path, revision = (match["path"] or "").removesuffix("/"), unquote(match["revision"] or "")
        if all(stays_inside(part) for part in (path, revision) if part):  # both become paths in the cache
            return HubPath(text, match["repo"], revision or None, path)
    raise UsageError(f"{printable(text)}: not a place on the hub: {FORM}")


def stays_inside(name: str) -> bool:
    """Whether a path in a repository, or in a folder, stays inside it, on any system, and is plain text.

    >>> [stays_inside(name) for name in ("transformer/config.json", "../x", "/x", "C:/x", "..\\\\x")]
    [True, False, False, False, False]
    """
    return not {"", ".", ".."} & {*name.split("/")} and not _UNSAFE.search(name)


def is_repo_id(text: str) -> bool:
    """Whether the hub could have a repository of that name, OWNER/NAME or NAME."""
    if not re.fullmatch(r"[\w./-]+", text, re.ASCII):
        return False
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True
