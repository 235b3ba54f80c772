"""`--null_caption`: the files in which the training codes keep one, and those that are none."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from makers import HEADS, Result, convert, pixart, save
from safetensors.torch import load_file

import converter
from converter.conversion.null_caption import LARGEST, open_tensors
from converter.conversion.up_to_date import is_up_to_date
from converter.errors import InputError
from converter.filenames import RECORD, SIDECAR

CAPTION = "y_embedder.y_embedding"


def npz(path: Path, **arrays: Any) -> None:
    np.savez_compressed(data := BytesIO(), **arrays)
    path.write_bytes(data.getvalue())


def npy(path: Path, array: Any) -> None:
    np.save(data := BytesIO(), array)
    path.write_bytes(data.getvalue())


def header(text: str, data: bytes = bytes(12 * 16 * 4), version: int = 1) -> bytes:
    """An `.npy` with a header in somebody else's words."""
    words = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + len(words).to_bytes(2, "little") + words + data


def shape(text: str) -> bytes:
    return header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {text}, }}")


def archive(path: Path, **members: bytes) -> None:
    with ZipFile(path, "w") as file:
        for name, data in {"caption_feature": shape("(12, 16)"), **members}.items():
            file.writestr(f"{name}.npy", data)


def masked(mask: Any) -> Callable[[Path], object]:
    return lambda path: npz(path, caption_feature=np.ones((1, 12, 16), np.float32), attention_mask=mask)


def sigma(value: torch.Tensor, path: Path) -> None:
    """As train_scripts/train.py of PixArt-sigma saves T5's embedding of an empty prompt."""
    mask = torch.ones(1, len(value), dtype=torch.int64)
    torch.save({"uncond_prompt_embeds": value[None], "uncond_prompt_embeds_mask": mask}, path)


def features(value: torch.Tensor, path: Path) -> None:
    """As tools/extract_features.py of PixArt-sigma saves a caption; alpha's does so in float32."""
    mask = np.ones((1, len(value)), np.int16)
    npz(path, caption_feature=value[None].half().numpy(), attention_mask=mask)


