"""The net computes what the original's computed, every block of it, and so does diffusers with the amendments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoModel, SanaTransformer2DModel
from makers import GOLDEN, recorded
from sanas import EXACT, GIVEN, NAMES, called, inputs, original, relative, settings
from test_golden import TOLERANCE

import converter
from converter.families import Findings
from converter.models.sana.conventions import AMENDED, CLIP, EPS
from converter.models.sana.net import SanaShape, rms_norm, sana
from converter.models.sana.sana_transformer import SanaExactTransformer2DModel
from converter.nets import Values, Weights


def net(name: str) -> Any:
    said = settings(name)
    same = {field: said[field] for field in ("depth", "hidden_size", "input_size", "num_heads")}
    shape = SanaShape(
        **same,
        linear_heads=said["hidden_size"] // said["linear_head_dim"],
        patch_size=1,
        out_channels=8,
        scale=said["pe_interpolation"] if said["use_pe"] else None,
        timestep_scale=1 / said.get("timestep_norm_scale_factor", 1.0),
        clipped=name == "sana-clip",
    )
    return sana(Weights(original(name), torch.float32), shape)


def test_every_recording_is_tried() -> None:
    assert {path.stem for path in GOLDEN.glob("sana-*.pth")} == {*NAMES, "sana-controlnet"}
    assert [len(recorded(name)[1]) for name in NAMES] == [3, 2, 2, 2, 1]


@pytest.mark.parametrize("name", NAMES)
def test_the_net_computes_what_was_recorded(name: str) -> None:
    for case in recorded(name)[1]:
        stages: dict[str, Values] = {}
        output = net(name).forward(inputs(name, case), stages.__setitem__)
        # Of sana-clip, whose values reach 1e5, to 1e-6 of the largest.
        assert float((output - case["output"]).abs().max()) < TOLERANCE * max(1, float(case["output"].abs().max()) / 20)
        for i in range(settings(name)["depth"]):
            recorded_block = case[f"block{i}"]
            limit = max(TOLERANCE, 1e-6 * float(recorded_block.abs().max())) if name == "sana-clip" else TOLERANCE
            assert float((stages[f"block {i}"]["x"] - recorded_block).abs().max()) < limit


@pytest.fixture(scope="module", params=[False, True], ids=["exact", "stock"])
def either(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[bool, dict[str, Path]]:
    """(whether they are for diffusers' own class, the folder by name)."""
    at = tmp_path_factory.mktemp("sana")
    return request.param, {
        name: converter.convert(GOLDEN / f"{name}.pth", at / name, hyper_parameters=given, stock=request.param).path
        for name, given in GIVEN.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_what_diffusers_loads_computes_what_was_recorded(name: str, either: tuple[bool, dict[str, Path]]) -> None:
    stock, converted = either
    own = name in EXACT and not stock
    place = str(converted[name] / "transformer")
    if own:
        model: Any = AutoModel.from_pretrained(place, trust_remote_code=True)
    else:
        model, info = SanaTransformer2DModel.from_pretrained(place, output_loading_info=True, low_cpu_mem_usage=False)
        assert {kind: list(keys) for kind, keys in info.items() if keys} == {}
    assert type(model).__name__ == (AMENDED.exact if own else AMENDED.stock)
    cases = recorded(name)[1]
    if stock and name in EXACT:  # until the line of the note is run
        assert all(relative(called(name, model.eval(), case), case["output"]) > 1e-6 for case in cases)
        exec(line(name), {"model": model})
    for case in cases:
        assert relative(called(name, model.eval(), case), case["output"]) < 3e-6


def line(name: str) -> str:
    """What the note of a conversion says is to be run."""
    done = converter.inspect(GOLDEN / f"{name}.pth", hyper_parameters=GIVEN[name] | {"exact_attention": True})
    (note,) = [note for note in done["notes"] if "from_pretrained loads: " in note]
    return str(note).partition("from_pretrained loads: ")[2]


def test_the_norm_has_islands_of_float32_as_diffusers_has() -> None:
    from diffusers.models.normalization import RMSNorm

    x = torch.randn(2, 3, 64, dtype=torch.float64)
    theirs = RMSNorm(64, eps=1e-5).double()
    assert torch.equal(rms_norm(x, theirs.weight, 1e-5), theirs(x))


# The class that travels.
SIZES: dict[str, Any] = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1,
    "num_cross_attention_heads": 2, "cross_attention_head_dim": 8, "cross_attention_dim": 16, "caption_channels": 12,
    "sample_size": 4,
}  # fmt: skip
NORMED = {"qk_norm": "rms_norm_across_heads"}


@pytest.mark.parametrize("fields", [{}, NORMED, {"trained_in": "fp16"}, NORMED | {"trained_in": "fp16"}])
def test_the_class_is_the_stock_one_with_its_amendments(fields: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    ours = SanaExactTransformer2DModel(**SIZES, **fields).eval()
    if "trained_in" in fields:
        with torch.no_grad():
            ours.transformer_blocks[0].attn1.to_out[0].weight.mul_(1e6)  # so that the clip is reached
    theirs = SanaTransformer2DModel(**SIZES, **{k: v for k, v in fields.items() if k != "trained_in"}).eval()
    theirs.load_state_dict(ours.state_dict())
    amended = SanaTransformer2DModel(**theirs.config).eval()
    amended.load_state_dict(ours.state_dict())
    statements = [EPS.statement] * ("qk_norm" in fields) + [CLIP.statement] * ("trained_in" in fields)
    for block in amended.transformer_blocks:
        for statement in statements:
            exec(statement, {"block": block})
    latent, caption = torch.randn(2, 4, 4, 4), torch.randn(2, 5, 12)
    with torch.no_grad():
        one, other, mended = (
            model(latent, caption, torch.tensor([1, 900])).sample for model in (ours, theirs, amended)
        )
    assert torch.equal(one, mended)
    assert torch.equal(one, other) == (not fields)
    # It is saved with its file and its fields, and loaded again without this package's help.
    ours.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(str(tmp_path), trust_remote_code=True).eval()
    assert again.config.trained_in == fields.get("trained_in", "bf16")
    with torch.no_grad():
        assert torch.equal(again(latent, caption, torch.tensor([1, 900])).sample, one)


def test_the_class_knows_two_precisions() -> None:
    with pytest.raises(ValueError, match="trained_in 'fp8': 'fp16' or 'bf16'"):
        SanaExactTransformer2DModel(**SIZES, trained_in="fp8")


def test_a_model_that_needs_nothing_has_no_line() -> None:
    found = Findings({})
    found.file("qk_norm", False, "")
    found.given_or_assumed("trained_in", "bf16")
    assert AMENDED.line(found) == ""
    assert AMENDED.class_name(found) == AMENDED.stock
