"""A tensor that `torch.save` wrote by itself."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import torch
from makers import raw_bytes, save

from converter.checkpoint.file import InputFile
from converter.checkpoint.torch_file.reader import bare_tensor
from converter.errors import InputError


@pytest.mark.parametrize("value", [torch.randn(2, 3), torch.randn(4, 3).half().mT, torch.nn.Parameter(torch.ones(2))])
def test_it_is_read_as_torch_reads_it(value: torch.Tensor, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "a.pth")
    wanted = torch.load(tmp_path / "a.pth", weights_only=True)
    with closing(InputFile(tmp_path / "a.pth")) as file:
        tensor = bare_tensor(file)
        assert tensor is not None
        assert (tensor.shape, tensor.read()) == (tuple(wanted.shape), raw_bytes(wanted.detach().contiguous()))


def test_any_other_file_is_none(tmp_path: Path) -> None:
    for content in ({"a": torch.ones(2)}, [torch.ones(2)], 3):
        with closing(InputFile(save(content, tmp_path / "a.pth"))) as file:
            assert bare_tensor(file) is None


def test_a_kind_that_is_not_accepted_is_refused_by_name(tmp_path: Path) -> None:
    torch.save(torch.ones(2, 2).to_sparse(), tmp_path / "a.pth")
    with closing(InputFile(tmp_path / "a.pth")) as file, pytest.raises(InputError, match="a sparse tensor"):
        bare_tensor(file)
