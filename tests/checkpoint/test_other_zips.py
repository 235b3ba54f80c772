"""Zip files that torch did not write: what they hold, and what to do, is said of each."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from zip_builder import assert_refused, read_all, save

PACKED_AGAIN = "a torch file that was unpacked and packed again by another tool; fetch the original again"


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED, comment: bytes = b"") -> bytes:
    """As Python's zipfile writes it; a name that ends in '/' is an entry of a folder."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as made:
        for name, data in files.items():
            made.writestr(name, data)
        made.comment = comment
    return stream.getvalue()


def members() -> dict[str, bytes]:
    """Those of a torch file, by name."""
    stream = io.BytesIO()
    torch.save({"w": torch.ones(3)}, stream)
    with zipfile.ZipFile(stream) as known:
        return {name: known.read(name) for name in known.namelist()}


@given(
    st.sampled_from(
        ["base.pth", "model.PT", "last.ckpt", "pytorch_model.bin", "model.safetensors", "base.zip", "a.tar"]
    ),
    st.lists(st.text("abc.-_ \u00e9", min_size=1, max_size=8).filter(lambda part: part.strip(". ")), max_size=4),
    st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
    st.booleans(),
    st.sampled_from([b"", b"0123456789012345678901234567890123456789", b"PK\x05\x06"]),
)
@settings(max_examples=40)
def test_a_zip_around_a_checkpoint_names_it(
    tmp_path_factory: pytest.TempPathFactory, name: str, folders: list[str], method: int, more: bool, comment: bytes
) -> None:
    inside = "/".join([*folders, name])
    files = {f"{'/'.join(folders)}/": b""} if folders else {}
    files |= {inside: b"weights", f"__MACOSX/._{name}": b"x"}
    if more:
        files |= {f"other/{name}x": b"", "README.md": b"read me", "config.json": b"{}"}
    path = save(tmp_path_factory.getbasetemp(), zipped(files, method, comment))
    assert_refused(path, f"zip: this is a zip that holds {inside}: unpack it first")


def test_a_zip_around_several(tmp_path: Path) -> None:
    names = [f"runs/epoch_{n}.pth" for n in range(6)]
    path = save(tmp_path, zipped(dict.fromkeys(names, b"x")))
    first = ", ".join(names[:3])
    assert_refused(path, f"holds {first} and 3 more: unpack it first, and give one of them, or their folder")


@pytest.mark.parametrize("root", ["", "archive/", "deep/archive/"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("folders", [True, False])
def test_a_torch_file_packed_again_is_called_one(tmp_path: Path, root: str, method: int, folders: bool) -> None:
    files = {name.replace("archive/", root, 1): data for name, data in members().items()}
    if folders:
        places = {name[: name.rindex("/") + 1] for name in files if "/" in name} or {"data/"}
        files = dict.fromkeys(sorted(places), b"") | files
    path = save(tmp_path, zipped(files, method))
    if (root, method, folders) == ("archive/", zipfile.ZIP_STORED, False):
        assert read_all(path)["w"][2] == torch.ones(3).numpy().tobytes()  # with one reading: as good as before
    else:
        assert_refused(path, PACKED_AGAIN)


def test_the_advice_holds(tmp_path: Path) -> None:
    path = save(tmp_path, zipped({"archive/": b""} | members()))
    assert_refused(path, "torch.save(torch.load(PATH, weights_only=True, map_location='cpu'), NEW)")
    torch.save(torch.load(path, weights_only=True, map_location="cpu"), tmp_path / "new.pth")
    assert read_all(tmp_path / "new.pth")["w"][2] == torch.ones(3).numpy().tobytes()


def test_what_is_in_the_way_of_a_torch_file_is_not_blamed_on_another_tool(tmp_path: Path) -> None:
    stream = io.BytesIO()
    torch.save({"w": torch.ones(3)}, stream)
    data = stream.getvalue()
    for hostile in (data.replace(b"archive/version", b"archive/VERSION"), data + b"\n"):
        with pytest.raises(Exception, match=r": (archive/VERSION|zip): ") as caught:
            read_all(save(tmp_path, hostile))
        assert "another tool" not in str(caught.value)


def test_a_zip_of_something_else_is_no_checkpoint(tmp_path: Path) -> None:
    assert_refused(save(tmp_path, zipped({"notes.txt": b"x"})), "not a torch checkpoint")
    assert_refused(save(tmp_path, zipped({"notes.txt": b"x"}, comment=b"x")), "no end record in the last 22")
