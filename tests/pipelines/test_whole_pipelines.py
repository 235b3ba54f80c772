"""Whole pipelines: stock diffusers loads and runs them, and reproduces what the training code's sampler recorded."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler
from makers import HEADS, Result, dit, imported, save, tree
from parts import PARTS, TEXT, TEXT_ENCODER, TOKENIZER, VAE, assemble, flags, vae_of
from safetensors.torch import load_file

import converter
from converter.conversion.batch import UNCHANGED, Outcome, convert_all
from converter.conversion.pairs import expand
from converter.errors import InputError, UsageError
from converter.parity.checker import check
from converter.pipelines import checks
from converter.pipelines.assemble import Components
from converter.pipelines.checks import Problem
from converter.pipelines.components import Component

Cli = Callable[..., Result]
FROM_EMBEDDINGS: dict[str, Any] = {"prompt": None, "negative_prompt": None}


def load(folder: Path, **words: Any) -> Any:
    pipeline = DiffusionPipeline.from_pretrained(folder, **words)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def recorded(name: str) -> dict[str, torch.Tensor]:
    return load_file(PARTS / f"{name}.golden.safetensors")


def embeddings(golden: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What the training code's sampler gave the net: the null branch has the prompt's mask."""
    batch, mask = len(golden["noise"]), golden["caption_mask"]
    null = golden["null_caption"].expand(batch, -1, -1)
    words = {"prompt_embeds": golden["caption"][:, 0], "negative_prompt_embeds": null, "latents": golden["noise"]}
    return FROM_EMBEDDINGS | words | {"prompt_attention_mask": mask, "negative_prompt_attention_mask": mask}


# The stock pipelines have the aspect ratio itself where the training code has the table's two decimals.
@pytest.mark.parametrize(("name", "distance"), [("sigma-ms", 1e-5), ("alpha-fixed", 2e-5), ("alpha-ms", 1.5e-3)])
def test_stock_diffusers_draws_what_was_recorded(name: str, distance: float, tmp_path: Path) -> None:
    assemble(name, tmp_path / "out")
    pipeline, golden = load(tmp_path / "out", trust_remote_code=True), recorded(name)
    assert type(pipeline).__name__ == f"PixArt{name.partition('-')[0].title()}Pipeline"
    height, width = (8 * side for side in golden["noise"].shape[2:])
    how: dict[str, Any] = {"height": height, "width": width, "use_resolution_binning": False, "output_type": "latent"}
    for steps in (6, 14):
        words = how | {"num_inference_steps": steps, "guidance_scale": 4.5}
        latents = pipeline(**embeddings(golden), **words).images
        wanted = golden[f"dpm{steps}.latents"][-1]
        assert torch.linalg.norm(latents - wanted) < distance * torch.linalg.norm(wanted)
    assert len(pipeline.scheduler.timesteps) == 14


def test_stock_diffusers_draws_from_a_prompt(tmp_path: Path) -> None:
    done = assemble("alpha-fixed", tmp_path / "out", scheduler="lcm", **TEXT)
    assert not any("embeddings" in note for note in done.notes)
    assert done.added[-1] == f'load: DiffusionPipeline.from_pretrained("{done.path}", trust_remote_code=True)'
    pipeline = load(done.path, trust_remote_code=True)
    words: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 1.0, "output_type": "np"}
    images = pipeline("a cat in a hat", height=128, width=128, use_resolution_binning=False, **words).images
    assert images.shape == (1, 128, 128, 3)
    assert pipeline.scheduler.timesteps.tolist() == [999, 759, 519, 279]
    assert type(pipeline.text_encoder).__name__ == "T5EncoderModel"
    state = pipeline.transformer.state_dict()
    stored = load_file(done.path / "transformer" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(state[key], tensor) for key, tensor in stored.items())


