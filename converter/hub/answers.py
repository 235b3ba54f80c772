"""What a hub answers, checked before the client acts on it: it puts commits, ETags and file names into paths.

A mirror may say anything, and something else each time it is asked. So not only what we ask for is checked but every
response, in the HTTP library, before the client sees it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import contextmanager
from typing import Any

from ..errors import InputError, printable
from .names import inside
from .redaction import redacted, repeats_secret

_COMMIT = re.compile(r"[0-9a-f]{40}")
_CONTENT = r"[0-9a-f]{40}|[0-9a-f]{64}"  # of git, and of LFS
_ETAG = re.compile(rf'(?:W/)?(?:{_CONTENT}|"(?:{_CONTENT})")')
_XET = re.compile(r"[0-9a-fA-F]{64}")
_LONGEST = 1024


class Distrusted(InputError):
    """An answer that no hub gives."""


@contextmanager
def checked() -> Iterator[None]:
    """Around calls of the client: raises `InputError` where a response holds what no hub would say.

    The client is told by its own setting for that (its name is another one from version 1 on), which opens its
    connections anew: at its own retries too, as a hook on the connections that it has would not.
    """
    from huggingface_hub.utils import _http

    client: Any = _http
    if hasattr(client, "set_client_factory"):
        before, use = client._GLOBAL_CLIENT_FACTORY, client.set_client_factory
    else:
        before, use = client._GLOBAL_BACKEND_FACTORY, client.configure_http_backend
    use(lambda: _watched(before))
    try:
        yield
    finally:
        use(before)


def _watched(connect: Callable[[], Any]) -> Any:
    session = connect()
    if hasattr(session, "event_hooks"):  # httpx
        hooks = session.event_hooks
        session.event_hooks = {**hooks, "response": [*hooks.get("response", ()), _check]}
    else:  # requests
        session.hooks["response"].append(_check)
    return session


def _check(response: Any, *more: Any, **how: Any) -> None:
    headers = response.headers
    if (said := headers.get("X-Repo-Commit")) is not None:
        commit(said)
    if (said := headers.get("X-Xet-Hash")) is not None and not _XET.fullmatch(said):
        raise _refusal(f"the Xet hash {_shown(said)}, which is not 64 hex digits")
    if response.request.method == "HEAD" and response.status_code < 400:  # how the client asks for metadata
        said = headers.get("X-Linked-Etag") or headers.get("ETag")
        if said is not None and not _ETAG.fullmatch(said):
            raise _refusal(f"the ETag {_shown(said)}, which is not the 40 or 64 hex digits of a file's content")


def commit(said: object) -> str:
    """A commit as git spells it. Raises: `InputError` for anything else, above all what leads out of a folder.

    >>> commit("0" * 40) == "0" * 40
    True
    """
    if isinstance(said, str) and _COMMIT.fullmatch(said):
        return said
    raise _refusal(f"the commit {_shown(said)}, which is not 40 hex digits")


def names(siblings: Iterable[Any] | None) -> Set[str]:
    """The names of a repository's files. Raises: `InputError` where one is no plain relative path."""
    found = [sibling.rfilename for sibling in siblings or ()]
    for name in found:
        if not isinstance(name, str) or not inside(name) or len(name) > _LONGEST or repeats_secret(name):
            raise _refusal(f"a file {_shown(name)}, which is not a plain path in a repository")
    return {*found}


def same_commit(asked: str, answered: str) -> None:
    """Whether a file is of the commit that was asked for. Raises: `InputError`."""
    if answered != asked:
        raise _refusal(f"the commit {_shown(answered)}, where {asked} was asked for")


def same_repo(asked: str, answered: object) -> None:
    """Whether the hub speaks of the repository that it was asked for, be it without its owner. Raises: `InputError`."""
    told = str(answered) if "/" in asked else str(answered).rpartition("/")[2]
    if told.casefold() != asked.casefold():
        raise _refusal(f"the repository {_shown(answered)}, where {printable(asked)} was asked for")


def _shown(said: object) -> str:
    return f"'{printable(redacted(said), 80)}'" if said is not None else "(none)"


def _refusal(what: str) -> Distrusted:
    return Distrusted(f"the hub's answer is not to be trusted, and nothing of it is kept: it names {what}")
