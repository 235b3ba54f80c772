"""Latents, step by step, against the recordings of the training code's own samplers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import HEADS
from recordings import NAMES, PARTS, RUNS, Recording, recorded_runs, recording, relative, replay_noise

import converter
from converter.errors import InputError, UsageError
from converter.nets.net import Stage, Staged
from converter.pipelines.denoise import Guidance, denoise, make_scheduler
from converter.pipelines.model import PictureModel, open_picture_model

ORIGINAL, CONVERTED = "original", "converted"


@pytest.fixture(scope="module", params=[(name, side) for name in NAMES for side in (ORIGINAL, CONVERTED)], ids="-".join)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A recorded net, as it was written by the training code, and converted."""
    name, side = request.param
    place, heads = PARTS / f"{name}.pth", {"num_attention_heads": HEADS}
    if side == CONVERTED:
        place = converter.convert(place, tmp_path_factory.mktemp(name) / "out", hyper_parameters=heads).path
    with open_picture_model(place, heads if side == ORIGINAL else {}) as model:
        yield model, recording(name)


def guidance_of(recorded: Recording, model: PictureModel, scale: float, **changed: Any) -> Guidance:
    tensors = recorded.tensors
    height, width = (int(side) for side in tensors["img_hw"][0])
    conditions = model.spec.conditions(model.findings, height, width, float(tensors["aspect_ratio"][0, 0]))
    mask = tensors["caption_mask"]
    given = {"null": tensors["null_caption"], "null_mask": mask, "conditions": conditions} | changed
    return Guidance(tensors["caption"][:, 0], mask, scale=scale, **given)


def latents_of(model: PictureModel, recorded: Recording, run: str, how: str = ORIGINAL, **changed: Any) -> list[Any]:
    name, steps, scale = RUNS[run]
    sampler = model.spec.sampler(model.findings, model.spec.conventions(model.findings, how), name)
    net, guidance = model.net(torch.float32, whole=True), guidance_of(recorded, model, scale, **changed)
    return list(denoise(net, sampler, guidance, recorded.tensors["noise"], steps=steps))


@pytest.mark.parametrize("run", RUNS)
def test_every_recorded_final(opened: Any, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To 2e-5 at most, DPM-Solver++ and SA-Solver within 3 times the original's own rounding, IDDPM within 8 times."""
    model, recorded = opened
    if run not in recorded.runs:
        assert (recorded.name, run) not in recorded_runs()
        return
    replay_noise(monkeypatch, recorded, run)
    steps = latents_of(model, recorded, run)
    error = recorded.error(run, steps[-1][1])
    assert error <= 2e-5
    assert error <= (8 if run.startswith("iddpm") else 3) * recorded.floor(run)
    assert [timestep for timestep, _ in steps] == pytest.approx(recorded.tensors[f"{run}.net_timesteps"].tolist(), 1e-6)


def test_every_step_of_dpm_solver(opened: Any) -> None:
    model, recorded = opened
    steps = latents_of(model, recorded, "dpm14")
    for (_, latents), right in zip(steps, recorded.tensors["dpm14.latents"][1:], strict=True):
        assert relative(latents, right) < 1e-5


@pytest.mark.parametrize(
    ("change", "shares"),
    [
        ("a mask of its own", {"alpha-ms": 0.21, "alpha-fixed": 0.11, "sigma-ms": 0.32}),
        ("diffusers' scheduler", {"alpha-ms": 0.12, "alpha-fixed": 0.099, "sigma-ms": 0.012}),
    ],
)
def test_what_the_conventions_are_worth(opened: Any, change: str, shares: dict[str, float]) -> None:
    """As measured with diffusers' own code: a check that these recordings can tell them apart."""
    model, recorded = opened
    if change == "a mask of its own":
        own = torch.zeros_like(recorded.tensors["caption_mask"][:1])
        own[:, 0] = 1
        steps = latents_of(model, recorded, "dpm14", null_mask=own)
    else:
        steps = latents_of(model, recorded, "dpm14", how="diffusers")
    assert recorded.error("dpm14", steps[-1][1]) == pytest.approx(shares[recorded.name], rel=0.15)


def test_half_precision_that_overflows_is_an_error(opened: Any) -> None:
    model, recorded = opened
    broken = Staged([Stage("output", lambda values, probe: {"output": values["latent"].repeat(1, 2, 1, 1) / 0})])
    how = model.spec.conventions(model.findings, ORIGINAL)
    sampler = model.spec.sampler(model.findings, how, "dpm-solver")
    with pytest.raises(InputError, match=r"timestep 999 the model predicts NaN or infinity in torch\.float16"):
        list(denoise(broken, sampler, guidance_of(recorded, model, 1.0), recorded.tensors["noise"], steps=2,
                     dtype=torch.float16))  # fmt: skip


def test_a_sampler_that_needs_the_variance(opened: Any) -> None:
    model, recorded = opened
    noise_only = Staged([Stage("output", lambda values, probe: {"output": values["latent"]})])
    sampler = model.spec.sampler(model.findings, model.spec.conventions(model.findings, ORIGINAL), "iddpm")
    with pytest.raises(UsageError, match="needs the variance"):
        list(denoise(noise_only, sampler, guidance_of(recorded, model, 1.0), recorded.tensors["noise"], steps=2))


def test_one_step_is_all_of_dmd(opened: Any) -> None:
    model, _ = opened
    sampler = model.spec.sampler(model.findings, model.spec.conventions(model.findings, ORIGINAL), "dmd")
    assert make_scheduler(sampler, 1).timesteps.tolist() == [400]
    with pytest.raises(UsageError, match="`num_inference_steps` 4: PixArt-DMD takes 1 step, not 4"):
        make_scheduler(sampler, 4)


def test_noise_is_the_same_for_a_seed(opened: Any, tmp_path: Path) -> None:
    model, recorded = opened
    sampler = model.spec.sampler(model.findings, model.spec.conventions(model.findings, ORIGINAL), "sa-solver")
    net, guidance = model.net(torch.float32, whole=True), guidance_of(recorded, model, 1.0)
    drawn = [
        list(denoise(net, sampler, guidance, recorded.tensors["noise"], steps=4,
                     generator=torch.Generator().manual_seed(seed)))[-1][1]
        for seed in (1, 1, 2)
    ]  # fmt: skip
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