def test_without_a_text_encoder_the_pipeline_draws_from_embeddings(tmp_path: Path) -> None:
    done = assemble("sigma-ms", tmp_path / "out", stock=True)
    index = json.loads((done.path / "model_index.json").read_text())
    assert index["text_encoder"] == index["tokenizer"] == [None, None]
    assert index["scheduler"] == ["diffusers", "DPMSolverMultistepScheduler"]
    assert sum("prompt_embeds" in note and "300 tokens" in note for note in done.notes) == 1
    assert sum("rounds the timesteps" in note for note in done.notes) == 1
    assert done.record["notes"] == done.notes
    assert done.added[-1] == f'load: DiffusionPipeline.from_pretrained("{done.path}")'
    pipeline = load(done.path)
    assert type(pipeline.scheduler) is DPMSolverMultistepScheduler
    assert pipeline.scheduler.config.euler_at_final is True
    assert pipeline.text_encoder is None
    words = {"num_inference_steps": 2, "use_resolution_binning": False, "output_type": "np"}
    images = pipeline(**embeddings(recorded("sigma-ms")), height=112, width=144, **words).images
    assert images.shape == (1, 112, 144, 3)


@pytest.mark.parametrize("name", ["dpm-solver", "sa-solver", "iddpm", "lcm", "dmd"])
def test_the_scheduler_of_each_sampler(name: str, tmp_path: Path) -> None:
    done = assemble("alpha-ms", tmp_path / "out", scheduler=name)
    folder = done.path / "scheduler"
    module, kind = json.loads((done.path / "model_index.json").read_text())["scheduler"]
    assert json.loads((folder / "scheduler_config.json").read_text())["_class_name"] == kind
    scheduler = load(done.path, trust_remote_code=True).scheduler
    assert type(scheduler).__name__ == kind
    assert scheduler.config.beta_end == 0.02
    if name == "iddpm":
        assert type(scheduler) is DDPMScheduler
        assert os.listdir(folder) == ["scheduler_config.json"]
        assert any("variance" in note for note in done.notes)
    else:
        source = inspect.getsourcefile(importlib.import_module("converter.models.pixart.pixart_schedulers"))
        assert (folder / f"{module}.py").read_bytes() == Path(str(source)).read_bytes()
        assert done.record["written"][f"scheduler/{module}.py"]["size"] == (folder / f"{module}.py").stat().st_size


def test_a_scheduler_of_a_folder_with_its_class(tmp_path: Path) -> None:
    first = assemble("alpha-ms", tmp_path / "first").path
    for place in (first, first / "scheduler"):
        done = assemble("alpha-fixed", tmp_path / place.name / "out", scheduler=place, components="copy")
        assert tree(done.path / "scheduler") == tree(first / "scheduler")
        assert done.path.joinpath("model_index.json").read_text() == (first / "model_index.json").read_text()
        load(done.path, trust_remote_code=True)
        assert any(f"the scheduler is code of {first / 'scheduler'}" in note for note in done.notes)


def test_a_pipeline_out_of_a_pipeline(tmp_path: Path) -> None:
    """Its transformer rounded, and its links led to where the files really are."""
    first = assemble("alpha-ms", tmp_path / "first", **TEXT).path
    beside = Components(vae=first, text_encoder=first, tokenizer=first, scheduler=first)
    done = converter.convert(first, tmp_path / "out", components=beside, dtype="bfloat16")
    assert os.readlink(done.path / "vae" / "config.json") == str((VAE / "config.json").resolve())
    assert os.readlink(done.path / "scheduler" / "pixart_schedulers.py").startswith(str(first))
    pipeline = load(done.path, trust_remote_code=True, torch_dtype=torch.bfloat16)
    assert pipeline.transformer.dtype == torch.bfloat16


def test_a_scheduler_as_diffusers_saves_it(tmp_path: Path) -> None:
    """With -Infinity in its config, which is no JSON."""
    DPMSolverMultistepScheduler().save_pretrained(tmp_path / "saved")
    assert "-Infinity" in (tmp_path / "saved" / "scheduler_config.json").read_text()
    done = assemble("alpha-ms", tmp_path / "out", scheduler=tmp_path / "saved")
    assert type(load(done.path).scheduler) is DPMSolverMultistepScheduler


