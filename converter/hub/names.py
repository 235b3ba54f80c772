"""What the hub's names look like: `hf://OWNER/NAME[@REVISION][/PATH]`, or just OWNER/NAME."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from ..checkpoint.weight_names import SUFFIXES
from ..errors import InputError, UsageError, printable

FORM = "hf://OWNER/NAME[@REVISION][/FILE]"
# Of the revisions with a slash, the hub's own client spells these as they are; in others the slash is %2F.
_PLACE = re.compile(
    r"(?:models/)?(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:pr/\d+|convert/[^/]+)|[^/]+))?(?:/(?P<path>.*))?",
    re.DOTALL,
)
# What is no name everywhere: control characters, halves of characters, Windows' separator and drives.
_ODD = re.compile(r"[\x00-\x1f\x7f-\x9f\\\ud800-\udfff]|(?:^|/)[A-Za-z]:")
_OTHERS = {"datasets": "a data set", "spaces": "a space", "kernels": "a kernel", "buckets": "a bucket"}


@dataclass(frozen=True)
class Place:
    """A place on the hub. `asked` is how the user spelled it; an empty `path` is the whole repository."""

    asked: str
    repo: str
    revision: str | None = None
    path: str = ""


def place_of(text: str) -> Place | None:
    """The place on the hub that a text names; None for a path on this machine, which wins if something is there.

    Raises: `UsageError` for an `hf://` that is misspelt, `InputError` for what may be meant either way.

    >>> place_of("hf://owner/name@v1/epoch_5.pth")
    Place(asked='hf://owner/name@v1/epoch_5.pth', repo='owner/name', revision='v1', path='epoch_5.pth')
    >>> place_of("runs/epoch_5.pth")
    """
    if os.path.lexists(text):
        return None
    # A `Path` has made one slash of two.
    if spelled := re.match("hf:/{1,2}", text):
        return _parsed(text, text[spelled.end() :])
    if text.count("/") != 1 or text.lower().endswith(SUFFIXES) or not valid(text):
        return None
    if os.path.isdir(os.path.dirname(text)):
        # A slip in a path is likelier, and must not fetch what somebody keeps under that name on the hub.
        raise InputError.at(text, "", f"no such file or folder here (on the hub, that would be hf://{text})")
    return Place(text, text)


def _parsed(asked: str, rest: str) -> Place:
    from urllib.parse import unquote

    kind = rest.partition("/")[0]
    if kind in _OTHERS:
        raise UsageError(f"{printable(asked)}: {_OTHERS[kind]} on the hub; only model repositories are read")
    found = _PLACE.fullmatch(rest)
    path = (found["path"] or "").removesuffix("/") if found else ""
    revision = unquote(found["revision"]) if found and found["revision"] else None
    # Both become paths in the cache.
    odd = any(part and not inside(part) for part in (path, revision))
    if not found or not valid(found["repo"]) or odd:
        raise UsageError(f"{printable(asked)}: not a place on the hub: {FORM}")
    return Place(asked, found["repo"], revision, path)


def inside(name: str) -> bool:
    """Whether a path in a repository, or in a folder, stays inside it, on any system, and is plain text.

    >>> inside("transformer/config.json"), inside("../x"), inside("/x"), inside("C:/x"), inside("..\\\\x")
    (True, False, False, False, False)
    """
    return not {"", ".", ".."} & {*name.split("/")} and not _ODD.search(name)


def valid(repo: str) -> bool:
    """Whether the hub could have a repository of that name, OWNER/NAME or NAME."""
    if not re.fullmatch(r"[\w./-]+", repo, re.ASCII):
        return False
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError:
        return False
    return True
