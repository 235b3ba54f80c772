"""SANA compared: a clean conversion of each kind passes, every wrong one fails, by each phase on its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from makers import GOLDEN, Result, save
from safetensors.torch import load_file, save_file
from sanas import EXACT, GIVEN, NAMES, drawn, original

import converter
from converter.conversion.analysis import analyse
from converter.models.sana.cases import cases
from converter.models.sana.conventions import AMENDED
from converter.models.sana.parity import PARITY
from converter.parity import check
from converter.reports.report import FAIL, PASS, Report

FILE = "diffusion_pytorch_model.safetensors"


def verdicts(report: Report) -> dict[str, str]:
    return {phase.name: phase.verdict for phase in report.phases}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_same_function(name: str, folders: dict[str, Path]) -> None:
    report = check(GOLDEN / f"{name}.pth", folders[name], hyper_parameters=GIVEN[name], profile="full")
    assert report.verdict == PASS, report.reason
    function = report.phase("function")
    assert function
    exact = [one.value for one in function.checks if one.statistic == "float64 relative L2"]
    assert exact
    assert max(exact) < 1e-15  # with the islands of float32 that diffusers has


def test_a_teacher_of_sprint_is_its_own_function(tmp_path: Path) -> None:
    """Of the keys of a SANA-1.5; its timesteps are scaled, and none is cut to its whole part."""
    path, given = GOLDEN / "sana-1.5.pth", GIVEN["sana-1.5"] | {"timestep_scale": 0.001}
    folder = converter.convert(path, tmp_path / "out", hyper_parameters=given).path
    assert check(path, folder, hyper_parameters=given).verdict == PASS
    assert check(path, folder, hyper_parameters=GIVEN["sana-1.5"]).verdict == FAIL


def small(name: str, place: Path) -> Path:
    """Of one block, which takes half the time."""
    return save({k: v for k, v in original(name).items() if "blocks.1." not in k}, place)


FAULTS: dict[str, set[str]] = {
    "sana-1024": {"positions added", "1 heads for 2", "2 cross heads for 4", "clipped, or not"},
    "sana-4k": {"positions left out", "scale 1 for 2", "1 heads for 3", "twice the sample size"},
    "sana-sprint": {
        "timestep and guidance embedders swapped",
        "guidance unscaled",
        "timestep from 0 to 1",
        "attn1.norm_q.weight and attn1.norm_k.weight of block 0 swapped",
    },
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_deliberate_fault_is_detected(name: str, tmp_path: Path) -> None:
    path, given = small(name, tmp_path / "a.pth"), dict(GIVEN[name])
    if name == "sana-1024":  # without the huge values of sana-clip, beside which the caption hardly counts
        given["trained_in"] = "fp16"
    converter.convert(path, tmp_path / "out", hyper_parameters=given)
    report = check(path, tmp_path / "out", self_test="full", dtype=("float32", "bfloat16"), hyper_parameters=given)
    assert report.verdict == PASS, report.reason
    phase = report.phase("self-test")
    assert phase
    assert {one.what for one in phase.checks} >= FAULTS[name]


WRONG: list[tuple[str, str, dict[str, Any]]] = [
    ("sana-1024", "linear heads halved", {"num_attention_heads": 1, "attention_head_dim": 64}),
    ("sana-1024", "cross heads halved", {"num_cross_attention_heads": 2, "cross_attention_head_dim": 32}),
    ("sana-1024", "positions added", {"interpolation_scale": 1.0}),
    ("sana-4k", "positions left out", {"interpolation_scale": None}),
    ("sana-4k", "scale 1 for 2", {"interpolation_scale": 1.0}),
    ("sana-clip", "not clipped", {"trained_in": "bf16"}),
]


ODD = {"num_attention_heads": 3, "num_cross_attention_heads": 5, "trained_in": "bf16"}


def test_an_odd_width_is_as_good_as_any_where_there_are_no_positions(tmp_path: Path) -> None:
    """Of it, several MLP ratios are the same model; and a null caption of one token does not limit what is compared."""
    path = save(drawn(hidden_size=45, tokens=1), tmp_path / "a.pth")
    folder = converter.convert(path, tmp_path / "out", hyper_parameters=ODD).path
    written = json.loads((folder / "transformer/config.json").read_text())["mlp_ratio"]
    assert written != 2.5
    for ratio, verdict in ((written, PASS), (2.5, PASS), (2.6, FAIL)):
        place = spoilt(folder, tmp_path / str(ratio), mlp_ratio=ratio)
        report = check(path, place, hyper_parameters=ODD, self_test="full")
        assert report.verdict == verdict, report.reason
    config = json.loads(
        (converter.convert(tmp_path / "2.5", tmp_path / "b").path / "transformer/config.json").read_text()
    )
    assert config["mlp_ratio"] == 2.5  # as its source has it
    path = save({k: v for k, v in drawn(hidden_size=45).items() if k != "pos_embed"}, tmp_path / "lacking.pth")
    with pytest.raises(converter.InputError, match="size 45: sines and cosines on two axes need a multiple of 4"):
        converter.convert(path, tmp_path / "x", hyper_parameters=ODD | {"positions": 1, "image_size": 256})


def test_a_clip_is_wrong_where_the_original_has_none(folders: dict[str, Path], tmp_path: Path) -> None:
    """Whatever the class: nothing that the nets are run on need come near it."""
    path, given = GOLDEN / "sana-1024.pth", GIVEN["sana-1024"]
    clipped = converter.convert(path, tmp_path / "clipped", hyper_parameters=given | {"trained_in": "fp16"}).path
    for folder, said in ((clipped, "bf16"), (folders["sana-1024"], "fp16")):
        report = check(path, folder, hyper_parameters=given | {"trained_in": said})
        assert report.verdict == FAIL
        assert "trained_in" in report.reason
    # Of diffusers' own class, a field that it does not have says nothing.
    stray = spoilt(folders["sana-1024"], tmp_path / "stray", trained_in="fp16")
    with pytest.raises(converter.UsageError, match="`trained_in` is needed"):
        check(path, stray, hyper_parameters={"num_cross_attention_heads": 4})


def spoilt(folder: Path, place: Path, **fields: Any) -> Path:
    """The same model with other fields in its config."""
    place.mkdir(exist_ok=True)
    for file in (folder / "transformer").iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | fields))
    return place


@pytest.mark.parametrize(("name", "fault", "fields"), WRONG, ids=[fault for _, fault, _ in WRONG])
def test_a_wrong_config_is_noticed_by_the_audit_and_by_the_nets(
    name: str, fault: str, fields: dict[str, Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    place = spoilt(folders[name], tmp_path / "a", **fields)
    report = check(GOLDEN / f"{name}.pth", place, hyper_parameters=GIVEN[name])
    assert report.verdict == FAIL
    found = verdicts(report)
    assert (found["weights"], found["config"], found["function"]) == (PASS, FAIL, FAIL), fault


@pytest.mark.parametrize(("name", "field", "value"), [
    ("sana-sprint", "timestep_scale", 0.002), ("sana-sprint", "guidance_embeds_scale", 0.2),
    ("sana-1024", "sample_size", 16),
])  # fmt: skip
def test_what_only_pipelines_read_is_audited(
    name: str, field: str, value: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    report = check(
        GOLDEN / f"{name}.pth", spoilt(folders[name], tmp_path / "a", **{field: value}), hyper_parameters=GIVEN[name]
    )
    found = verdicts(report)
    assert (report.verdict, found["config"], found["function"]) == (FAIL, FAIL, PASS)
    assert field in report.reason


def test_swapped_embedders_are_noticed(folders: dict[str, Path], tmp_path: Path) -> None:
    place = spoilt(folders["sana-sprint"], tmp_path / "a")
    state = load_file(place / FILE)
    one, other = "timestep_embedder", "guidance_embedder"
    swapped = {key.replace(one, "#").replace(other, one).replace("#", other): tensor for key, tensor in state.items()}
    save_file(swapped, place / FILE, metadata={"format": "pt"})
    report = check(GOLDEN / "sana-sprint.pth", place, hyper_parameters=GIVEN["sana-sprint"])
    found = verdicts(report)
    assert (found["weights"], found["function"]) == (FAIL, FAIL)


@pytest.mark.parametrize("name", EXACT)
def test_diffusers_own_class_needs_a_line_after_loading(name: str, tmp_path: Path, cli: Callable[..., Result]) -> None:
    """The line of the note, and no other, makes it pass."""
    path, given = GOLDEN / f"{name}.pth", GIVEN[name]
    folder = converter.convert(path, tmp_path / "stock", hyper_parameters=given, stock=True).path
    report = check(path, folder, hyper_parameters=given)
    assert report.verdict == FAIL
    function = report.phase("function")
    assert function
    assert "for block in model.transformer_blocks: block." in function.words
    assert "--exact_attention true compares that" in function.words
    found = verdicts(report)
    assert found["config"] == (FAIL if name == "sana-clip" else PASS)  # whose clip few inputs reach
    report = check(path, folder, hyper_parameters=given | {"exact_attention": True})
    assert report.verdict == PASS, report.reason
    flags = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    done = cli("pixart", "parity", path, folder, *flags, "--exact_attention", "true")
    assert done.returncode == 0
    assert "this was run on what from_pretrained loads: for block in " in done.stdout


def test_positions_and_scales_are_never_taken_from_the_converted_model(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Where the original lacks its table: what it is compared with must not say what it should be."""
    path = save({k: v for k, v in original("sana-1.5").items() if k != "pos_embed"}, tmp_path / "a.pth")
    given: dict[str, Any] = {"num_cross_attention_heads": 4, "image_size": 256}
    alone = spoilt(folders["sana-1.5"], tmp_path / "alone")
    with pytest.raises(converter.UsageError, match=r"`positions` is needed: .*`timestep_scale` is needed"):
        check(path, alone, hyper_parameters=given)
    told = given | {"positions": "none", "timestep_scale": 1.0}
    report = check(path, alone, hyper_parameters=told)
    assert report.verdict == PASS
    words = "image_size = 256, positions = none, num_cross_attention_heads = 4, timestep_scale = 1.0"
    assert f"stated, and shown by nothing in the original: {words}" in report.notes
    assert check(path, alone, hyper_parameters=told | {"positions": 1}).verdict == FAIL


