"""A written file is, byte for byte, what `safetensors.torch.save_file` writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from zip_builder import read_all

from converter.checkpoint.dtypes import BY_CODE
from converter.checkpoint.write.layout import TensorEntry, lay_out_safetensors

CODES = {dtype.name: dtype for dtype in BY_CODE.values()}
TENSORS = st.tuples(st.sampled_from(sorted(CODES)), st.lists(st.integers(0, 5), max_size=4), st.integers(0, 1 << 30))
KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda key: key != "__metadata__")


def write(tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None) -> bytes:
    entries = [TensorEntry(k, CODES[str(t.dtype)[6:]], tuple(t.shape)) for k, t in tensors.items()]
    layout = lay_out_safetensors(entries, metadata)
    ((_, header),) = layout.frame({})
    made = bytearray(layout.size)
    made[: len(header)] = header
    told = json.loads(header[8:])
    for key, value in tensors.items():
        start, stop = (len(header) + offset for offset in told[key]["data_offsets"])
        made[start:stop] = value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
    return bytes(made)


@given(
    st.dictionaries(KEYS, TENSORS, max_size=8),
    st.sampled_from([None, {"format": "pt"}, {"a": 'quoted "\\\n\x01é\u2028'}]),
)
@example({}, None)
@example({}, {"format": "pt"})
@example(
    {'\x7f\x1f\b\f\n\r\t/"\\': ("float32", [1], 0), "é": ("float32", [1], 1), "\U0001f600": ("int64", [], 2)}, None
)
@settings(max_examples=250)
def test_identical_to_save_file(
    tmp_path_factory: pytest.TempPathFactory, made: dict[str, Any], metadata: dict[str, str] | None
) -> None:
    path = tmp_path_factory.getbasetemp() / "theirs.safetensors"
    tensors = {}
    for key, (name, shape, seed) in made.items():
        values = torch.randint(0, 255, shape, generator=torch.Generator().manual_seed(seed))
        tensors[key] = values.to(getattr(torch, name))
    save_file(tensors, path, metadata)
    assert write(tensors, metadata) == path.read_bytes()


def test_all_dtypes_at_once(tmp_path: Path) -> None:
    tensors = {f"{n}.{name}": torch.ones(3, dtype=getattr(torch, name)) for n in range(3) for name in CODES}
    save_file(tensors, tmp_path / "theirs.safetensors", {"format": "pt"})
    (tmp_path / "mine.safetensors").write_bytes(write(tensors, {"format": "pt"}))
    assert (tmp_path / "mine.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()
    assert len(read_all(tmp_path / "mine.safetensors")) == 30


def test_the_data_is_aligned() -> None:
    for count in range(40):
        layout = lay_out_safetensors([TensorEntry("k" * (count + 1), BY_CODE["F64"], (1,))])
        ((_, header),) = layout.frame({})
        assert len(header) % 8 == 0
        assert layout.size == len(header) + 8
