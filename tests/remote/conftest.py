"""Stores for every test: an S3 server on loopback, and one in memory that counts what is fetched and fails when told.

The server is moto's, in this process (`pip install 'moto[server,s3]'`); by hand it is `moto_server -p 5000`, with
AWS_ENDPOINT_URL=http://127.0.0.1:5000 and any keys.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from moto.server import ThreadedMotoServer

SECRET = "vErYsEcReT/of40Characters+that0nobodySees"


class Watched(MemoryFileSystem):
    """A store in memory: `watched://`."""

    protocol = "watched"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    ranges: ClassVar[list[tuple[str, int, int]]] = []
    written: ClassVar[list[str]] = []
    on_read: ClassVar[Callable[[int], object]]
    on_write: ClassVar[Callable[[int], object]]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.replace("watched://", "memory://"))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        data = super().cat_file(path, start, end, **kwargs)
        self.ranges.append((path, start or 0, (start or 0) + len(data)))
        type(self).on_read(len(self.ranges))
        return data

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        if mode == "wb":
            type(self).on_write(len(self.written) + 1)
            self.written.append(path)
        return super()._open(path, mode, **kwargs)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> type[Watched]:
    fsspec.register_implementation("watched", Watched, clobber=True)
    for name in ("store", "ranges", "written"):
        getattr(Watched, name).clear()
    Watched.pseudo_dirs[:] = [""]
    Watched.on_read = Watched.on_write = staticmethod(lambda count: None)
    return Watched


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files lie; none is left."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert [*folder.glob("pixart-*")] == []  # torch keeps some of its own


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    yield f"http://127.0.0.1:{port}"
    server.stop()


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty bucket, `s3://lab`, by a client of its own; its variables are those of the test."""
    import s3fs

    settings = {"ENDPOINT_URL": server, "ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE", "SECRET_ACCESS_KEY": SECRET}
    for name, value in (settings | {"DEFAULT_REGION": "us-east-1", "EC2_METADATA_DISABLED": "true"}).items():
        monkeypatch.setenv(f"AWS_{name}", value)
    at_once = partial(asyncio.sleep, 0)  # the clients wait longer and longer before they try again
    monkeypatch.setattr(asyncio, "sleep", lambda seconds, *result: at_once(*result))
    store = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    store.mkdir("lab")
    yield store
    if store.exists("lab"):
        store.rm("lab", recursive=True)
