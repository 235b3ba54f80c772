"""The doctor: a sound pipeline has no problem, one broken in one place has it there, and the remedy mends it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from makers import HEADS, ROOT, Result, save
from parts import PARTS, TOKENIZER, assemble, vae_of
from safetensors.torch import load_file, save_file

import converter
from converter.errors import InputError, UsageError
from converter.pipelines.assemble import Components
from converter.pipelines.checks import Problem
from converter.pipelines.doctor import diagnose

Break = Callable[[Path], object]
CONFIG, TRANSFORMER = "transformer/config.json", "transformer/diffusion_pytorch_model.safetensors"
SCHEDULER = "scheduler/scheduler_config.json"
ALL = ["pipeline", "transformer", "vae", "text_encoder", "tokenizer", "scheduler"]


def whole(name: str, out: Path, options: Any = None, **components: Any) -> Path:
    """A pipeline with all its parts."""
    text = PARTS / f"text_encoder-{name.partition('-')[0]}"
    words = {"text_encoder": text, "tokenizer": TOKENIZER, "components": "copy"} | components
    return assemble(name, out, options, **words).path


@pytest.fixture(scope="module", params=["alpha-ms", "alpha-fixed", "sigma-ms"])
def each(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole(request.param, tmp_path_factory.mktemp("good") / request.param)


@pytest.fixture(scope="module")
def alpha(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole("alpha-ms", tmp_path_factory.mktemp("alpha") / "out")


@pytest.fixture(scope="module")
def sigma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole("sigma-ms", tmp_path_factory.mktemp("sigma") / "out")


def broken(good: Path, tmp_path: Path, *breaks: Break) -> Path:
    """A copy in which that was done."""
    folder = tmp_path / "broken"
    shutil.copytree(good, folder)
    for change in breaks:
        change(folder)
    return folder


def edit(name: str, **fields: Any) -> Break:
    """Set fields of a JSON file, or take those out that are None."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) | fields
        (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return change


def cut(name: str) -> Break:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - 100)


def remove(*names: str) -> Break:
    def change(folder: Path) -> None:
        for name in names:
            shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()

    return change


