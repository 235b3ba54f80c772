"""Saved inputs: what is written comes back bit for bit, and what is no case of this model is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import GOLDEN, HEADS
from safetensors.torch import load_file, save_file

from converter.checkpoint import open_checkpoint
from converter.conversion.analysis import analyse
from converter.errors import ConverterError, InputError
from converter.models.pixart.parity import PARITY, cases
from converter.nets.inputs import Case, load_cases, noise, save_case


def made(name: str = "alpha-ms", profile: str = "standard") -> list[Case]:
    with open_checkpoint(GOLDEN / f"{name}.pth") as checkpoint:
        return cases(analyse(checkpoint, {"num_attention_heads": HEADS}).findings, profile, {})


LIKE = made(profile="quick")[0]


def tensors(case: Case, name: str = "t999") -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": torch.from_numpy(np.array(array)) for key, array in case.arrays.items()}


def saved(at: Path, content: dict[str, torch.Tensor]) -> Path:
    save_file(content, at / "cases.safetensors")
    return at / "cases.safetensors"


def refused(at: Path, content: dict[str, torch.Tensor]) -> str:
    with pytest.raises(InputError) as raised:
        load_cases(saved(at, content), LIKE, PARITY.optional)
    assert str(at / "cases.safetensors") in str(raised.value)
    return str(raised.value)


# Round trips.


def test_every_case_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    """Whatever its name: t998-t431.5 has a dot in it."""
    for case in made():
        output = torch.randn(2, 8, 4, 4)
        words = save_case(tmp_path, case, {"original": {"float64": output.double()}, "converted": {"float32": output}})
        path = tmp_path / f"{case.name}.safetensors"
        assert words == f"saved {path}: run it again with --cases"
        (again,) = load_cases(path, LIKE, PARITY.optional)
        assert again.name == case.name
        assert again.sha256 == case.sha256
        assert again.arrays.keys() == case.arrays.keys()
        held = load_file(path)
        assert torch.equal(held[f"{case.name}.output.original.float64"], output.double())
        assert torch.equal(held[f"{case.name}.output.converted.float32"], output)


@settings(max_examples=30)
@given(st.text(min_size=1, max_size=20, alphabet=st.characters(codec="utf-8", exclude_characters="\0")))
def test_any_name(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    at = tmp_path_factory.mktemp("names")
    save_case(at, Case(name, LIKE.arrays), {"original": {"float64": torch.ones(1)}})
    (path,) = at.iterdir()
    assert path.parent == at
    (again,) = load_cases(path, LIKE, PARITY.optional)
    assert again.sha256 == LIKE.sha256


def test_a_name_cannot_leave_the_folder(tmp_path: Path) -> None:
    words = save_case(tmp_path / "in" / "deep", Case("../../up", LIKE.arrays), {})
    assert [path.name for path in (tmp_path / "in" / "deep").iterdir()] == [".._.._up.safetensors"]
    assert ".._.._up" in words


def test_many_cases_in_one_file(tmp_path: Path) -> None:
    content = tensors(LIKE, "a") | tensors(LIKE, "b.c") | {"a.output.original.float32": torch.ones(1)}
    found = load_cases(saved(tmp_path, content), LIKE, PARITY.optional)
    assert {case.name for case in found} == {"a", "b.c"}
    assert {case.sha256 for case in found} == {LIKE.sha256}
    assert found[0].axes == "from cases.safetensors"


def test_special_numbers_come_back(tmp_path: Path) -> None:
    odd = dict(LIKE.arrays)
    odd["latent"] = np.array(odd["latent"])
    odd["latent"].view(np.uint32).ravel()[:4] = [0x7FC00007, 0x80000000, 0x7F800000, 1]
    (again,) = load_cases(saved(tmp_path, tensors(Case("a", odd))), LIKE, PARITY.optional)
    assert again.sha256 == Case("a", odd).sha256


def test_a_case_without_a_mask(tmp_path: Path) -> None:
    content = {key: tensor for key, tensor in tensors(LIKE).items() if "mask" not in key}
    (again,) = load_cases(saved(tmp_path, content), LIKE, PARITY.optional)
    assert "caption_mask" not in again.arrays


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_dtype_becomes_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    content = tensors(LIKE)
    content["t999.latent"] = content["t999.latent"].to(dtype)
    (again,) = load_cases(saved(tmp_path, content), LIKE, PARITY.optional)
    assert again.arrays["latent"].dtype == np.float32
    assert np.array_equal(again.arrays["latent"], content["t999.latent"].float().numpy())


# Refusals.


def test_what_lacks_an_input(tmp_path: Path) -> None:
    for name in LIKE.arrays:
        content = {key: tensor for key, tensor in tensors(LIKE).items() if not key.endswith(name)}
        if name != "caption_mask":
            assert refused(tmp_path, content).endswith(f"t999: lacks {name}")
    content = {key: tensor for key, tensor in tensors(LIKE).items() if "img_hw" not in key and "latent" not in key}
    assert "lacks latent, img_hw" in refused(tmp_path, content)


@pytest.mark.parametrize("name", LIKE.arrays)
def test_the_wrong_number_of_axes(tmp_path: Path, name: str) -> None:
    content = tensors(LIKE)
    content[f"t999.{name}"] = content[f"t999.{name}"][None]
    text = refused(tmp_path, content)
    assert f"t999.{name}" in text
    assert "is no input of this model: it takes latent with 4 axes" in text


def test_an_unknown_input(tmp_path: Path) -> None:
    text = refused(tmp_path, tensors(LIKE) | {"t999.control": torch.zeros(2, 4, 8, 8)})
    assert "t999.control" in text
    assert "is no input of this model" in text


def test_unequal_batches(tmp_path: Path) -> None:
    content = tensors(LIKE)
    content["t999.caption"] = content["t999.caption"][:3].clone()
    assert refused(tmp_path, content).endswith("t999: batches of 3, 4: one size above 0 is needed")
    empty = {key: tensor[:0].clone() for key, tensor in tensors(LIKE).items()}
    assert "batches of 0" in refused(tmp_path, empty)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_integers(tmp_path: Path, dtype: torch.dtype) -> None:
    content = tensors(LIKE)
    content["t999.caption_mask"] = content["t999.caption_mask"].to(dtype)
    assert "is no input of this model" in refused(tmp_path, content)


@pytest.mark.parametrize("key", ["latent", ".latent.", "t999", "", "latent.t999", "t999.", "t999.latent.x"])
def test_keys_that_are_no_case(tmp_path: Path, key: str) -> None:
    assert "is no input of this model" in refused(tmp_path, {key: torch.zeros(2, 4, 8, 8)})


def test_no_cases(tmp_path: Path) -> None:
    assert "holds no cases" in refused(tmp_path, {})
    assert "holds no cases" in refused(tmp_path, {"a.output.original.float32": torch.ones(1)})


def test_a_hostile_name_is_made_printable(tmp_path: Path) -> None:
    name = "\x1b[31m" + "a" * 500
    (case,) = load_cases(saved(tmp_path, tensors(LIKE, name)), LIKE, PARITY.optional)
    assert "\x1b" not in case.name
    assert len(case.name) < 100
    text = refused(tmp_path, {f"{name}.foo": torch.zeros(1)})
    assert "\x1b" not in text
    assert len(text) < 1000


@pytest.mark.parametrize("length", [0, 7, 8, 100, -1])
def test_a_truncated_file(tmp_path: Path, length: int) -> None:
    path = saved(tmp_path, tensors(LIKE))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputError):
        load_cases(path, LIKE, PARITY.optional)


def test_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "cases.safetensors"
    for content in (b"GGUF" + b"\0" * 100, b"{}", b"\xff" * 64, (1 << 60).to_bytes(8, "little") + b"{}"):
        path.write_bytes(content)
        with pytest.raises(InputError):
            load_cases(path, LIKE, PARITY.optional)
    for other in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError):
            load_cases(other, LIKE, PARITY.optional)


def test_a_header_that_lies(tmp_path: Path) -> None:
    path = saved(tmp_path, tensors(LIKE))
    data = path.read_bytes()
    for old, new in ((b'"F32"', b'"F99"'), (b'"data_offsets":[0', b'"data_offsets":[9')):
        assert old in data
        path.write_bytes(data.replace(old, new, 1))
        with pytest.raises(InputError):
            load_cases(path, LIKE, PARITY.optional)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConverterError, match="cannot be written"):
        save_case(tmp_path / "file" / "in", Case("a", {"latent": noise(1, 2, 2)}), {})
