"""Image parity: pictures of both nets against the recordings, what stock conventions change against what was measured
with diffusers' own code, and faults."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from makers import HEADS, Result
from parts import PARTS, TEXT, VAE, assemble, vae_of
from PIL import Image
from recordings import NAMES, recording
from safetensors.torch import load_file, save_file

from converter.conversion.pairs import Pair
from converter.errors import InputError, UsageError
from converter.jobs.images import ImageComparison
from converter.jobs.picture_request import ImageRequest
from converter.nets.net import Net, Stage, Staged
from converter.nets.pipeline_spec import DIFFUSERS, ORIGINAL
from converter.pipelines.decode import Decoding
from converter.pipelines.denoise import Guidance
from converter.pipelines.image_parity import Chain, changes, image_parity
from converter.pipelines.model import open_picture_model
from converter.reports.report import FAIL, INCONCLUSIVE, NOT_RUN, PASS, Phase, Report

Cli = Callable[..., Result]
MASK, NULL, RATIO = "a mask of its own", "an encoded empty prompt", "the aspect ratio"
USUAL, WHOLE, BITS, ALL = "the usual scheduler", "timesteps in whole numbers", "8 bits", "all of these"
# As measured with diffusers' own code, 14 steps.
MEASURED = {
    "alpha-ms": {USUAL: 0.12, WHOLE: 0.010, MASK: 0.21, RATIO: 0.0008},
    "alpha-fixed": {USUAL: 0.099, WHOLE: 0.0095, MASK: 0.11},
    "sigma-ms": {USUAL: 0.012, WHOLE: 0.0089, MASK: 0.32},
}


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each recorded net as a pipeline; the fixed class with a text encoder."""
    root = tmp_path_factory.mktemp("pipelines")
    for name in NAMES:
        assemble(name, root / name, **(TEXT if name == "alpha-fixed" else {}))
    return {name: root / name for name in NAMES}


def inputs(name: str, folder: Path) -> dict[str, str]:
    """Files with what a recording began with. The null caption of alpha is in the checkpoint."""
    tensors, batch = recording(name).tensors, len(recording(name).tensors["noise"])
    embeds = {"prompt_embeds": tensors["caption"][:, 0], "prompt_attention_mask": tensors["caption_mask"]}
    if name.startswith("sigma"):
        embeds["negative_prompt_embeds"] = tensors["null_caption"].repeat(batch, 1, 1)
        embeds["negative_prompt_attention_mask"] = tensors["caption_mask"].clone()
    save_file({key: tensor.contiguous() for key, tensor in embeds.items()}, folder / "embeds.safetensors")
    save_file({"latents": tensors["noise"]}, folder / "noise.safetensors")
    return {"prompt_embeds": str(folder / "embeds.safetensors"), "latents": str(folder / "noise.safetensors")}


def compared(
    name: str, folder: Path, steps: int, function: str = PASS, **request: Any
) -> tuple[Report, Phase, np.ndarray | None]:
    """The report of a comparison that was made, with the phase that is added to it."""
    phases = [Phase("weights", PASS, ""), Phase("config", PASS, ""), Phase("function", function, "as it was")]
    report = Report("", "", phases=[*phases, Phase("self-test", PASS, "")])
    with ExitStack() as stack:
        pair = Pair(str(PARTS / f"{name}.pth"), str(folder))
        comparison = ImageComparison(stack, pair, ImageRequest(num_inference_steps=steps, **request))
        pictures = comparison.add_to(report)
    return report, report.phases[-1], pictures


@pytest.fixture(scope="module", params=NAMES)
def run(
    request: pytest.FixtureRequest, pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Phase, np.ndarray]:
    """The 14 steps of a recording, with both nets."""
    name: str = request.param
    report, phase, pictures = compared(name, pipelines[name], 14, **inputs(name, tmp_path_factory.mktemp(name)))
    assert pictures is not None
    assert report.verdict == PASS
    return name, phase, pictures