def test_links_lead_to_the_real_files(tmp_path: Path) -> None:
    """As those in the hub's cache, which are links to blobs; the record names them."""
    (tmp_path / "snapshot" / "vae").mkdir(parents=True)
    for path in VAE.iterdir():
        shutil.copy(path, tmp_path / f"blob-{path.name}")
        (tmp_path / "snapshot" / "vae" / path.name).symlink_to(f"../../blob-{path.name}")
    done = assemble("alpha-ms", tmp_path / "out", vae=tmp_path / "snapshot")
    written = done.record["written"]
    for path in VAE.iterdir():
        link, real = done.path / "vae" / path.name, tmp_path / f"blob-{path.name}"
        assert os.readlink(link) == written[f"vae/{path.name}"]["link"] == str(real.resolve())
        assert written[f"vae/{path.name}"]["size"] == path.stat().st_size
        assert f"vae/{path.name}" not in done.files  # nothing was written for it
    assert tree(done.path / "vae") == tree(VAE)


def test_copies_are_files_with_the_same_bytes(tmp_path: Path) -> None:
    steps: list[int] = []
    beside = Components(vae=VAE, text_encoder=TEXT_ENCODER, tokenizer=TOKENIZER, components="copy")
    totals: list[int] = []

    def progress(total: int) -> Callable[[int], None]:
        totals.append(total)
        return steps.append

    heads = {"num_attention_heads": HEADS}
    words: dict[str, Any] = {"components": beside, "hyper_parameters": heads, "progress": progress}
    done = converter.convert(PARTS / "alpha-ms.pth", tmp_path / "out", **words)
    assert totals == [sum(steps)]
    assert not [path for path in done.path.rglob("*") if path.is_symlink()]
    for part, place in (("vae", VAE), ("text_encoder", TEXT_ENCODER), ("tokenizer", TOKENIZER)):
        assert tree(done.path / part) == tree(place)
    assert {"size", "sha256"} == {*done.record["written"]["text_encoder/config.json"]}


def test_overwriting_replaces_the_links_of_the_record_and_no_others(tmp_path: Path) -> None:
    out = assemble("alpha-ms", tmp_path / "out").path
    assemble("sigma-ms", out, {"overwrite": True}, components="copy")
    assert not (out / "vae" / "config.json").is_symlink()
    assemble("alpha-ms", out, {"overwrite": True})
    assert (out / "vae" / "config.json").is_symlink()
    assert tree(VAE) == tree(out / "vae")  # nothing behind the links was touched
    for change in ("another link", "a file", "a link of theirs"):
        shutil.copytree(out, tmp_path / change, symlinks=True)
        name = "vae/mine.json" if change == "a link of theirs" else "vae/config.json"
        (tmp_path / change / name).unlink(missing_ok=True)
        if change == "a file":
            shutil.copy(VAE / "config.json", tmp_path / change / name)
        else:
            (tmp_path / change / name).symlink_to(Path(__file__))
        before = tree(tmp_path / change)
        with pytest.raises(UsageError, match=f"has no record of, {name}"):
            assemble("alpha-ms", tmp_path / change, {"overwrite": True})
        assert tree(tmp_path / change) == before


def several(out: Path, **components: Any) -> list[Outcome]:
    beside = Components(**{"vae": VAE} | components)
    pairs = expand(str(PARTS / "alpha-*.pth"), f"{out}/{{stem}}")
    return convert_all(pairs, None, {"num_attention_heads": HEADS}, components=beside)


@pytest.mark.parametrize("way", ["link", "copy"])
def test_an_unchanged_rerun_of_several_is_recognised(way: str, tmp_path: Path) -> None:
    def statuses(**more: Any) -> set[str]:
        return {outcome.status for outcome in several(tmp_path / "out", components=way, **more)}

    assert statuses() == {"converted"}
    assert statuses() == {UNCHANGED}
    for outcome in several(tmp_path / "out", components=way, scheduler="lcm"):
        assert outcome.words.endswith("use `overwrite` to replace it")
    changed = tmp_path / "out" / "alpha-ms" / "vae" / "config.json"
    content = changed.read_bytes()
    changed.unlink()
    changed.write_bytes(content if way == "link" else content.replace(b"silu", b"relu"))
    assert sorted(outcome.status for outcome in several(tmp_path / "out", components=way)) == ["failed", UNCHANGED]


