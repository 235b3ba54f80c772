"""What is written: a PixArt like any other, in stock diffusers too, whole or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from init_helpers import DIT, SMALL, begun, golden
from makers import GOLDEN, HEADS, dit_keyed, folder, pixart, save, stated, tree
from safetensors import safe_open
from safetensors.torch import load_file

import converter
from converter import parity
from converter.errors import InputError, UsageError
from converter.initialisation import Options, assemble, init_from_dit


def case_at_500() -> dict[str, torch.Tensor]:
    """The golden case at t = 500, of the samples without a class."""
    with safe_open(GOLDEN / "dit.golden.safetensors", "pt") as file:
        case = {key[6:]: file.get_tensor(key) for key in sorted(file.keys()) if key.startswith("case1.")}
    assert set(case["timestep"].tolist()) == {500}
    none = case["class_label"] == 10
    assert none.any()
    return {name: tensor[none] for name, tensor in case.items()}


def in_diffusers(place: Path, latent: torch.Tensor, timestep: torch.Tensor, caption: torch.Tensor) -> torch.Tensor:
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel.from_pretrained(place / "transformer").eval()
    nothing = {"resolution": None, "aspect_ratio": None}
    with torch.inference_mode():
        made: torch.Tensor = model(
            latent, encoder_hidden_states=caption, timestep=timestep, added_cond_kwargs=nothing
        ).sample
    return made


def test_stock_diffusers_gives_what_the_dit_was_recorded_to_give(tmp_path: Path) -> None:
    init_from_dit(DIT, tmp_path / "out", SMALL, num_attention_heads=HEADS)
    case = case_at_500()
    caption = torch.randn(len(case["latent"]), 12, 32)
    made = in_diffusers(tmp_path / "out", case["latent"], case["timestep"], caption)
    assert (made - case["output"]).abs().max() < 2e-5
    made = in_diffusers(tmp_path / "out", case["latent"], torch.full_like(case["timestep"], 400), caption)
    assert (made - case["output"]).abs().max() > 0.1


@pytest.mark.parametrize("options", [
    SMALL, replace(SMALL, image_size=1024, interpolation_scale=1.0), replace(SMALL, image_size=16),
    replace(SMALL, caption_tokens=300, image_size=256, t_block="paper"), replace(SMALL, micro_condition=True),
], ids=["own size", "a size and scale that are doubted", "one patch", "sigma", "micro-conditions"])  # fmt: skip
def test_a_folder_is_what_convert_makes_of_the_file(options: Options, tmp_path: Path) -> None:
    folded = init_from_dit(DIT, tmp_path / "folder", options, num_attention_heads=HEADS)
    filed = init_from_dit(DIT, tmp_path / "init.pth", options, num_attention_heads=HEADS)
    told = [note for note in filed.notes if "convert it with" in note]
    words = told[0].split("convert it with ")[1].split()
    given: dict[str, Any] = {
        name[2:]: float(v) if "scale" in name else int(v) for name, v in zip(words[::2], words[1::2], strict=True)
    }
    converter.convert(tmp_path / "init.pth", tmp_path / "converted", **stated(**given))
    assert tree(tmp_path / "folder") == tree(tmp_path / "converted")
    assert set(folded.files) == set(tree(tmp_path / "folder"))
    assert not [note for note in folded.notes if "convert it with" in note]
    found = converter.inspect(tmp_path / "folder")["hyper_parameters"]
    assert found["image_size"]["value"] == (options.image_size or 128)
    assert found["micro_condition"]["value"] is options.micro_condition
    assert found["num_attention_heads"]["value"] == HEADS


def test_both_nets_are_one_for_the_parity_checker_too(tmp_path: Path) -> None:
    for name in ("out", "init.pth"):
        init_from_dit(DIT, tmp_path / name, SMALL, num_attention_heads=HEADS)
    report = parity.check(tmp_path / "init.pth", tmp_path / "out", hyper_parameters={"multi_scale_train": True})
    by_name = {phase.name: phase.verdict for phase in report.phases}
    assert (by_name["weights"], by_name["config"], by_name["function"]) == ("PASS", "PASS", "PASS")


def test_as_pth_and_as_safetensors(tmp_path: Path) -> None:
    pth = begun(tmp_path)
    done = init_from_dit(DIT, tmp_path / "init.safetensors", SMALL, num_attention_heads=HEADS)
    tensors = load_file(tmp_path / "init.safetensors")
    assert tensors.keys() == pth.keys()
    assert all(torch.equal(tensors[key], pth[key]) for key in pth)
    assert done.files == {"init.safetensors": (tmp_path / "init.safetensors").stat().st_size}


def test_it_can_be_reverted(tmp_path: Path) -> None:
    """The null caption and the positions come back too."""
    state = begun(tmp_path)
    init_from_dit(DIT, tmp_path / "out", SMALL, num_attention_heads=HEADS)
    converter.convert(tmp_path / "out", tmp_path / "back.pth", to="original")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"]
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


# What is there, and what is left.


@pytest.mark.parametrize("name", ["init.pth", "out"])
def test_nothing_else_is_left_and_nothing_is_overwritten_unasked(name: str, tmp_path: Path) -> None:
    begun(tmp_path, name="other.pth")
    target = tmp_path / "new" / name
    for _ in range(2):
        init_from_dit(DIT, target, SMALL, num_attention_heads=HEADS, overwrite=target.exists())
        assert sorted(path.name for path in target.parent.iterdir()) == [name]
    with pytest.raises(UsageError, match="`overwrite`"):
        init_from_dit(DIT, target, SMALL, num_attention_heads=HEADS)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "precious").write_text("kept")
    with pytest.raises(UsageError, match="is kept"):
        init_from_dit(DIT, theirs, SMALL, num_attention_heads=HEADS, overwrite=True)
    assert tree(theirs) == {"precious": b"kept"}


def test_the_input_is_never_the_target(tmp_path: Path) -> None:
    path = save(golden(), tmp_path / "dit.pt")
    with pytest.raises(UsageError, match="is the input"):
        init_from_dit(path, path, SMALL, num_attention_heads=HEADS, overwrite=True)


@pytest.mark.parametrize(("name", "during"), [("init.pth", "write_files"), ("out", "write_files"), ("out", "convert")])
def test_an_interrupt_leaves_nothing(name: str, during: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any, **options: Any) -> None:
        assert (tmp_path / "new").is_dir()  # something was begun
        raise KeyboardInterrupt

    monkeypatch.setattr(assemble, during, interrupted)
    with pytest.raises(KeyboardInterrupt):
        init_from_dit(DIT, tmp_path / "new" / name, SMALL, num_attention_heads=HEADS)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    data = bytearray(DIT.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "d.pt").write_bytes(data)
    with pytest.raises(InputError, match="CRC-32"):
        init_from_dit(tmp_path / "d.pt", tmp_path / "i.pth", SMALL, num_attention_heads=HEADS)
    assert [path.name for path in tmp_path.iterdir()] == ["d.pt"]


def test_what_the_user_should_know(tmp_path: Path) -> None:
    ema = {key: tensor + 0 for key, tensor in golden().items()}
    path = save({"model": golden(), "ema": ema}, tmp_path / "train.pt")
    done = init_from_dit(path, tmp_path / "i.pth", replace(SMALL, image_size=256), num_attention_heads=HEADS)
    assert [note for note in done.notes if note.startswith("took the raw weights") and "--weights ema" in note]
    assert "no class is row 10 of its class table, the last of 11" in " ".join(done.notes)
    assert "the DiT has 16 and 1, so that the blocks get other inputs" in " ".join(done.notes)
    done = init_from_dit(
        path, tmp_path / "j.pth", replace(SMALL, none="zero"), num_attention_heads=HEADS, weights="ema"
    )
    assert "took the" not in " ".join(done.notes)
    assert "no class is row" not in " ".join(done.notes)


def test_a_dit_in_diffusers_layout_is_told_the_way(tmp_path: Path) -> None:
    place = folder(dit_keyed(golden(), 3), tmp_path / "dit", {"_class_name": "DiTTransformer2DModel", "sample_size": 16,
                   "num_attention_heads": HEADS})  # fmt: skip
    with pytest.raises(InputError, match=r"a DiT in diffusers' layout, .*`pixart revert` makes it"):
        init_from_dit(place, tmp_path / "i.pth", SMALL)


def test_a_pixart_is_no_dit(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="this is a PixArt, and a DiT is needed"):
        init_from_dit(save(pixart(), tmp_path / "p.pth"), tmp_path / "i.pth", SMALL, num_attention_heads=HEADS)
