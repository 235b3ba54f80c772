"""A PixArt that begins as a DiT: the same function at t = 500, judged by torch, recordings and stock diffusers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from makers import GOLDEN, Result, save

import converter
from converter.checkpoint import open_checkpoint
from converter.errors import InputError, UsageError
from converter.initialisation import Options, init_from_dit
from converter.initialisation.assemble import CARRIED, DRAWN, Origin
from converter.initialisation.modulation import Modulation
from converter.initialisation.proof import prove
from converter.initialisation.report import render
from converter.reference.embeddings import sinusoid
from converter.survey import survey

DIT = GOLDEN / "dit.pt"
SMALL = Options(caption_tokens=12, caption_channels=32)
DEPTH, HIDDEN, HEADS = 3, 48, 4


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return dict(torch.load(DIT, weights_only=True))


def embedded(state: dict[str, torch.Tensor], timestep: float) -> torch.Tensor:
    """e(t) in float64, by another road than the package's."""
    waves = sinusoid(torch.tensor([timestep])).double()
    first = F.linear(waves, state["t_embedder.mlp.0.weight"].double(), state["t_embedder.mlp.0.bias"].double())
    second = state["t_embedder.mlp.2.weight"].double(), state["t_embedder.mlp.2.bias"].double()
    return F.linear(F.silu(first), *second)[0]


def written(tmp: Path, options: Options = SMALL, name: str = "init.pth") -> dict[str, torch.Tensor]:
    done = init_from_dit(DIT, tmp / name, options, num_attention_heads=HEADS)
    assert done.written
    return dict(torch.load(tmp / name, weights_only=True, mmap=True)["state_dict"])