def test_both_nets_stay_at_the_floor_that_was_recorded(run: Any) -> None:
    name, phase, _ = run
    assert (phase.name, phase.verdict) == ("images", PASS)
    times = recording(name).tensors["dpm14.net_timesteps"].tolist()
    assert [step["timestep"] for step in phase.detail["steps"]] == pytest.approx(times, 1e-6)
    last = phase.detail["steps"][-1]
    assert last["error"] < 3 * last["floor"]
    assert 1 / 2 < last["floor"] / recording(name).floor("dpm14") < 2
    assert phase.words.startswith("after 14 steps the latents are ")
    assert "of the picture's values differ, by at most 1 of 255" in phase.words


def test_the_pictures_are_those_that_were_recorded(run: Any) -> None:
    name, phase, pictures = run
    recorded = load_file(PARTS / "images.safetensors")[f"{name}.dpm14.image"].numpy().astype(int)
    height, width = recorded.shape[1:3]
    assert pictures.shape == (height, 3 * width + 16, 3)
    left, middle, right = (pictures[:, start : start + width].astype(int) for start in (0, width + 8, 2 * width + 16))
    assert min(np.abs(left - sample).max() for sample in recorded) <= 1
    shown = phase.detail["pictures"]
    times = int(shown[2]["title"].removeprefix("difference × "))
    assert (np.abs(left - middle) * times == right).all()
    small = [np.asarray(Image.open(io.BytesIO(base64.b64decode(picture["png"])))) for picture in shown]
    assert [(one == other).all() for one, other in zip(small, (left, middle, right), strict=True)] == [True] * 3


def test_stock_conventions_change_what_was_measured(run: Any) -> None:
    name, phase, _ = run
    (table,) = phase.detail["tables"]
    rows = {row[0]: row[1:] for row in table["rows"]}
    assert list(rows)[-1].startswith(ALL)
    assert len(rows) == len(MEASURED[name]) + 2
    for words, measured in MEASURED[name].items():
        (share,) = (row[0] for key, row in rows.items() if key.startswith(words))
        assert share == pytest.approx(measured, rel=0.2), words
    (bits,) = (row for key, row in rows.items() if key.startswith(BITS))
    assert bits[0] == 0
    assert bits[1] < 0.1  # % of the picture's values
    together = rows[list(rows)[-1]]
    assert together[0] == pytest.approx(np.hypot(MEASURED[name][USUAL], MEASURED[name][MASK]), rel=0.3)


def test_the_command(pipelines: dict[str, Path], cli: Cli, tmp_path: Path) -> None:
    """From a prompt, with everything in the pipeline, to all reports and the pictures beside them."""
    reports = [tmp_path / f"out.{suffix}" for suffix in ("json", "html", "md", "xml")]
    sides = ["--orig_ckpt_path", PARTS / "alpha-fixed.pth", "--converted_path", pipelines["alpha-fixed"]]
    written = [word for report in reports for word in ("--report", report)]
    done = cli("pixart", "parity", *sides, "--images", "--num_inference_steps", 2, *written)
    assert done.returncode == 0, done.stderr
    assert "  images      PASS          after 2 steps the latents are " in done.stdout
    content = json.loads(reports[0].read_text())
    phase = content["phases"][-1]
    assert (content["verdict"], phase["name"], len(phase["detail"]["steps"])) == (PASS, "images", 2)
    rows = [row[0] for row in phase["detail"]["tables"][0]["rows"]]
    assert any(words.startswith(NULL) for words in rows)
    page = reports[1].read_text()
    assert page.count('<img src="data:image/png;base64,') == 3
    assert 'alt="converted: drawn by the converted net"' in page
    assert "What stock conventions change" in reports[2].read_text()
    assert '<testcase classname="parity.alpha-fixed.images" name="images" />' in reports[3].read_text()
    assert [path.name for path in tmp_path.glob("*.png")] == ["out.images.png"]
    with Image.open(tmp_path / "out.images.png") as picture:
        assert picture.size == (3 * 128 + 16, 128)