def findings(name: str) -> Any:
    with converter.open_checkpoint(GOLDEN / f"{name}.pth") as checkpoint:
        return analyse(checkpoint, GIVEN[name]).findings


def test_inputs_are_scaled_as_pipelines_do_it() -> None:
    for name, most in (("sana-1024", 1000), ("sana-sprint", 1)):
        found = findings(name)
        made = cases(found, "standard", {})
        timesteps = [float(t) for case in made for t in case.arrays["timestep"]]
        assert max(timesteps) == most
        if most == 1000:  # whole ones: of others the original takes the whole part
            assert all(t == int(t) for t in timesteps)
            assert not any("guidance" in case.arrays for case in made)
        else:
            assert all(case.arrays["guidance"].tolist() == pytest.approx([0.45, 0.1]) for case in made)
        assert [case.name for case in made][-1] == "native"
        assert any("caption_mask" not in case.arrays for case in made)
        grids = {case.arrays["latent"].shape[2:] for case in made}
        assert len(grids) >= 4
        assert any(height != width for height, width in grids)


def test_the_line_is_shown_only_where_it_is_needed() -> None:
    for name in NAMES:
        fix = PARITY.fix(findings(name), {})
        assert (fix is not None) == (name in EXACT)
        assert PARITY.fix(findings(name), {"_class_name": AMENDED.exact}) is None
