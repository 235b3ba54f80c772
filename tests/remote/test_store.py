"""Places in stores by their URL, and what is said of those that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.registry import known_implementations
from makers import GOLDEN, convert, tree

import converter
from converter.conversion.pairs import expand
from converter.errors import ConverterError, InputError, UsageError
from converter.remote import is_url, shown

SIGMA = GOLDEN / "sigma-ms.pth"


@pytest.mark.parametrize(("path", "is_one"), [
    ("s3://b/a.pth", True), ("S3://b/a", True), ("gs://b", True), ("file:///a", True), ("memory://a", True),
    ("hf://owner/name", False), ("owner/name", False), ("C:/a.pth", False), ("/a://b", False), ("://a", False),
    (Path("s3://b/a.pth"), False), (None, False),
])  # fmt: skip
def test_what_is_a_url(path: Any, is_one: bool) -> None:
    assert is_url(path) is is_one


@pytest.mark.parametrize(("url", "words"), [
    ("nosuch://a/b.pth", "no store can be used like that (Protocol not known: nosuch)"),
    ("memory://none/a.pth", "no such file, folder or bucket"),
    ("file:///a/../../b", "no store can be used like that (a URL names one place, without '..' and '::')"),
    ("simplecache::file:///a/b", "no store can be used like that (a URL names one place, without '..' and '::')"),
])  # fmt: skip
def test_what_is_no_place(url: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        convert(url, tmp_path / "out")
    assert str(refused.value).startswith(f"{url}: {words}")
    if "memory" not in url:
        with pytest.raises(UsageError) as refused_too:
            convert(SIGMA, url)
        assert str(refused_too.value).startswith(f"{url}: {words}")


def test_a_library_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"class": "no_such_library.Store", "err": "Please install no_such_library to reach it"}
    monkeypatch.setitem(known_implementations, "far", entry)
    for source, out in (("far://a/b.pth", tmp_path / "out"), (SIGMA, "far://a/out")):
        with pytest.raises(ConverterError, match=r"^far://a/\S+: .*Please install no_such_library to reach it"):
            convert(source, out)


def test_without_fsspec_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converter.errors.find_spec", lambda module: None)
    with pytest.raises(UsageError, match=r"a URL needs fsspec: pip install 'convert-pixart\[remote\]'"):
        convert("s3://a/b.pth", tmp_path / "out")


def test_no_login_and_no_signature_is_shown() -> None:
    url = "sftp://me:pw@host/runs/a.pth?token=abc&x=1"
    assert shown(url + "\n") == "sftp://***@host/runs/a.pth?token=***&x=1\\n"


def test_keys_of_a_store_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    from converter.hub.redaction import redacted

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "FwoGZXIvYXdzEXAMPLE==")
    text = "signed with wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY and FwoGZXIvYXdzEXAMPLE=="
    assert redacted(text) == "signed with *** and ***"


def test_files_by_their_url_are_what_they_are_by_their_path(tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'lab' / 'out'}"  # fsspec takes a path as it is, and no %20 for a space
    done = convert(f"file://{SIGMA}", url)
    here = tree(convert(SIGMA, tmp_path / "here").path)
    files = tree(tmp_path / "lab" / "out")
    assert done.path == url
    assert files.keys() == here.keys()
    assert all(files[name] == here[name] for name in files if name != "conversion.json")
    assert [path.name for path in (tmp_path / "lab").iterdir()] == ["out"]
    with pytest.raises(UsageError, match=rf"^{url}: exists and is not empty"):
        convert(f"file://{SIGMA}", url)
    convert(url, f"file://{tmp_path / 'lab' / 'back.pth'}", to="original")
    assert convert(tmp_path / "lab" / "back.pth", tmp_path / "again").written


def test_globs_and_templates(watched: Any) -> None:
    for name in ("sigma/checkpoints/e9.pth", "sigma/checkpoints/e10.pth", "sigma/log.txt", "out/m/conversion.json"):
        watched().pipe_file(f"watched://lab/{name}", b"")
    pairs = expand("watched://lab/*/checkpoints/*.pth", "s3://out/{run}/{stem}", base="/elsewhere")
    assert [(pair.original, pair.converted) for pair in pairs] == [
        ("watched://lab/sigma/checkpoints/e9.pth", "s3://out/sigma/e9"),
        ("watched://lab/sigma/checkpoints/e10.pth", "s3://out/sigma/e10"),
    ]
    assert [pair.original for pair in expand("watched://lab/out/*", "{name}")] == ["watched://lab/out/m"]
    (pair,) = expand("watched://lab/runs/v1.5", "s3://out/{grandparent}-{parent}-{stem}")
    assert pair.converted == "s3://out/lab-runs-v1.5"
    with pytest.raises(UsageError, match="have the same target s3://out/sigma"):
        expand("watched://lab/*/checkpoints/*.pth", "s3://out/{run}")


def test_a_checkpoint_in_a_store_can_be_opened(watched: Any) -> None:
    watched().pipe_file("watched://lab/a.pth", SIGMA.read_bytes())
    with converter.remote.fetched("watched://lab/a.pth") as path, converter.open_checkpoint(path) as checkpoint:
        assert checkpoint["x_embedder.proj.weight"].shape == (48, 4, 2, 2)
    assert fsspec.available_protocols()
    assert issubclass(InputError, ConverterError)


def test_what_a_client_repeats_of_a_login_is_not_shown(tmp_path: Path) -> None:
    for url in ("s3://me:hunter2@bucket/a.pth", "github://me:hunter2@owner/a.pth"):
        with pytest.raises(ConverterError) as refused:
            convert(url, tmp_path / "out")
        assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("name", ["conversion.json/inner.json", "n" * 300 + ".json"])
def test_an_object_whose_name_no_file_can_have_here(name: str, tmp_path: Path) -> None:
    store, url = fsspec.filesystem("memory"), "memory://odd/folder"
    convert(SIGMA, url)
    store.store[f"/odd/folder/{name}"] = store.store["/odd/folder/conversion.json"]
    with pytest.raises(InputError, match=f"^{url}/.*: no file can have this name here: "):
        convert(url, tmp_path / "out")
    store.store.clear()