def test_a_fault_is_seen_and_its_step_named(pipelines: dict[str, Path], tmp_path: Path) -> None:
    folder = converted_with(pipelines["alpha-ms"], tmp_path, swapped)
    report, phase, pictures = compared("alpha-ms", folder, 2, FAIL, vae=str(VAE), **inputs("alpha-ms", tmp_path))
    assert (phase.verdict, report.verdict) == (FAIL, FAIL)
    assert phase.words.startswith("they diverge at step 1 (timestep 999): 0.0")
    assert [step["step"] for step in phase.detail["steps"]] == [1, 2], "the pictures are drawn to the end"
    assert phase.detail["steps"][0]["error"] > 1e-2
    assert pictures is not None


def test_a_net_that_gives_nan_has_no_picture(pipelines: dict[str, Path], tmp_path: Path) -> None:
    def broken(state: dict[str, torch.Tensor]) -> None:
        state["proj_out.bias"][:] = torch.nan

    folder = converted_with(pipelines["alpha-ms"], tmp_path, broken)
    _, phase, pictures = compared("alpha-ms", folder, 2, FAIL, vae=str(VAE), **inputs("alpha-ms", tmp_path))
    assert (phase.verdict, pictures) == (FAIL, None)
    assert phase.words == "they diverge at step 1 (timestep 999): inf of the latents"


def test_nets_that_were_not_run(pipelines: dict[str, Path], tmp_path: Path) -> None:
    _, phase, pictures = compared("alpha-ms", pipelines["alpha-ms"], 2, NOT_RUN, **inputs("alpha-ms", tmp_path))
    assert (phase.verdict, phase.words, pictures) == (NOT_RUN, "as it was", None)


def swapped(state: dict[str, torch.Tensor]) -> None:
    for kind in ("weight", "bias"):
        q, k = (f"transformer_blocks.1.attn1.to_{part}.{kind}" for part in "qk")
        state[q], state[k] = state[k], state[q]