def test_other_commands_take_the_folder_as_before(tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "out"
    result = cli("convert-pixart", *flags("alpha-ms", out, "--text_encoder", TEXT_ENCODER, "--tokenizer", TOKENIZER))
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert f"vae: AutoencoderKL, 2 files (344 kB) of {VAE}, linked" in lines
    assert f'load: DiffusionPipeline.from_pretrained("{out}", trust_remote_code=True)' in lines
    assert not any("wrote" in line and "vae" in line for line in lines)
    assert converter.inspect(out)["problems"] == []
    assert check(PARTS / "alpha-ms.pth", out).verdict == "PASS"
    reverted = cli("pixart", "revert", "--converted_path", out, "--dump_path", tmp_path / "back.pth")
    assert reverted.returncode == 0, reverted.stderr
    old, new = (torch.load(path) for path in (PARTS / "alpha-ms.pth", tmp_path / "back.pth"))
    new = new.get("state_dict", new)
    assert all(torch.equal(new[key], tensor) for key, tensor in old["state_dict"].items())


def test_a_dry_run_shows_the_components_and_writes_nothing(tmp_path: Path, cli: Cli) -> None:
    result = cli("convert-pixart", *flags("sigma-ms", tmp_path / "out", "--dry_run"))
    assert result.returncode == 0
    assert "scheduler: PixArtDPMSolverScheduler for dpm-solver, usually 20 steps, guidance_scale 4.5" in result.stdout
    assert f"vae: AutoencoderKL, 2 files (344 kB) of {vae_of('sigma-ms')}, linked" in result.stdout
    assert list(tmp_path.iterdir()) == []
    as_json = json.loads(cli("convert-pixart", *flags("sigma-ms", tmp_path / "out", "--json")).stdout)
    assert as_json["added"][0] == "pipeline: PixArtSigmaPipeline"


def test_nothing_of_a_component_is_loaded(tmp_path: Path) -> None:
    more = ["--text_encoder", TEXT_ENCODER, "--tokenizer", TOKENIZER]
    code, printed, modules, _ = imported("convert-pixart", *flags("alpha-ms", tmp_path / "out", *more))
    assert code == 0, printed
    assert not modules & {"torch", "diffusers", "transformers", "safetensors"}


def test_a_watched_folder_becomes_pipelines(tmp_path: Path, cli: Cli) -> None:
    shutil.copy(PARTS / "sigma-ms.pth", tmp_path / "new.pth")
    call = ["--watch", tmp_path, "--dump_path", f"{tmp_path}/out/{{stem}}", "--num_attention_heads", HEADS]
    call += ["--watch_settle", 0, "--watch_idle", 0, "--only_transformer=no", "--vae", vae_of("sigma-ms")]
    result = cli("convert-pixart", *call)
    assert result.returncode == 0, result.stderr
    assert f'  load: DiffusionPipeline.from_pretrained("{tmp_path}/out/new", trust_remote_code=True)' in result.stdout
    assert load(tmp_path / "out" / "new", trust_remote_code=True).vae.config.latent_channels == 4


def test_the_first_problem_of_a_component_refuses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Path, Any]] = []

    def problems(component: Component, model: Any) -> list[Problem]:
        part, place = component.part, str(component.folder)
        asked.append((part, component.folder, model.findings.value("version")))
        if part == "vae":
            return [Problem("is of a colour", place, "paint it", fault=False)]
        return [Problem("is of width 9", place, "take another")] if part == "text_encoder" else []

    monkeypatch.setattr(checks, "component_problems", problems)
    with pytest.raises(InputError) as raised:
        assemble("alpha-ms", tmp_path / "out", **TEXT)
    assert str(raised.value) == f"{TEXT_ENCODER}: is of width 9; to mend it: take another"
    assert asked == [("vae", VAE, "alpha"), ("text_encoder", TEXT_ENCODER, "alpha")]
    assert list(tmp_path.iterdir()) == []
    assert "vae: is of a colour" in assemble("alpha-ms", tmp_path / "out").notes


def test_a_family_that_draws_no_pictures(tmp_path: Path) -> None:
    source = save(dit(), tmp_path / "dit.pth")
    with pytest.raises(UsageError, match="does not say how pictures are drawn"):
        converter.convert(
            source, tmp_path / "out", hyper_parameters={"num_attention_heads": HEADS}, components=Components(vae=VAE)
        )
    assert not (tmp_path / "out").exists()