def tensors(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Break:
    """Change the tensors of a file."""

    def write(folder: Path) -> None:
        state = load_file(folder / name)
        change(state)
        save_file(state, folder / name, metadata={"format": "pt"})

    return write


def lines(problems: Mapping[str, list[Problem]], *, faults: bool = True) -> dict[str, list[str]]:
    """By part, in words."""
    chosen = {part: [p.words for p in those if p.fault == faults] for part, those in problems.items()}
    return {part: words for part, words in chosen.items() if words}


def halved(state: dict[str, torch.Tensor]) -> None:
    state.update({key: tensor.half() for key, tensor in state.items()})


def first_shard(folder: Path) -> Path:
    return sorted((folder / "text_encoder").glob("model-*.safetensors"))[0]


def test_a_sound_pipeline_has_no_problem(each: Path) -> None:
    assert diagnose(each) == {part: [] for part in ALL}
    assert diagnose(each / "transformer") == {"transformer": []}


def test_a_sound_original_has_no_problem() -> None:
    words = {"num_attention_heads": HEADS}
    assert diagnose(PARTS / "sigma-ms.pth", hyper_parameters=words) == {"transformer": []}
    assert diagnose(PARTS / "alpha-ms.pth", hyper_parameters=words) == {"transformer": []}


@pytest.mark.parametrize("sampler", ["dpm-solver", "sa-solver", "iddpm", "lcm", "dmd"])
@pytest.mark.parametrize("stock", [False, True])
def test_the_scheduler_of_every_sampler_is_sound(sampler: str, stock: bool, tmp_path: Path) -> None:
    problems = diagnose(whole("alpha-fixed", tmp_path / "out", scheduler=sampler, stock=stock))
    assert lines(problems) == {}
    remarks = lines(problems, faults=False)
    assert remarks.keys() == ({"scheduler"} if stock and sampler != "iddpm" else set())


FAULTS: dict[str, tuple[str, Break, str]] = {
    # What is broken: (the part, how, what is said).
    "the VAE of sigma": ("vae", edit("vae/config.json", scaling_factor=0.13025), "is 0.13025, and 0.18215 is needed"),
    "another VAE class": ("vae", edit("vae/config.json", _class_name="AutoencoderTiny"), "AutoencoderKL is needed"),
    "16 latent channels": ("vae", edit("vae/config.json", latent_channels=16), "is 16, and 4 is needed"),
    "three blocks": ("vae", edit("vae/config.json", block_out_channels=[8, 16, 16]), "is 4, and 8 is needed"),
    "no VAE": ("vae", remove("vae"), "no such folder"),
    "no config of the VAE": ("vae", remove("vae/config.json"), "holds no config.json"),
    "a truncated VAE": ("vae", cut("vae/diffusion_pytorch_model.safetensors"), "truncated"),
    "a VAE with zeros": (
        "vae",
        tensors("vae/diffusion_pytorch_model.safetensors", lambda s: s["decoder.conv_in.weight"].zero_()),
        "decoder.conv_in.weight: zero throughout",
    ),
    "a VAE with NaN": (
        "vae",
        tensors("vae/diffusion_pytorch_model.safetensors", lambda s: s["decoder.conv_in.bias"].fill_(torch.nan)),
        "NaN or infinite",
    ),
    "half a VAE": (
        "vae",
        tensors("vae/diffusion_pytorch_model.safetensors", lambda s: s.pop("decoder.conv_in.bias")),
        "the decoder lacks 1 of its",
    ),
    "a decoder that is not whole": (
        "vae",
        tensors("vae/diffusion_pytorch_model.safetensors", lambda s: s.pop("decoder.conv_in.weight")),
        "the decoder lacks 1 of its",
    ),
    "a decoder with more layers": ("vae", edit("vae/config.json", layers_per_block=3), "the decoder lacks"),
    "another encoder": ("text_encoder", edit("text_encoder/config.json", model_type="clip"), "not a text_encoder"),
    "a wider encoder": ("text_encoder", edit("text_encoder/config.json", d_model=24), "is 24, and 32 is needed"),
    "a truncated shard": (
        "text_encoder",
        lambda folder: os.truncate(first_shard(folder), first_shard(folder).stat().st_size // 2),
        "truncated",
    ),
    "a missing shard": ("text_encoder", lambda folder: first_shard(folder).unlink(), "is missing"),
    "a missing block": ("text_encoder", edit("text_encoder/config.json", num_layers=3), "num_layers 3"),
    "wo in float16": (
        "text_encoder",
        tensors("text_encoder/model-00003-of-00004.safetensors", halved),
        "weights wo are float16",
    ),
    "an encoder without its tokenizer": ("tokenizer", remove("tokenizer"), "no such folder"),
    "a tokenizer without its model": (
        "tokenizer",
        remove("tokenizer/spiece.model", "tokenizer/tokenizer.json"),
        "spiece.model or tokenizer.json is missing",
    ),
    "a pointer of git": (
        "tokenizer",
        lambda folder: (folder / "tokenizer/spiece.model").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "a pointer of git",
    ),
    "a tokenizer that cannot be read": (
        "tokenizer",
        lambda folder: (folder / "tokenizer/tokenizer.json").write_text("{" * 2000),
        "transformers cannot use this tokenizer",
    ),
    "another tokenizer": (
        "tokenizer",
        edit("tokenizer/tokenizer_config.json", tokenizer_class="CLIPTokenizer"),
        "not a tokenizer but a CLIPTokenizer",
    ),
    "the betas of Stable Diffusion": (
        "scheduler",
        edit(SCHEDULER, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        "beta_start is 0.00085, and 0.0001 is needed",
    ),
    "another prediction": ("scheduler", edit(SCHEDULER, prediction_type="v_prediction"), "and epsilon is needed"),
    "another scheduler": (
        "scheduler",
        edit(SCHEDULER, _class_name="FlowMatchEulerDiscreteScheduler"),
        "not of a sampler of this model",
    ),
    "no class beside the scheduler": ("scheduler", remove("scheduler/pixart_schedulers.py"), "is missing"),
    "a scheduler that is no JSON": ("scheduler", lambda folder: (folder / SCHEDULER).write_text("[NaN]"), "JSON"),
    "a scheduler without its config": ("scheduler", remove(SCHEDULER), "holds no scheduler_config.json"),
    "sigma's pipeline": ("pipeline", edit("model_index.json", _class_name="PixArtSigmaPipeline"), "AlphaPipeline"),
    "another class in the index": (
        "pipeline",
        edit("model_index.json", scheduler=["diffusers", "DDIMScheduler"]),
        "scheduler is ['diffusers', 'DDIMScheduler']",
    ),
    "an index that is no JSON": ("pipeline", lambda folder: (folder / "model_index.json").write_text("{"), "JSON"),
    "no transformer": ("transformer", remove("transformer"), "no weights"),
    "a truncated transformer": ("transformer", cut(TRANSFORMER), "truncated"),
    "a transformer without its config": ("transformer", remove(CONFIG), "--"),
    "half the heads": (
        "transformer",
        edit(CONFIG, num_attention_heads=2, attention_head_dim=24),
        "num_attention_heads is 2 (config.json), and conversion.json says 4",
    ),
    "half the scale": ("transformer", edit(CONFIG, interpolation_scale=1), "config"),
    "no scale": ("transformer", edit(CONFIG, interpolation_scale=None, sample_size=64), "config"),
    "no micro-conditions": ("transformer", edit(CONFIG, use_additional_conditions=False), "use_additional_conditions"),
    "a key too many": (
        "transformer",
        tensors(TRANSFORMER, lambda s: s.update({"transformer_blocks.0.attn1.extra.weight": torch.ones(3)})),
        "transformer_blocks.0.attn1.extra.weight",
    ),
    "a key too few": ("transformer", tensors(TRANSFORMER, lambda s: s.pop("proj_out.weight")), "proj_out.weight"),
    "zeros": (
        "transformer",
        tensors(TRANSFORMER, lambda s: s["transformer_blocks.0.attn1.to_q.weight"].zero_()),
        "zero throughout, as no training leaves it",
    ),
    "NaN": ("transformer", tensors(TRANSFORMER, lambda s: s["proj_out.bias"].fill_(torch.inf)), "NaN or infinite"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_where_it_is_and_nowhere_else(fault: str, alpha: Path, tmp_path: Path) -> None:
    part, change, words = FAULTS[fault]
    problems = diagnose(broken(alpha, tmp_path, change))
    there = lines(problems)
    assert [*there] == [part], there
    assert words in " ".join(there[part])
    (first, *_) = (problem for problem in problems[part] if problem.fault)
    assert str(tmp_path / "broken") in first.evidence
    assert first.remedy


MENDED = [
    "the betas of Stable Diffusion", "another prediction", "no class beside the scheduler",
    "sigma's pipeline", "another class in the index",
]  # fmt: skip


@pytest.mark.parametrize("fault", MENDED)
def test_the_remedy_mends_it(fault: str, alpha: Path, tmp_path: Path) -> None:
    folder = broken(alpha, tmp_path, FAULTS[fault][1])
    part = FAULTS[fault][0]
    for problem in diagnose(folder)[part]:
        command = problem.remedy.replace("python -c", f"{sys.executable} -c", 1)
        done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert lines(diagnose(folder)) == {}


def test_an_edit_leaves_what_a_link_leads_to(alpha: Path, tmp_path: Path) -> None:
    folder = broken(alpha, tmp_path, edit("vae/config.json", scaling_factor=None), remove("scheduler"))
    target = shutil.copytree(alpha / "scheduler", tmp_path / "shared")
    edit("scheduler_config.json", clip_sample=True, prediction_type="sample")(target)
    before = (target / "scheduler_config.json").read_text()
    (folder / "scheduler").mkdir()
    for path in target.iterdir():
        (folder / "scheduler" / path.name).symlink_to(path)
    problem = next(problem for problem in diagnose(folder)["scheduler"] if problem.fault)
    subprocess.run(problem.remedy.replace("python", sys.executable, 1), shell=True, check=True)
    assert lines(diagnose(folder)) == {}
    assert (target / "scheduler_config.json").read_text() == before


def test_what_diffusers_takes_by_default_is_judged_too(alpha: Path, sigma: Path, tmp_path: Path) -> None:
    unsaid = edit("vae/config.json", scaling_factor=None)
    assert lines(diagnose(broken(alpha, tmp_path / "a", unsaid))) == {}  # its default is alpha's
    folder = broken(sigma, tmp_path / "b", unsaid)
    (problem,) = diagnose(folder)["vae"]
    assert problem.words.startswith("scaling_factor is 0.18215, and 0.13025 is needed: not written")
    subprocess.run(problem.remedy.replace("python", sys.executable, 1), shell=True, check=True)
    assert diagnose(folder)["vae"] == []


def test_schedulers_that_the_training_code_did_not_have(alpha: Path, tmp_path: Path) -> None:
    """Stock ones are remarked on; with noise left at the end, the order of the last step is a fault."""

    def stock(kind: str, **fields: Any) -> list[Problem]:
        folder = tmp_path / f"{kind}{len(fields)}"
        shutil.copytree(alpha, folder)
        getattr(diffusers, kind)(**fields).save_pretrained(folder / "scheduler")  # some with -Infinity in it
        edit("model_index.json", scheduler=["diffusers", kind])(folder)
        return diagnose(folder)["scheduler"]

    (remark,) = stock("DPMSolverMultistepScheduler")
    assert not remark.fault
    assert "the last step ends without noise" in remark.words
    assert remark.remedy.startswith("pixart generate --pipeline ")
    problems = stock("DPMSolverMultistepScheduler", final_sigmas_type="sigma_min", euler_at_final=True)
    assert [p.words for p in problems if p.fault] == ["euler_at_final is True, and False is needed"]
    (fault, remark) = stock("DDPMScheduler")
    assert (fault.fault, fault.words) == (True, "clip_sample is True, and False is needed")
    assert "timesteps=[400]" in remark.words
    faults = [p for p in stock("LCMScheduler") if p.fault]
    assert "beta_start is 0.00085, and 0.0001 is needed" in faults[0].words
    betas = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
    (remark,) = stock("LCMScheduler", **betas)
    assert "timesteps=[999, 759, 519, 279]" in remark.words


def test_remarks_are_no_faults(alpha: Path, tmp_path: Path) -> None:
    index = json.loads((alpha / "text_encoder/model.safetensors.index.json").read_text())["weight_map"]
    plain = {key: f"text_encoder/{name}" for key, name in index.items()}
    folder = broken(
        alpha,
        tmp_path,
        lambda folder: (folder / "scheduler/pixart_schedulers.py").write_text("class PixArtAlphaDPMSolverScheduler: 0"),
        edit("tokenizer/tokenizer_config.json", model_max_length=77),
        edit("text_encoder/config.json", dtype="float16"),
        tensors(plain["shared.weight"], halved),
        tensors(TRANSFORMER, lambda s: s.update({"caption_projection.y_embedding": torch.ones(120, 32)})),
    )
    problems = diagnose(folder)
    assert lines(problems) == {}
    remarks = lines(problems, faults=False)
    assert remarks["tokenizer"] == [
        "model_max_length is 77, and 120 is needed, or longer prompts are cut where nobody says otherwise"
    ]
    assert remarks["text_encoder"] == [
        "float16: with wo in float32, as transformers has it, it does not overflow; bfloat16 is safer"
    ]
    (line,) = remarks["scheduler"]
    assert line == "pixart_schedulers.py is modified: PixArtAlphaDPMSolverScheduler is not as this version has it"
    assert "caption_projection.y_embedding is left over from an old conversion, and not used" in remarks["transformer"]


def test_a_pipeline_without_text_encoder_draws_from_embeddings(tmp_path: Path) -> None:
    folder = assemble("sigma-ms", tmp_path / "out").path
    assert diagnose(folder) == {part: [] for part in ALL}
    shutil.copytree(PARTS / "text_encoder-sigma", folder / "text_encoder")
    assert [*lines(diagnose(folder))] == ["pipeline", "tokenizer"]  # the one is not named, the other not there


def original(name: str, path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    content = torch.load(PARTS / f"{name}.pth")
    state = content.get("state_dict", content)
    change(state)
    return save(content, path)


def test_the_null_caption(alpha: Path, tmp_path: Path) -> None:
    heads = {"num_attention_heads": HEADS}
    key = "y_embedder.y_embedding"
    for name, faults in (("alpha-ms", 1), ("sigma-ms", 0)):  # sigma's guidance begins at an empty prompt
        file = original(name, tmp_path / f"{name}.pth", lambda state: state[key].zero_())
        there = lines(diagnose(file, hyper_parameters=heads)).get("transformer", [])
        assert there == [f"{key} is zero throughout, and guidance begins there"] * faults
    problems = diagnose(broken(alpha, tmp_path, remove("original_extras.safetensors")))
    assert lines(problems) == {}
    assert "the null caption is missing" in " ".join(lines(problems, faults=False)["transformer"])


def test_the_stock_pipeline_fails_with_micro_conditions_at_512_pixels(tmp_path: Path) -> None:
    """facts: `PixArtAlphaPipeline` passes them at 1024 px only, and the net asks for them."""
    words = {"num_attention_heads": HEADS}
    file = ROOT / "fixtures" / "golden" / "alpha-ms.pth"
    plain = converter.convert(file, tmp_path / "plain", hyper_parameters=words).path
    assert lines(diagnose(plain)) == {}
    assert "sample_size 128 only" in " ".join(lines(diagnose(plain), faults=False)["transformer"])
    index = {"transformer": ["diffusers", "PixArtTransformer2DModel"], "vae": ["diffusers", "AutoencoderKL"]}
    (plain / "model_index.json").write_text(json.dumps(index | {"_class_name": "PixArtAlphaPipeline"}))
    shutil.copytree(vae_of("alpha"), plain / "vae")
    faults = lines(diagnose(plain))
    assert faults.keys() == {"pipeline", "scheduler"}
    missing, other = faults["pipeline"]
    assert missing.startswith("pixart_pipeline.py is missing")
    assert other == "_class_name is PixArtAlphaPipeline, and ['pixart_pipeline', 'PixArtAlphaMSPipeline'] is needed"
    beside = Components(vae=vae_of("alpha"), components="copy")
    good = converter.convert(file, tmp_path / "good", hyper_parameters=words, components=beside).path
    assert lines(diagnose(good)) == {}


def test_a_class_that_travels_is_looked_for_beside_the_weights(tmp_path: Path) -> None:
    file = ROOT / "fixtures" / "golden" / "sigma-qknorm.pth"
    words = {"num_attention_heads": HEADS, "version": "sigma"}
    folder = converter.convert(file, tmp_path / "out", hyper_parameters=words).path
    for place in (folder, folder / "transformer"):
        assert lines(diagnose(place)) == {}
    (folder / "transformer" / "pixart_transformer.py").unlink()
    (problem,) = lines(diagnose(folder))["transformer"]
    assert problem.startswith("pixart_transformer.py is missing")


def test_an_output_that_is_not_finite_in_the_dtype_of_the_files(tmp_path: Path) -> None:
    words = {"num_attention_heads": HEADS}

    def loud(state: dict[str, torch.Tensor]) -> None:
        state["blocks.1.mlp.fc1.weight"] *= 6e4 / state["blocks.1.mlp.fc1.weight"].abs().max()

    file = original("sigma-ms", tmp_path / "loud.pth", loud)
    assert lines(diagnose(file, hyper_parameters=words)) == {}  # float32 has room for it
    half = converter.convert(file, tmp_path / "half", hyper_parameters=words, dtype="float16").path
    (line,) = lines(diagnose(half))["transformer"]
    assert line == "in float16 its output is not finite, first in block 1"


def test_a_pipeline_without_a_record_is_what_its_index_says(each: Path, tmp_path: Path) -> None:
    records = remove("conversion.json", "original_extras.safetensors")
    folder = broken(each, tmp_path, records)
    assert lines(diagnose(folder)) == {}
    edit("vae/config.json", scaling_factor=0.5)(folder)
    assert [*lines(diagnose(folder))] == ["vae"]


def test_a_scale_of_no_released_model(alpha: Path, tmp_path: Path) -> None:
    """Nothing but a record or the original shows the right one; without either, there are the released models."""
    change = edit(CONFIG, interpolation_scale=1)
    folder = broken(alpha, tmp_path, change, remove("conversion.json", "original_extras.safetensors"))
    problems = diagnose(folder)
    assert lines(problems) == {}
    words = "config.json: scale 1, where the released 1024 px models have 2; the file decides"
    assert words in lines(problems, faults=False)["transformer"]
    (line,) = lines(diagnose(folder, original=PARTS / "alpha-ms.pth", hyper_parameters={"num_attention_heads": HEADS}))[
        "transformer"
    ]
    assert line.startswith("interpolation_scale is 1, and has to be 2")


def test_comparison_with_the_original(alpha: Path, tmp_path: Path) -> None:
    assert lines(diagnose(alpha, original=PARTS / "alpha-ms.pth")) == {}
    nudge = tensors(TRANSFORMER, lambda s: s["proj_out.weight"].add_(1e-3))
    folder = broken(alpha, tmp_path, nudge, remove("conversion.json"))
    assert lines(diagnose(folder, hyper_parameters={"version": "alpha"})) == {}  # nothing in it shows that
    there = lines(diagnose(folder, original=PARTS / "alpha-ms.pth", hyper_parameters={"num_attention_heads": HEADS}))
    assert [*there] == ["transformer"]
    assert "proj_out.weight" in there["transformer"][0]


@pytest.mark.parametrize("what", ["no such path", "an empty folder", "a text", "a DiT", "heads unknown"])
def test_what_is_no_pipeline_and_no_model(what: str, tmp_path: Path, cli: Callable[..., Result]) -> None:
    path = tmp_path / "what"
    if what == "an empty folder":
        path.mkdir()
    elif what == "a text":
        path.write_text("hello")
    elif what == "a DiT":
        path = ROOT / "fixtures" / "golden" / "dit.pt"
    elif what == "heads unknown":
        path = save({k: v for k, v in torch.load(PARTS / "sigma-ms.pth").items()}, path)
    done = cli("pixart", "doctor", path)
    assert (done.returncode, done.stdout) == (2 if what in ("a DiT", "heads unknown") else 3, "")
    assert done.stderr.startswith("pixart: error: ")
    assert done.stderr.count("\n") == 1
    with pytest.raises((InputError, UsageError)):
        diagnose(path)


def test_the_command(alpha: Path, tmp_path: Path, cli: Callable[..., Result]) -> None:
    good = cli("pixart", "doctor", alpha)
    assert good.returncode == 0, good.stderr
    assert good.stdout.split() == [word for part in ALL for word in (part, "ok")]
    folder = broken(alpha, tmp_path, FAULTS["the VAE of sigma"][1])
    bad = cli("pixart", "doctor", folder)
    assert (bad.returncode, bad.stderr) == (1, "")
    place = bad.stdout.index("vae           FAULT: scaling_factor is 0.13025, and 0.18215 is needed")
    assert f"evidence: {folder}/vae/config.json: scaling_factor\n" in bad.stdout[place:]
    remedy = f"remedy: hf download PixArt-alpha/PixArt-XL-2-1024-MS --include 'vae/*' --local-dir {folder}\n"
    assert remedy in bad.stdout[place:]
    assert cli("pixart", "doctor", folder, "--quiet").stdout == ""
    as_json = json.loads(cli("pixart", "doctor", folder, "--json").stdout)
    assert as_json["ok"] is False
    assert [(part["part"], part["verdict"]) for part in as_json["parts"]] == [
        (part, "fault" if part == "vae" else "ok") for part in ALL
    ]
    assert as_json["parts"][2].keys() == {"part", "verdict", "words", "evidence", "remedy"}
