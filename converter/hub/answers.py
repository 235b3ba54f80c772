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
from .names import stays_inside
from .redaction import redacted, repeats_secret

_COMMIT = re.compile(r"[0-9a-f]{40}")
_CONTENT = r"[0-9a-f]{40}|[0-9a-f]{64}"  # of git, and of LFS
_ETAG = re.compile(rf'(?:W/)?(?:{_CONTENT}|"(?:{_CONTENT})")')
_XET = re.compile(r"[0-9a-fA-F]{64}")
_LONGEST_NAME = 1024


class UntrustedAnswer(InputError):
    """An answer that no hub gives."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"the hub's answer cannot be trusted, and nothing of it is kept: it names {problem}")


@contextmanager
def responses_checked() -> Iterator[None]:
    """Around calls of the client: raises `UntrustedAnswer` where a response holds what no hub would say.

    Set as the factory of the client's connections (called otherwise from version 1 on), which opens them anew, at
    retries too; a hook on the connections that it has would miss those.
    """
    from huggingface_hub.utils import _http

    http: Any = _http
    if hasattr(http, "set_client_factory"):
        before, use = http._GLOBAL_CLIENT_FACTORY, http.set_client_factory
    else:
        before, use = http._GLOBAL_BACKEND_FACTORY, http.configure_http_backend
    use(lambda: _with_hook(before))
    try:
        yield
    finally:
        use(before)


def _with_hook(connect: Callable[[], Any]) -> Any:
    session = connect()
    if hasattr(session, "event_hooks"):  # httpx
        hooks = session.event_hooks
        session.event_hooks = {**hooks, "response": [*hooks.get("response", ()), _check_response]}
    else:  # requests
        session.hooks["response"].append(_check_response)
    return session


def _check_response(response: Any, *more: Any, **options: Any) -> None:
    headers = response.headers
    if (sha := headers.get("X-Repo-Commit")) is not None:
        checked_commit(sha)
    if (xet := headers.get("X-Xet-Hash")) is not None and not _XET.fullmatch(xet):
        raise UntrustedAnswer(f"the Xet hash {_quoted(xet)}, which is not 64 hex digits")
    if response.request.method == "HEAD" and response.status_code < 400:  # how the client asks for metadata
        etag = headers.get("X-Linked-Etag") or headers.get("ETag")
        if etag is not None and not _ETAG.fullmatch(etag):
            raise UntrustedAnswer(f"the ETag {_quoted(etag)}, which is not the 40 or 64 hex digits of a file's content")


def checked_commit(sha: object) -> str:
    """A commit as git spells it. Raises: `UntrustedAnswer` for anything else, above all what leads out of a folder.

    >>> checked_commit("0" * 40) == "0" * 40
    True
    """
    if isinstance(sha, str) and _COMMIT.fullmatch(sha):
        return sha
    raise UntrustedAnswer(f"the commit {_quoted(sha)}, which is not 40 hex digits")


def checked_names(siblings: Iterable[Any] | None) -> Set[str]:
    """The names of a repository's files. Raises: `UntrustedAnswer` where one is no plain relative path."""
    names = [sibling.rfilename for sibling in siblings or ()]
    for name in names:
        plain = isinstance(name, str) and stays_inside(name) and len(name) <= _LONGEST_NAME
        if not plain or repeats_secret(name):
            raise UntrustedAnswer(f"a file {_quoted(name)}, which is not a plain path in a repository")
    return {*names}


def check_same_commit(requested: str, answered: str) -> None:
    """Raises: `UntrustedAnswer` for a file of another commit than was asked for."""
    if answered != requested:
        raise UntrustedAnswer(f"the commit {_quoted(answered)}, where {requested} was asked for")


def check_same_repo(requested: str, answered: object) -> None:
    """Raises: `UntrustedAnswer` for another repository than was asked for, with or without its owner."""
    name = str(answered) if "/" in requested else str(answered).rpartition("/")[2]
    if name.casefold() != requested.casefold():
        raise UntrustedAnswer(f"the repository {_quoted(answered)}, where {printable(requested)} was asked for")


def _quoted(answer: object) -> str:
    return f"'{printable(redacted(answer), 80)}'" if answer is not None else "(none)"
