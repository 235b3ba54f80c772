"""The golden DiT: converted whole, byte for byte; and stock diffusers computes its function with one line more."""

from __future__ import annotations

import json
from argparse import Namespace
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from makers import GOLDEN, convert, dit, dit_keyed, folder, recorded, save
from safetensors.torch import load_file, save_file
from test_golden import TOLERANCE, WEIGHTS

import converter
from converter.families import Findings
from converter.models.dit.dit_transformer import DiTExactTransformer2DModel
from converter.models.dit.table import AMENDED

DEPTH = 3
EXACT_LINE = AMENDED.line(Findings({}))
STATE: dict[str, torch.Tensor] = torch.load(GOLDEN / "dit.pt", weights_only=True)
CASES = recorded("dit")[1]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden") / "dit"
    convert(GOLDEN / "dit.pt", folder, stock=True)
    return folder


def load(place: Path) -> Any:
    """The model as stock diffusers loads it, nothing missing or left over."""
    model, info = DiTTransformer2DModel.from_pretrained(
        place, subfolder="transformer", output_loading_info=True, low_cpu_mem_usage=False
    )
    assert {name: list(keys) for name, keys in info.items() if keys} == {}
    return model.eval()


def exact(model: Any) -> Any:
    exec(EXACT_LINE, {"model": model})
    return model


