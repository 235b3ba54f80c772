"""`converter.load` of what lies on the hub: fetched once, and known by the name that it was asked for by."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from makers import GOLDEN, HEADS, convert
from server import Hub

import converter

GIVEN = {"num_attention_heads": HEADS}


@pytest.mark.parametrize("name", ["owner/pixart", "hf://owner/pixart/sigma-ms.pth"])
def test_a_file_on_the_hub(name: str, hub: Hub, tmp_path: Path) -> None:
    hub.add("owner/pixart", {"sigma-ms.pth": (GOLDEN / "sigma-ms.pth").read_bytes()})
    wanted = converter.load(GOLDEN / "sigma-ms.pth", hyper_parameters=GIVEN)
    for _ in range(2):
        model = converter.load(name, hyper_parameters=GIVEN)
        assert all(torch.equal(tensor, wanted.state_dict()[key]) for key, tensor in model.state_dict().items())
        assert model.config["_name_or_path"] == name
    assert len(hub.downloads()) == 1


def test_a_folder_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    convert(GOLDEN / "sigma-ms.pth", tmp_path / "out")
    folder = tmp_path / "out" / "transformer"
    hub.add("owner/diffusers", {path.name: path.read_bytes() for path in folder.iterdir()})
    model = converter.load("owner/diffusers")
    assert type(model).__name__ == "PixArtTransformer2DModel"


def test_what_is_not_there(hub: Hub) -> None:
    with pytest.raises(converter.InputError, match="owner/none") as caught:
        converter.load("owner/none")
    assert "\n" not in str(caught.value)