FILES: dict[str, Callable[[torch.Tensor, Path], object]] = {
    "sigma's": sigma,
    "a prompt's": lambda value, path: torch.save(
        {"caption_embeds": value[None], "emb_mask": torch.arange(12) < 5}, path
    ),
    "a bare tensor": torch.save,
    "a bare batch": lambda value, path: torch.save(value[None], path),
    "a bare parameter": lambda value, path: torch.save(torch.nn.Parameter(value[None, None]), path),
    "features": features,
    "alpha's features": lambda value, path: npz(
        path, caption_feature=value[None].numpy(), attention_mask=np.ones((1, 12), np.int64)
    ),
    "an array": lambda value, path: npy(path, value.numpy()),
    "an array of the other byte order": lambda value, path: npy(path, value.numpy().astype(">f4")),
}


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A converted folder without a record and a sidecar."""
    out = convert(save(pixart(), tmp_path / "a.pth"), tmp_path / "out").path
    for name in (RECORD, SIDECAR):
        (out / name).unlink()
    return out


def given(foreign: Path, caption: Path, **stated: Any) -> torch.Tensor:
    """The null caption of what comes back."""
    words = {"num_attention_heads": HEADS} | stated
    back = foreign.parent / "back.pth"
    converter.convert(foreign, back, to="original", null_caption=caption, hyper_parameters=words, overwrite=True)
    tensor: torch.Tensor = torch.load(back, weights_only=True)["state_dict"][CAPTION]
    return tensor


@pytest.mark.parametrize("name", FILES)
def test_what_the_training_codes_keep_is_taken_as_it_is(name: str, foreign: Path) -> None:
    value, path = torch.randn(12, 16), foreign.parent / "caption"
    FILES[name](value, path)
    wanted = value.half() if name == "features" else value
    back = given(foreign, path)
    assert (back.dtype, torch.equal(back, wanted)) == (wanted.dtype, True)


def test_it_goes_into_the_sidecar_too(foreign: Path) -> None:
    features(value := torch.randn(12, 16), foreign.parent / "caption.npz")
    again = converter.convert(
        foreign,
        foreign.parent / "again",
        null_caption=foreign.parent / "caption.npz",
        hyper_parameters={"num_attention_heads": HEADS},
    )
    assert torch.equal(load_file(again.path / SIDECAR)[CAPTION], value.half())


@pytest.mark.parametrize(
    ("stated", "tokens", "said"),
    [
        ({"version": "alpha"}, 300, "300 tokens, as in PixArt-sigma, and this is PixArt-alpha, which has 120"),
        ({"version": "sigma"}, 120, "120 tokens, as in PixArt-alpha, and this is PixArt-sigma, which has 300"),
        ({"version": "sigma"}, 300, ""),
        ({"version": "alpha"}, 77, ""),
        ({}, 300, ""),
    ],
)
def test_the_length_of_the_other_pixart(stated: dict[str, str], tokens: int, said: str, foreign: Path) -> None:
    sigma(torch.randn(tokens, 16), foreign.parent / "null.pth")
    if said:
        with pytest.raises(InputError, match=rf"null\.pth: uncond_prompt_embeds: {said}"):
            given(foreign, foreign.parent / "null.pth", **stated)
    else:
        assert len(given(foreign, foreign.parent / "null.pth", **stated)) == tokens


def with_bytes(data: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        features(torch.randn(12, 16), path)
        path.write_bytes(data(path.read_bytes()))

    return write


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a batch": (lambda path: torch.save(torch.zeros(2, 12, 16), path), r"float32 \[2, 12, 16\] is not the y_embedder"),
    "another width": (lambda path: sigma(torch.zeros(12, 17), path), r"\[1?,? ?12, 17\] is not the y_embedder"),
    "whole numbers": (lambda path: torch.save(torch.zeros(12, 16, dtype=torch.int64), path), "no floats"),
    "two of floats": (
        lambda path: npz(path, a=np.zeros((12, 16)), b=np.zeros((12, 16))),
        r"which one is meant\? \(a \[12, 16\], b \[12, 16\]\)",
    ),
    "objects": (
        lambda path: npy(path, np.array([{}], dtype=object)),
        "the array: is of object: neither floats nor whole numbers",
    ),
    "text": (lambda path: path.write_text("Entry not found"), "this is text, not weights"),
    "dates": (lambda path: npy(path, np.zeros(3, "M8[s]")), r"the array: is of datetime64\[s\]"),
    "a cut archive": (with_bytes(lambda data: data[:-100]), "truncated, or followed by other bytes"),
    "more than an archive": (with_bytes(lambda data: data + b"more"), "truncated, or followed by other bytes"),
    "a flipped bit": (
        with_bytes(lambda data: data[:400] + bytes([data[400] ^ 4]) + data[401:]),
        "cannot be read as arrays of NumPy",
    ),
    "a header of Python 2": (lambda path: path.write_bytes(shape("(12L, 16L)")), r"none that numpy\.save writes today"),
    "a header that is computed": (
        lambda path: path.write_bytes(shape("(12if 1else 2, 16)")),
        r"the array: its header is none that numpy\.save writes today \(\{'descr': .*12if 1else 2, 16\), \}\): save",
    ),
    "a header with an expression": (lambda path: path.write_bytes(shape("(6+6, 16)")), r"none that numpy\.save writes"),
    "a deep header": (lambda path: path.write_bytes(header("[" * 9000)), r"none that numpy\.save writes"),
    "two axes below zero": (lambda path: path.write_bytes(shape("(-12, -16)")), r"none that numpy\.save writes"),
    "many axes": (lambda path: path.write_bytes(shape("(12, 16" + 40 * ",1" + ")")), r"none that numpy\.save writes"),
    "an overflow of nothing": (
        lambda path: path.write_bytes(shape("(0, 1152921504606846976, 1152921504606846976)")),
        r"none that numpy\.save writes",
    ),
    "a header alone": (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00"), r"writes today \(cut off\)"),
    "another version": (
        lambda path: path.write_bytes(header("{}", version=3)),
        r"none that numpy\.save writes today \(\{\}\)",
    ),
    "more than the array": (
        lambda path: path.write_bytes(shape("(12, 16)") + b"more"),
        r"the array: float32 \[12, 16\] takes 768 bytes, and 772 follow its header: other bytes follow the array",
    ),
    "less than the array": (lambda path: path.write_bytes(shape("(12, 16)")[:-1]), "767 follow its header: truncated"),
    "more than an array of an archive": (
        lambda path: archive(path, mask=shape("(12, 16)") + b"more"),
        "mask: float32 .* other bytes follow the array",
    ),
    "no array": (lambda path: archive(path, readme=b"hello"), "readme: is no array of NumPy"),
    "a mask of another length": (
        masked(np.ones((1, 11), np.int16)),
        r"attention_mask: has shape \[11\], and the caption 12 tokens",
    ),
    "masks of a batch": (masked(np.ones((2, 12), np.int64)), r"attention_mask: has shape \[2, 12\], and"),
    "a mask of nothing": (masked(np.zeros((1, 12), np.int64)), "attention_mask: is 0 throughout"),
    "a mask with holes": (masked(np.int8([[1, 0, 1] + [0] * 9])), "attention_mask: has a 0 before a 1"),
    "a mask of padding first": (masked(np.arange(12) > 3), "attention_mask: has a 0 before a 1"),
    "a mask of other numbers": (
        masked(np.int32([[1, 2] + [0] * 10])),
        "attention_mask: holds other values than 0 and 1",
    ),
    "a mask in torch": (
        lambda path: torch.save({"a": torch.ones(1, 12, 16), "a_mask": torch.zeros(1, 12).long()}, path),
        "a_mask: is 0 throughout",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str, foreign: Path) -> None:
    write, said = REFUSED[name]
    write(path := foreign.parent / "caption")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(InputError, match=said) as error:
            given(foreign, path)
    assert re.match(re.escape(str(path)) + ": ", str(error.value))
    assert "\n" not in str(error.value)
    assert not warned
    assert not (foreign.parent / "back.pth").exists()


def test_no_pickle_of_an_array_is_loaded(foreign: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    npz(tmp_path / "evil.npz", caption_feature=np.array([Evil()], dtype=object))
    torch.save(Evil(), tmp_path / "evil.pth")
    for name in ("evil.npz", "evil.pth"):
        with pytest.raises(InputError):
            given(foreign, tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_two_arrays_of_one_name(tmp_path: Path) -> None:
    with ZipFile(tmp_path / "two.npz", "w") as file:
        for name in ("a.npy", "a"):
            file.writestr(name, shape("(12, 16)"))
    with ExitStack() as stack, pytest.raises(InputError, match=r"two\.npz: several of its arrays have one name"):
        open_tensors(stack, tmp_path / "two.npz")


def test_many_members_are_counted_and_not_read(tmp_path: Path) -> None:
    archive(tmp_path / "many.npz", **{f"a{i}": b"" for i in range(20_000)})
    began = time.process_time()
    with ExitStack() as stack, pytest.raises(InputError, match="an archive of 20001 members, more than any"):
        open_tensors(stack, tmp_path / "many.npz")
    assert time.process_time() - began < 2


@pytest.mark.parametrize("to", ["original", "diffusers"])
def test_what_is_not_finite_is_of_the_file_that_it_is_in(to: str, foreign: Path) -> None:
    value, out = torch.randn(12, 16), foreign.parent / ("there" + ".pth" * (to == "original"))
    value[0, 0] = float("nan")
    npy(path := foreign.parent / "nan.npy", value.numpy())
    words: Any = {"to": to, "null_caption": path, "hyper_parameters": {"num_attention_heads": HEADS}}
    with pytest.raises(InputError) as error:
        converter.convert(foreign, out, **words)
    flag = "`allow_nonfinite` converts them as they are"
    assert str(error.value) == f"{path}: 1 element is NaN or infinite, in {CAPTION}; {flag}"
    converter.convert(foreign, out, **words, allow_nonfinite=True)
    with pytest.raises(InputError, match=re.escape(str(path))):  # of a result that is there already, too
        is_up_to_date(foreign, out, **words)


@pytest.mark.parametrize(
    ("value", "said"),
    [(1e6, "192 elements are beyond float16"), (1e-30, "y_embedder.y_embedding: zero throughout once rounded")],
)
def test_what_rounding_does_is_of_the_file_that_it_is_in(value: float, said: str, foreign: Path) -> None:
    npy(path := foreign.parent / "caption.npy", np.full((12, 16), value, np.float32))
    words: Any = {"to": "original", "dtype": "float16", "hyper_parameters": {"num_attention_heads": HEADS}}
    with pytest.raises(InputError, match=rf"^{re.escape(f'{path}: {said}')}"):
        converter.convert(foreign, foreign.parent / "back.pth", null_caption=path, **words)


def test_an_archive_that_unpacks_to_more_than_any_caption_is_not_unpacked(tmp_path: Path) -> None:
    npz(tmp_path / "bomb.npz", caption_feature=np.zeros(LARGEST // 4 + 1, np.float32))
    with ExitStack() as stack, pytest.raises(InputError, match="more than any null caption has"):
        open_tensors(stack, tmp_path / "bomb.npz")


def test_the_command_takes_it_and_says_what_it_means_to_go_without(foreign: Path, cli: Callable[..., Result]) -> None:
    sigma(torch.randn(12, 16), foreign.parent / "null.pth")
    call = ["pixart", "revert", foreign, foreign.parent / "b.pth", "--num_attention_heads", HEADS]
    done = cli(*call)
    assert done.returncode == 0
    assert "note: left out: y_embedder.y_embedding, the null caption" in done.stdout
    for said in ("alpha's code needs it for guidance and training", "null_embed_diffusers_300token.pth"):
        assert said in done.stdout
    done = cli(*call, "--overwrite", "--null_caption", foreign.parent / "null.pth")
    assert (done.returncode, "left out" in done.stdout) == (0, False)
