"""A place in a store, by its URL, and what a store says when something goes wrong, in one line without credentials."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import copy
from typing import Any, TypeGuard

from ..checkpoint.folder import CONFIG
from ..errors import ConverterError, InputError, UsageError, printable, require
from ..filenames import RECORD
from ..hub.redaction import redacted

# Stores of objects, where a folder is but a part of a name.
OF_OBJECTS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci", "tos"}
_S3 = {"config_kwargs": {"connect_timeout": 5, "retries": {"total_max_attempts": 3}}}
# What the names of errors tell: (pattern, in words, whether it is the call that is wrong, and not the store).
_ERRORS = (
    ("Credential|ProfileNotFound|RefreshError", "no credentials: set them as the store's own client takes them", True),
    ("PermissionError", "the store allows no access with these credentials, if there are any", True),
    ("FileExistsError", "a file there has the name of a folder, or the reverse", True),
    ("FileNotFoundError", "no such file, folder or bucket", True),
    ("Connect|Timeout|Endpoint|SSLError|gaierror", "the store cannot be reached", False),
    ("ImportError|ValueError|NotImplementedError", "no store can be used like that", True),
    ("", "the store failed", False),
)


def is_url(path: object) -> TypeGuard[str]:
    """Whether it is a text that names a place in a store, `scheme://...`; the hub's `hf://` is none."""
    return isinstance(path, str) and re.match(r"(?!hf:)[A-Za-z][A-Za-z0-9+.:-]+://", path) is not None


def shown(url: str) -> str:
    """A URL to be printed: without logins, and without parameters that are secret."""
    return printable(redacted(url))


class Store:
    """A place in a store: its `url`, the `path` by which fsspec's file system for it knows it, and that, `fs`. Nothing
    is asked of it yet. Raises: as `errors` does."""

    def __init__(self, url: str, *, target: bool = False) -> None:
        require("a URL", "fsspec", extra="remote")
        from fsspec.core import url_to_fs

        self.url, self._target = url, target
        self.of_objects = url.partition("://")[0] in OF_OBJECTS
        with self.errors():
            if ".." in url.split("/") or "::" in url:
                raise ValueError("a URL names one place, without '..' and '::'")
            # No instance of earlier: credentials may have changed since, and what a folder holds.
            how = {"skip_instance_cache": True, "use_listings_cache": False}
            self.fs, self.path = url_to_fs(url, **how, **(_S3 if url.startswith("s3") else {}))

    def __str__(self) -> str:
        return shown(self.url)

    @contextmanager
    def errors(self, what: str = "") -> Iterator[None]:
        """Turn whatever the store, or its client, raises into one line about the URL, with `what` was to be done: of a
        source an `InputError`; of a target a `UsageError` where the call is wrong, else a `ConverterError`."""
        try:
            yield
        except ConverterError:
            raise
        except Exception as error:
            kinds = " ".join(kind.__name__ for kind in type(error).__mro__)
            words, by_call = next((words, by_call) for names, words, by_call in _ERRORS if re.search(names, kinds))
            kind = (UsageError if by_call else ConverterError) if self._target else InputError
            why = " ".join(redacted(error).split()) or type(error).__name__
            login = self.url.partition("://")[2].partition("/")[0].rpartition("@")[0]
            for secret in filter(None, (login, login.partition(":")[2])):  # as the client writes it
                why = why.replace(secret, "***")
            raise kind(f"{self}: {what}{words} ({printable(why)})") from None

    def files(self) -> dict[str, dict[str, Any]]:
        """What the store says of the file that lies there, or of each in the folder, by its path in the store."""
        with self.errors(), suppress(FileNotFoundError):
            about = self.fs.info(self.path)
            inside = {self.path: about} if about["type"] == "file" else self.fs.find(self.path, detail=True)
            files = {name: about for name, about in inside.items() if about["type"] == "file" and name[-1:] != "/"}
            return {name: about | {"size": int(about["size"])} for name, about in files.items()}
        return {}

    def at(self, path: str) -> Store:
        """Another place in this store, in the folder that this is, or beside it."""
        there, place, url = copy(self), self.path, self.url.rstrip("/")
        while place != path and not path.startswith(place + "/"):
            place, url = place.rpartition("/")[0], url.rpartition("/")[0]
        there.url, there.path = url + path[len(place) :], path
        return there


def version(about: dict[str, Any]) -> tuple[str, ...]:
    """What tells a version of a file from any other, of what a store says of it."""
    marks = ("size", "ETag", "etag", "md5Hash", "generation", "mtime", "created", "ino")
    return tuple(str(about.get(mark)) for mark in marks)


def matching(url: str) -> list[str]:
    """The URLs of the files, and of the folders that are a model, that a glob matches; the URL itself where something
    has just this name. Raises: `InputError` where the store cannot be asked."""
    store = Store(url)
    with store.errors():
        names = [store.path] if store.fs.exists(store.path) else store.fs.glob(store.path)
        of_models = ("", f"/{RECORD}", f"/{CONFIG}", "/model_index.json")
        return [store.at(name).url for name in names if any(store.fs.isfile(name + inner) for inner in of_models)]