def run(model: Any, case: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(case["latent"], timestep=case["timestep"], class_labels=case["class_label"]).sample
    return output


def relative(output: torch.Tensor, truth: torch.Tensor) -> float:
    return float((output - truth).norm() / truth.norm())


def holds(place: Path, state: dict[str, torch.Tensor]) -> bool:
    """Whether a converted folder holds the tensors of a DiT of two blocks, bit for bit."""
    made, by_hand = load_file(place / WEIGHTS), dit_keyed(state, 2)
    return made.keys() == by_hand.keys() and all(torch.equal(made[key], by_hand[key]) for key in by_hand)


def test_every_recorded_output_is_reproduced_with_the_line_that_the_note_gives(out: Path) -> None:
    model = exact(load(out))
    assert len(CASES) == 2
    for case in CASES:
        assert float((run(model, case) - case["output"]).abs().max()) < TOLERANCE
        assert relative(run(model, case), case["output"]) < 3e-7


def test_the_class_that_travels_needs_no_line(tmp_path: Path) -> None:
    done = convert(GOLDEN / "dit.pt", tmp_path / "out")
    assert not any(EXACT_LINE in note for note in done.record["notes"])
    model = DiTExactTransformer2DModel.from_pretrained(tmp_path / "out/transformer").eval()
    for case in CASES:
        assert float((run(model, case) - case["output"]).abs().max()) < TOLERANCE


def test_without_it_stock_diffusers_is_another_function(out: Path) -> None:
    """If this fails diffusers has changed: then neither the note nor the flag is needed any more."""
    model = load(out)
    assert {block.norm1.emb.time_proj.downscale_freq_shift for block in model.transformer_blocks} == {1}
    by_timestep = {
        int(case["timestep"][i]): relative(run(model, case)[i], case["output"][i])
        for case in CASES
        for i in range(len(case["timestep"]))
    }
    assert by_timestep[999] == pytest.approx(0.216, abs=0.001)
    assert by_timestep[500] == pytest.approx(0.17, abs=0.02)
    assert by_timestep[10] == pytest.approx(0.0043, abs=0.0002)


def test_no_weights_could_make_up_for_it() -> None:
    """The best linear map from the one set of sinusoids to the other, over all timesteps, leaves most of the way."""
    t, j = torch.arange(1000.0, dtype=torch.float64)[:, None], torch.arange(128.0, dtype=torch.float64)

    def sinusoids(last: int) -> torch.Tensor:
        angles = t * 10000 ** (-j / last)
        return torch.cat([angles.cos(), angles.sin(), torch.ones_like(t)], dim=1)

    ours, theirs = sinusoids(128), sinusoids(127)
    best = theirs @ torch.linalg.lstsq(theirs, ours, driver="gelsd").solution
    assert float((best - ours).square().mean().sqrt()) > 0.1
    assert float((theirs - ours).square().mean().sqrt()) == pytest.approx(0.456, abs=0.001)


def test_the_stock_default_of_the_norms_is_not_the_originals(out: Path) -> None:
    model = exact(load(out))
    other = exact(DiTTransformer2DModel.from_config(dict(model.config) | {"norm_eps": 1e-5}).eval())
    other.load_state_dict(model.state_dict())
    wide = [case | {"latent": case["latent"].double()} for case in CASES]
    errors = [[relative(run(m.double(), case), case["output"]) for case in wide] for m in (model, other)]
    assert all(right < 3e-7 < wrong for right, wrong in zip(*errors, strict=True)), errors


def test_the_config_is_what_the_original_net_was_made_of(out: Path) -> None:
    settings = recorded("dit")[0]
    config = json.loads((out / "transformer/config.json").read_text())
    wanted = {
        "_class_name": "DiTTransformer2DModel",
        "num_layers": settings["depth"],
        "num_attention_heads": settings["num_heads"],
        "attention_head_dim": settings["hidden_size"] // settings["num_heads"],
        "sample_size": settings["input_size"],
        "patch_size": settings["patch_size"],
        "num_embeds_ada_norm": settings["num_classes"],
        "in_channels": 4,
        "out_channels": 8,
        "norm_eps": 1e-6,
    }
    assert {key: config[key] for key in wanted} == wanted
    written = {key for key in config if not key.startswith("_")}
    assert written == set(signature(DiTTransformer2DModel.__init__).parameters) - {"self"}


def test_the_weights_are_the_bytes_that_safetensors_writes(out: Path, tmp_path: Path) -> None:
    save_file(dit_keyed(STATE, DEPTH), tmp_path / "by-safetensors", metadata={"format": "pt"})
    assert (out / WEIGHTS).read_bytes() == (tmp_path / "by-safetensors").read_bytes()
    assert not (out / "original_extras.safetensors").exists()
    loaded, by_hand = load(out).state_dict(), dit_keyed(STATE, DEPTH)
    assert loaded.keys() == by_hand.keys()
    assert all(torch.equal(loaded[key], by_hand[key]) for key in by_hand)


def test_the_record_says_that_a_tensor_was_copied_and_proves_every_copy(out: Path) -> None:
    record = json.loads((out / "conversion.json").read_text())
    rows = {row["source"]: row for row in record["plan"]}
    assert {key for key, row in rows.items() if row["operation"] == "copy"} == {
        *(f"t_embedder.mlp.{i}.{part}" for i in (0, 2) for part in ("weight", "bias")),
        "y_embedder.embedding_table.weight",
    }
    row = rows["y_embedder.embedding_table.weight"]
    assert len(row["targets"]) == DEPTH
    assert list(row["digests"]) == row["targets"]
    assert len(set(row["digests"].values())) == 1
    assert rows["pos_embed"] | {"operation": "recompute", "reproduced": True} == rows["pos_embed"]
    assert any(EXACT_LINE in note for note in record["notes"])


def test_the_way_back_of_the_converted_file(out: Path) -> None:
    keys = converter.families.families()["dit"].keys
    back = keys.inverse(load_file(out / WEIGHTS), {"pos_embed": STATE["pos_embed"]})
    assert back.keys() == STATE.keys()
    assert all(torch.equal(back[key], STATE[key]) for key in STATE)


def test_the_training_file_of_the_original_code(tmp_path: Path) -> None:
    raw, ema = dit(hidden_size=24), dit(hidden_size=24, seed=1)
    content = {"model": raw, "ema": ema, "opt": {"state": {}}, "args": Namespace(model="DiT-XL/2")}
    path = save(content, tmp_path / "0.pt")
    for weights, state in ((None, raw), ("raw", raw), ("ema", ema)):
        done = convert(path, tmp_path / str(weights), weights=weights, family="dit")
        assert holds(done.path, state)
        assert any("--weights ema" in note for note in done.notes) == (weights is None)


@pytest.mark.parametrize("sizes", [{"patch_size": 4}, {"patch_size": 8, "learn_sigma": False}, {"class_rows": 1}])
def test_other_sizes_load(sizes: dict[str, Any], tmp_path: Path) -> None:
    state = dit(**sizes)
    convert(save(state, tmp_path / "a.pt"), tmp_path / "out")
    loaded, by_hand = load(tmp_path / "out").state_dict(), dit_keyed(state, 2)
    assert all(torch.equal(loaded[key], by_hand[key]) for key in by_hand)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_moved_as_it_is(dtype: torch.dtype, tmp_path: Path) -> None:
    state = dit(dtype=dtype)
    assert holds(convert(save(state, tmp_path / "a.pt"), tmp_path / "out").path, state)


@pytest.mark.parametrize(
    "change", [lambda table: table.roll(1, dims=1), lambda table: torch.cat([table[:, :-1], table[:, -1:] + 1], dim=1)]
)
def test_a_table_of_positions_that_diffusers_does_not_compute_is_refused(change: Any, tmp_path: Path) -> None:
    state = dit()
    path = save(state | {"pos_embed": change(state["pos_embed"])}, tmp_path / "a.pt")
    with pytest.raises(converter.InputError, match="no sin-cos table"):
        convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_copies_of_views_that_share_one_storage_or_are_laid_out_anew(tmp_path: Path) -> None:
    state = dit()
    both = torch.cat([state["t_embedder.mlp.2.weight"], state["t_embedder.mlp.2.weight"] * 2])
    state["t_embedder.mlp.2.weight"] = both[:24]
    state["y_embedder.embedding_table.weight"] = state["y_embedder.embedding_table.weight"].T.contiguous().T
    assert holds(convert(save(state, tmp_path / "a.pt"), tmp_path / "out").path, state)


def test_a_diffusers_folder_is_taken_too(out: Path, tmp_path: Path) -> None:
    config = json.loads((out / "transformer/config.json").read_text())
    source = folder(dit_keyed(STATE, DEPTH), tmp_path / "source", config, shards=3)
    converter.convert(source, tmp_path / "again")
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (out / WEIGHTS).read_bytes()
    assert (tmp_path / "again/transformer/config.json").read_bytes() == (out / "transformer/config.json").read_bytes()


def test_the_plan_in_a_dry_run_folds_the_copies(tmp_path: Path, cli: Any) -> None:
    flags = ["--orig_ckpt_path", GOLDEN / "dit.pt", "--dump_path", tmp_path / "out", "--num_attention_heads=4"]
    result = cli("convert-pixart", *flags, "--dry_run")
    line = "y_embedder.embedding_table.weight [11, 48] -> copy: transformer_blocks.{0..2}.norm1.emb.class_embedder"
    assert line in result.stdout
    assert cli("convert-pixart", *flags, "--family=dit", "--dry_run").stdout == result.stdout
    assert cli("convert-pixart", *flags, "--family=pixart").returncode == 3