@pytest.mark.parametrize("t_block", ["mean", "paper"])
@pytest.mark.parametrize("none", ["unconditional", "zero"])
def test_every_modulation_is_the_dits_at_500(
    none: str, t_block: str, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    options = replace(SMALL, none=none, t_block=t_block)
    made = {key: tensor.double() for key, tensor in written(tmp_path, options).items()}
    e = embedded(state, 500.0)
    told = e + (state["y_embedder.embedding_table.weight"][-1].double() if none == "unconditional" else 0)
    shared = F.linear(F.silu(e), made["t_block.1.weight"], made["t_block.1.bias"]).reshape(6, -1)
    for i in range(DEPTH):
        name = f"blocks.{i}.adaLN_modulation.1"
        wanted = F.linear(F.silu(told), state[f"{name}.weight"].double(), state[f"{name}.bias"].double()).reshape(6, -1)
        apart = (made[f"blocks.{i}.scale_shift_table"] + shared - wanted).abs().max()
        assert apart <= 2**-24 * wanted.abs().max() * 4  # the table is float32
    name = "final_layer.adaLN_modulation.1"
    wanted = F.linear(F.silu(told), state[f"{name}.weight"].double(), state[f"{name}.bias"].double()).reshape(2, -1)
    assert (made["final_layer.scale_shift_table"] + e - wanted).abs().max() <= 2**-24 * wanted.abs().max() * 4


def test_what_is_carried_over_is_carried_over_bit_for_bit(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    made = written(tmp_path)
    carried = [key for key in made if key in state and key != "pos_embed"]
    assert len(carried) == DEPTH * 8 + 8
    assert all(torch.equal(made[key], state[key]) for key in carried)
    assert torch.equal(made["pos_embed"], state["pos_embed"])  # of the same size, scale 1
    gone = [key for key in state if key not in made]
    assert all("adaLN_modulation" in key or "embedding_table" in key for key in gone)


def test_the_rest_begins_as_in_the_papers_code(tmp_path: Path) -> None:
    made = written(tmp_path)
    for i in range(DEPTH):
        assert not made[f"blocks.{i}.cross_attn.proj.weight"].any()
        assert not made[f"blocks.{i}.cross_attn.proj.bias"].any()
        kv = made[f"blocks.{i}.cross_attn.kv_linear.weight"]
        assert kv.abs().max() <= (6 / (3 * HIDDEN)) ** 0.5
        assert kv.std() == pytest.approx((2 / (3 * HIDDEN)) ** 0.5, rel=0.05)
    assert made["y_embedder.y_proj.fc1.weight"].std() == pytest.approx(0.02, rel=0.1)
    assert not made["y_embedder.y_proj.fc1.bias"].any()
    assert made["y_embedder.y_embedding"].shape == (12, 32)
    assert made["y_embedder.y_embedding"].std() == pytest.approx(32**-0.5, rel=0.2)


def test_the_mean_is_the_mean(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    layers = torch.stack([state[f"blocks.{i}.adaLN_modulation.1.weight"].double() for i in range(DEPTH)])
    assert torch.equal(written(tmp_path)["t_block.1.weight"], layers.mean(0).float())


def test_a_seed_is_a_file(tmp_path: Path) -> None:
    for name, seed in (("a.pth", 0), ("b.pth", 0), ("c.pth", 1)):
        written(tmp_path, replace(SMALL, seed=seed), name)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()
    assert (tmp_path / "a.pth").read_bytes() != (tmp_path / "c.pth").read_bytes()


@pytest.mark.parametrize("micro", [False, True])
@pytest.mark.parametrize(("size", "scale"), [(None, None), (256, None), (512, 2.0)])
def test_blocks_agree_at_any_size(size: int | None, scale: float | None, micro: bool, tmp_path: Path) -> None:
    options = replace(SMALL, image_size=size, interpolation_scale=scale, micro_condition=micro)
    done = init_from_dit(DIT, tmp_path / "out", options, num_attention_heads=HEADS)
    assert done.proof["passed"]
    assert done.proof["worst"] < 2
    assert [row["name"] for row in done.proof["stages"]] == ["block 0", "block 1", "block 2", "output"]
    assert max(row["float64"] for row in done.proof["stages"]) < 1e-7
    with open_checkpoint(tmp_path / "out") as opened:
        found = survey(opened).found
    assert found["image_size"].value == (size or 128)
    assert found["micro_condition"].value is micro


def test_stock_diffusers_gives_the_recorded_output(tmp_path: Path) -> None:
    """The golden case at t = 500 without a class, through a PixArt in diffusers: another net, the same numbers."""
    from diffusers import PixArtTransformer2DModel
    from safetensors import safe_open

    init_from_dit(DIT, tmp_path / "out", SMALL, num_attention_heads=HEADS)
    model = PixArtTransformer2DModel.from_pretrained(tmp_path / "out" / "transformer").eval()
    with safe_open(GOLDEN / "dit.golden.safetensors", "pt") as file:
        case = {key.removeprefix("case1."): file.get_tensor(key) for key in file.keys() if key.startswith("case1.")}  # noqa: SIM118
    assert set(case["timestep"].tolist()) == {500}
    none = case["class_label"] == 10
    assert none.any()
    with torch.inference_mode():
        made = model(
            case["latent"],
            encoder_hidden_states=torch.randn(len(none), 12, 32),
            timestep=case["timestep"],
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ).sample
    assert (made[none] - case["output"][none]).abs().max() < 2e-5


# What must not pass.

Spoil = Callable[[pytest.MonkeyPatch], None]


def _wrong_timestep(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("converter.initialisation.modulation.TIMESTEP", 499)


def _class_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Modulation, "condition", property(lambda self: self.embedded))


def _rows(order: list[int]) -> Spoil:
    def spoil(patch: pytest.MonkeyPatch) -> None:
        table = Modulation.table
        patch.setattr(Modulation, "table", lambda self, index: table(self, index)[order])

    return spoil


def _final_rows(patch: pytest.MonkeyPatch) -> None:
    made = Modulation.final_table.func  # type: ignore[attr-defined]
    patch.setattr(Modulation, "final_table", property(lambda self: made(self).flip(0)))


def _next_block(patch: pytest.MonkeyPatch) -> None:
    table = Modulation.table
    patch.setattr(Modulation, "table", lambda self, index: table(self, (index + 1) % DEPTH))


def _cross_attention_at_work(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(DRAWN, "blocks.{}.cross_attn.proj", DRAWN["blocks.{}.cross_attn.q_linear"])


FAULTS: dict[str, Spoil] = {
    "t = 499": _wrong_timestep,
    "no class embedding": _class_forgotten,
    "shift and scale swapped": _rows([1, 0, 2, 3, 4, 5]),
    "attention and MLP swapped": _rows([3, 4, 5, 0, 1, 2]),
    "gates swapped": _rows([0, 1, 5, 3, 4, 2]),
    "final rows swapped": _final_rows,
    "a block off by one": _next_block,
    "cross attention": _cross_attention_at_work,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_proof_finds_what_is_wrong(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FAULTS[fault](monkeypatch)
    done = init_from_dit(DIT, tmp_path / "init.pth", SMALL, num_attention_heads=HEADS)
    assert not done.proof["passed"]
    assert not done.written
    assert not (tmp_path / "init.pth").exists()


def test_one_wrong_bit_in_a_high_place_is_found(tmp_path: Path) -> None:
    with open_checkpoint(DIT) as checkpoint:
        origin = Origin(survey(checkpoint, {"num_attention_heads": HEADS}), SMALL)
        state: dict[str, Any] = {key: tensor.torch() for key, tensor in origin.state().items()}
        assert prove(origin, state)["passed"]
        state["blocks.1.scale_shift_table"][2, 5] *= 1.001
        assert not prove(origin, state)["passed"]


# The command, its reports, and bad input.


def test_reports(tmp_path: Path) -> None:
    done = init_from_dit(DIT, tmp_path / "a.pth", SMALL, num_attention_heads=HEADS, timesteps=True)
    assert done.proof["nearer"] in ("mean", "paper")
    at = dict(zip(done.proof["timesteps"], done.proof["distances"]["mean"], strict=True))
    assert at[500] < 1e-6 < 0.1 < at[0]
    told = json.loads(render(done, "<dit>", ".json"))
    assert told["distances"] == done.proof["distances"]
    page = render(done, "<script>", ".html")
    assert "<script" not in page
    assert page.count("<svg") == 2
    assert "| block 2 |" in render(done, "dit.pt", ".md")
    with pytest.raises(UsageError, match="--report"):
        render(done, "dit.pt", ".pdf")


def test_the_command(tmp_path: Path, cli: Callable[..., Result]) -> None:
    call = ["--orig_ckpt_path", DIT, "--dump_path", tmp_path / "init.safetensors", "--num_attention_heads", HEADS]
    call += ["--caption_channels", 32]
    done = cli("pixart", "init-from-dit", *call, "--report", tmp_path / "r.md")
    assert (done.returncode, done.stderr) == (0, "")
    assert "proof: at t = 500 it computes what the DiT does, block by block" in done.stdout
    assert "is nearer to the DiT" in done.stdout
    assert (tmp_path / "r.md").is_file()
    made = json.loads(cli("pixart", "init-from-dit", *call, "--overwrite", "--json").stdout)
    assert made["ok"]
    assert made["proof"]["passed"]
    # It is a PixArt like any other.
    converted = converter.convert(tmp_path / "init.safetensors", tmp_path / "out", num_attention_heads=HEADS)
    assert converted.record["family"] == "pixart"


BAD: dict[str, tuple[list[str], int, str]] = {
    "a PixArt": (["--orig_ckpt_path={golden}/sigma-ms.pth"], 3, "this is a PixArt, and a DiT"),
    "no heads": (["--orig_ckpt_path={golden}/dit.pt", "--num_attention_heads="], 2, "--num_attention_heads"),
    "heads that do not divide": (["--orig_ckpt_path={golden}/dit.pt", "--num_attention_heads=5"], 2, "does not divide"),
    "half a patch": (["--orig_ckpt_path={golden}/dit.pt", "--image_size=136"], 2, "not a multiple of 16"),
    "no scale": (["--orig_ckpt_path={golden}/dit.pt", "--interpolation_scale=-1"], 2, "a positive number"),
    "two lengths": (["--orig_ckpt_path={golden}/dit.pt", "--version=alpha", "--caption_tokens=3"], 2, "one of the two"),
    "an odd report": (["--orig_ckpt_path={golden}/dit.pt", "--report=r.pdf"], 2, "its suffix has to be"),
    "nothing there": (["--orig_ckpt_path={golden}/none.pt"], 3, "No such file"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str, tmp_path: Path, cli: Callable[..., Result]) -> None:
    words, code, message = BAD[name]
    words = [word.format(golden=GOLDEN) for word in words]
    given = [] if any(word.startswith("--num_attention_heads") for word in words) else ["--num_attention_heads=4"]
    done = cli("pixart", "init-from-dit", *words, *given, f"--dump_path={tmp_path / 'init.pth'}")
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_finite_is_refused(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    broken = {key: tensor.clone() for key, tensor in state.items()}
    broken["blocks.0.mlp.fc1.bias"][0] = float("nan")
    done = init_from_dit(save(broken, tmp_path / "d.pt"), tmp_path / "i.pth", SMALL, num_attention_heads=HEADS)
    assert not done.written
    assert not (tmp_path / "i.pth").exists()


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    data = bytearray(DIT.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "d.pt").write_bytes(data)
    with pytest.raises(InputError, match="CRC-32"):
        init_from_dit(tmp_path / "d.pt", tmp_path / "i.pth", SMALL, num_attention_heads=HEADS)


def test_every_row_of_a_pixart_comes_from_somewhere() -> None:
    from converter.families.pixart import PIXART

    made = {"t_block.1", "blocks.{}.scale_shift_table", "final_layer.scale_shift_table", "pos_embed"}
    rows = {row.source for row in PIXART.keys.rows if row.targets or row.source in made | DRAWN.keys()}
    assert rows == CARRIED | DRAWN.keys() | made
    assert not CARRIED & (DRAWN.keys() | made)