def converted_with(pipeline: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """The transformer of a pipeline with other weights."""
    (source,) = (pipeline / "transformer").glob("*.safetensors")
    state, target = load_file(source), folder / "changed" / "transformer"
    change(state)
    target.mkdir(parents=True)
    save_file(state, target / source.name, {"format": "pt"})
    (target / "config.json").write_bytes((pipeline / "transformer" / "config.json").read_bytes())
    return target.parent


# Without a pipeline.


def chains(name: str = "alpha-fixed") -> tuple[Chain, Chain]:
    """Two steps from a recording's noise, by both conventions."""
    tensors = recording(name).tensors
    mask, null = tensors["caption_mask"], tensors["null_caption"]
    with open_picture_model(PARTS / f"{name}.pth", {"num_attention_heads": HEADS}) as model:
        ours, theirs = (
            model.spec.sampler(model.findings, model.spec.conventions(model.findings, how), "dpm-solver")
            for how in (ORIGINAL, DIFFUSERS)
        )
    chain = Chain(
        sampler=ours,
        guidance=Guidance(tensors["caption"][:, 0], mask, null, mask, scale=4.5),
        start=lambda: (tensors["noise"], torch.Generator()),
        steps=2,
        vae=vae_of(name),
        decoding=Decoding(scaling_factor=0.18215),
    )
    return chain, replace(chain, sampler=theirs)


def test_only_what_differs_is_tried_and_each_by_itself() -> None:
    chain, stock = chains()
    assert [words.split(",")[0] for words, _ in changes(chain, chain)] == [WHOLE, f"{ALL}: the stock pipeline"]
    prompt, mask = stock.guidance.prompt + 1, torch.ones_like(stock.guidance.mask)
    guidance = replace(stock.guidance, prompt=prompt, mask=mask, conditions={"aspect_ratio": [4 / 3]})
    stock = replace(stock, guidance=guidance, decoding=Decoding(scaling_factor=0.13025, half_up=False))
    others = {words: other for words, other in changes(chain, stock)}
    assert len(others) == 7
    assert others.pop(next(words for words in others if words.startswith(ALL))) is stock
    cleaned = next(other for words, other in others.items() if words.startswith("the prompt cleaned"))
    assert cleaned.guidance.prompt is prompt
    assert cleaned.guidance.mask is cleaned.guidance.null_mask is mask
    factor = next(other for words, other in others.items() if words.startswith("the scaling factor"))
    assert factor == replace(chain, decoding=Decoding(scaling_factor=0.13025))
    changed = [
        (other.sampler != chain.sampler) + (other.guidance != chain.guidance) + (other.decoding != chain.decoding)
        for words, other in others.items()
        if not words.startswith("the prompt")
    ]
    assert changed == [1] * len(changed)


def test_an_original_that_float32_cannot_follow_is_inconclusive() -> None:
    def coarse(precision: str) -> Net:
        factor = 1.5 if precision == "float32" else 1.0
        return Staged([Stage("all", lambda values, probe: {"output": values["latent"].repeat(1, 2, 1, 1) * factor})])

    chain, stock = chains()
    phase, pictures = image_parity(coarse, coarse, chain, stock, sampler="two steps")
    assert (phase.verdict, phase.words[:36]) == (INCONCLUSIVE, "the original's own float32 leaves it")
    assert pictures is not None


# What cannot be done.


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({}, UsageError, r"`text_encoder` and `tokenizer` and `vae` are needed, as .* has none: the folder or hub id"),
        ({"prompt": "a", "prompt_embeds": "b"}, UsageError, "give either `prompt` or `prompt_embeds`; got both"),
        ({"prompt_embeds": "x"}, UsageError, r"`vae` is needed, as .* has none: the folder or hub id"),
        ({"prompt_embeds": "x", "vae": "sigma's"}, InputError, "scaling_factor is 0.13025, and 0.18215 is needed"),
        ({"latents": "x", "prompt_embeds": "y", "vae": "alpha's"}, InputError, "holds 1 samples, and 2 are to be"),
    ],
)
def test_what_is_missing_is_said_before_the_work(
    asked: dict[str, str], error: type[Exception], words: str, pipelines: dict[str, Path], tmp_path: Path
) -> None:
    files = inputs("alpha-ms", tmp_path)
    one = tmp_path / "one.safetensors"
    save_file({"latents": recording("alpha-ms").tensors["noise"][:1].clone()}, one)
    folders = {"sigma's": str(vae_of("sigma")), "alpha's": str(VAE), "x": files["prompt_embeds"], "y": ""}
    given = {name: folders.get(value, value) for name, value in asked.items()}
    if "latents" in given:
        given |= {"latents": str(one), "prompt_embeds": files["prompt_embeds"]}
    bare = pipelines["alpha-ms"] / "transformer"
    with pytest.raises(error, match=words), ExitStack() as stack:
        ImageComparison(stack, Pair(str(PARTS / "alpha-ms.pth"), str(bare)), ImageRequest(**given))


def test_calls_that_are_wrong(pipelines: dict[str, Path], cli: Cli, tmp_path: Path) -> None:
    sides = ["--orig_ckpt_path", PARTS / "alpha-ms.pth", "--converted_path", pipelines["alpha-ms"]]
    done = cli("pixart", "parity", *sides, "--vae", VAE)
    assert (done.returncode, done.stderr) == (2, "pixart: error: --vae requires --images\n")
    done = cli("pixart", "parity", *sides, *sides, "--images")
    assert (done.returncode, done.stderr) == (2, "pixart: error: --images needs exactly one comparison; got 2\n")
    (tmp_path / "out.images.png").mkdir()
    done = cli("pixart", "parity", *sides, "--images", "--report", tmp_path / "out.json")
    assert done.returncode == 2
    assert "out.images.png: cannot be written there: it is a folder" in done.stderr
    done = cli("pixart", "parity", *sides[:2], "--converted_path", tmp_path / "nowhere", "--images")
    assert done.returncode == 3
    assert "convert it first" in done.stderr
