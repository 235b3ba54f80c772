"""`pixart generate`, run as a user runs it, against the recordings: from embeddings and noise down to the bytes."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from makers import HEADS, Result
from parts import PARTS, TEXT, TEXT_ENCODER, TOKENIZER, VAE, assemble, vae_of
from PIL import Image
from recordings import NAMES, RUNS, recording, relative, replay_noise
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from converter.jobs.picture_request import PictureRequest
from converter.jobs.pictures import draw

Cli = Callable[..., Result]
SIDES = ("pipeline", "original", "reference")


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each recorded net as a pipeline; the first with a text encoder."""
    root = tmp_path_factory.mktemp("pipelines")
    for name in NAMES:
        assemble(name, root / name, **(TEXT if name == "alpha-ms" else {}))
    return {name: root / name for name in NAMES}


def opened(path: Path) -> Any:
    """A picture, read whole."""
    with Image.open(path) as picture:
        picture.load()
        return picture


def inputs(name: str, folder: Path) -> list[object]:
    """Files with what a recording began with, as options."""
    tensors = recording(name).tensors
    mask, batch = tensors["caption_mask"], len(tensors["noise"])
    embeds = {
        "prompt_embeds": tensors["caption"][:, 0],
        "prompt_attention_mask": mask,
        "negative_prompt_embeds": tensors["null_caption"].repeat(batch, 1, 1),
        "negative_prompt_attention_mask": mask,
    }
    save_file({key: tensor.clone() for key, tensor in embeds.items()}, folder / "embeds.safetensors")
    save_file({"latents": tensors["noise"]}, folder / "noise.safetensors")
    return ["--prompt_embeds", folder / "embeds.safetensors", "--latents", folder / "noise.safetensors"]


def source(name: str, side: str, pipelines: dict[str, Path]) -> list[object]:
    """The recorded net as a pipeline, as the training code's file with components, or as a pipeline's reference."""
    original, heads = PARTS / f"{name}.pth", ["--num_attention_heads", HEADS]
    if side == "pipeline":
        return ["--pipeline", pipelines[name]]
    if side == "original":
        return ["--pipeline", original, "--vae", vae_of(name), *heads]
    return ["--pipeline", pipelines[name], "--reference", original, *heads]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", NAMES)
def test_the_originals_own_picture(
    name: str, side: str, pipelines: dict[str, Path], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every recorded final to 2e-5 as latents, and the picture of the 14 steps within one level of 255."""
    recorded, begin = recording(name), [*source(name, side, pipelines), *inputs(name, tmp_path)]
    for run in recorded.runs:
        sampler, steps, scale = RUNS[run]
        replay_noise(monkeypatch, recorded, run)
        how = ["--sampler", sampler, "--num_inference_steps", steps, "--guidance_scale", scale]
        out = tmp_path / f"{run}.safetensors"
        done = cli("pixart", "generate", *begin, *how, "--output", out, "--output_type", "latent")
        assert done.returncode == 0, done.stderr
        error = recorded.error(run, load_file(out)["latents"])
        assert error <= 2e-5
        assert error <= (8 if sampler == "iddpm" else 3) * recorded.floor(run)
    done = cli("pixart", "generate", *begin, "--num_inference_steps", 14, "--output", tmp_path / "cat.png")
    assert done.returncode == 0, done.stderr
    right = load_file(PARTS / "images.safetensors")[f"{name}.dpm14.image"].numpy().astype(int)
    files = [tmp_path / "cat.png"] if len(right) == 1 else [tmp_path / f"cat-{i + 1}.png" for i in range(len(right))]
    shown = np.stack([np.asarray(opened(file)) for file in files]).astype(int)
    assert shown.shape == right.shape
    assert np.abs(shown - right).max() <= 1
    assert (shown != right).mean() < 0.001


def test_a_prompt(pipelines: dict[str, Path], cli: Cli, tmp_path: Path) -> None:
    """From words to a picture with its parameters in it, and again from the embeddings that were kept."""
    begin = ["generate", "--pipeline", pipelines["alpha-ms"], "--num_inference_steps", 2, "--seed", 7]
    begin += ["--height", 128, "--width", 96, "--use_resolution_binning", "false"]
    kept = tmp_path / "kept.safetensors"
    first = cli("pixart", *begin, "--prompt", "A red cat", "--output", tmp_path / "a.png", "--save_prompt_embeds", kept)
    assert first.returncode == 0, first.stderr
    again = cli("pixart", *begin, "--prompt_embeds", kept, "--output", tmp_path / "b.png", "--json")
    assert again.returncode == 0, again.stderr
    picture = opened(tmp_path / "a.png")
    assert picture.size == (96, 128)
    assert picture.tobytes() == opened(tmp_path / "b.png").tobytes()
    parameters = json.loads(picture.text["convert-pixart"])
    assert parameters["prompt"] == "A red cat"
    assert parameters["seed"] == 7
    assert parameters["sampler"] == "dpm-solver"
    assert parameters["conventions"] == "original"
    assert [line.partition(":")[0] for line in first.stdout.splitlines()] == [
        "note", "seed", "memory", "text encoder", "transformer", "VAE", *["peak memory"] * 3, "wrote",
    ]  # fmt: skip
    answer = json.loads(again.stdout)
    assert answer["files"] == [str(tmp_path / "b.png")]
    assert set(answer["peak_memory"]) == {"text encoder", "transformer", "VAE"}


def test_a_step_of_progress_may_return_anything(pipelines: dict[str, Path], tmp_path: Path) -> None:
    """As a bar on a terminal does, which says whether it was redrawn."""
    asked = PictureRequest(
        pipeline=str(pipelines["alpha-ms"]), prompt=("a red cat",), output=str(tmp_path / "a.png"), height=64, width=64,
        use_resolution_binning=False, num_inference_steps=1,
    )  # fmt: skip
    done = dict[str, int]()

    def begin(what: str) -> Any:
        def step(count: int) -> bool:
            done[what] = done.get(what, 0) + count
            return True

        return lambda total: step

    assert draw(asked, progress=begin).files == [tmp_path / "a.png"]
    assert done == {"encoding the prompt": 2, "drawing": 1, "decoding": 1}


@pytest.mark.parametrize(
    ("stage", "number"),
    [
        *((stage, signal.SIGINT) for stage in ("encoding the prompt", "drawing", "decoding")),
        ("drawing", signal.SIGTERM),
    ],
)
def test_a_signal_in_every_stage(
    stage: str, number: int, pipelines: dict[str, Path], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, the signal's exit code, and no picture."""

    def bar(bars: Any, quiet: bool, what: str, **how: Any) -> Any:
        return lambda total: lambda count: signal.raise_signal(number) if what == stage else None

    monkeypatch.setattr("converter.cli.generate.progress_bar", bar)
    begin = ["generate", "--pipeline", pipelines["alpha-ms"], "--prompt", "a", "--num_inference_steps", 1]
    size = ["--height", 64, "--width", 64, "--use_resolution_binning", "no", "--output", tmp_path / "a.png"]
    done = cli("pixart", *begin, *size)
    assert done.returncode == 128 + number
    assert done.stderr.count("\n") == 1
    assert signal.Signals(number).name in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_size_that_is_not_the_models_is_said(pipelines: dict[str, Path], cli: Cli, tmp_path: Path) -> None:
    begin = ["generate", "--pipeline", pipelines["alpha-ms"], "--prompt", "a cat", "--num_inference_steps", 1]
    to = ["--output", tmp_path / "a.safetensors", "--output_type", "latent", "--seed", 3]
    done = cli("pixart", *begin, *to, "--height", 256, "--width", 256)
    assert done.returncode == 0, done.stderr
    assert "note: size: 1024 x 1024 is drawn, the closest size that the model was trained with" in done.stdout
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        about = json.loads(file.metadata()["convert-pixart"])
    assert (about["height"], about["seed"], about["prompt"]) == (1024, 3, "a cat")


def test_the_null_branch(pipelines: dict[str, Path], cli: Cli, tmp_path: Path) -> None:
    """The training code's is the checkpoint's own, under the prompt's mask; diffusers' is empty, under its own."""
    begin = ["generate", "--pipeline", pipelines["alpha-ms"], "--num_inference_steps", 1, "--prompt", "a red cat"]
    kept = {}
    for how in ("original", "diffusers"):
        file = tmp_path / f"{how}.safetensors"
        to = ["--output", tmp_path / f"{how}-latents.safetensors", "--output_type", "latent"]
        size = ["--height", 64, "--width", 64, "--use_resolution_binning", "no"]
        done = cli("pixart", *begin, *size, *to, "--conventions", how, "--save_prompt_embeds", file)
        assert done.returncode == 0, done.stderr
        kept[how] = load_file(file)
    again = cli("pixart", *begin[:3], "--prompt_embeds", tmp_path / "diffusers.safetensors", "--num_inference_steps", 1,
                "--output", tmp_path / "again.safetensors", "--output_type", "latent", *size)  # fmt: skip
    assert "note: conventions: diffusers: " in again.stdout  # those that they were kept with
    prompt = kept["original"]["prompt_attention_mask"]
    assert torch.equal(kept["original"]["negative_prompt_embeds"], recording("alpha-ms").tensors["null_caption"])
    assert torch.equal(kept["original"]["negative_prompt_attention_mask"], prompt)
    assert int(kept["diffusers"]["negative_prompt_attention_mask"].sum()) == 1 < int(prompt.sum())


def test_a_seed_gives_the_training_codes_noise(pipelines: dict[str, Path], cli: Cli, tmp_path: Path) -> None:
    """After the seed, it draws 30 samples at the size of the picture and throws them away."""
    torch.manual_seed(5)
    for _ in range(30):
        torch.randn(1, 4, 512, 512)
    noise = torch.randn(1, 4, 8, 6)
    inputs("sigma-ms", tmp_path)
    save_file({"latents": noise}, tmp_path / "noise.safetensors")
    begin = ["generate", "--pipeline", pipelines["sigma-ms"], "--prompt_embeds", tmp_path / "embeds.safetensors"]
    begin += ["--num_inference_steps", 2, "--output_type", "latent"]
    size = ["--height", 64, "--width", 48, "--use_resolution_binning", "false", "--seed", 5]
    given = ["--latents", tmp_path / "noise.safetensors"]
    for name, how in (("seed", size), ("given", given)):
        done = cli("pixart", *begin, *how, "--output", tmp_path / f"{name}.safetensors")
        assert done.returncode == 0, done.stderr
    seed, right = (load_file(tmp_path / f"{name}.safetensors")["latents"] for name in ("seed", "given"))
    assert torch.equal(seed, right)


@pytest.mark.parametrize("how", ["original", "diffusers"])
def test_sizes(how: str, pipelines: dict[str, Path], cli: Cli, tmp_path: Path) -> None:
    """A size of the model's table is drawn; diffusers resizes to what was asked for, the training code does not."""
    inputs("sigma-ms", tmp_path)
    begin = ["generate", "--pipeline", pipelines["sigma-ms"], "--prompt_embeds", tmp_path / "embeds.safetensors"]
    size = ["--height", 250, "--width", 1000, "--conventions", how, "--num_inference_steps", 1, "--seed", 1]
    done = cli("pixart", *begin, *size, "--output", tmp_path / "wide.png")
    assert done.returncode == 0, done.stderr
    assert opened(tmp_path / "wide.png").size == ((1024, 256) if how == "original" else (1000, 250))


WRONG: list[tuple[str, list[object], int, str]] = [
    ("no prompt", [], 2, "give either --prompt or --prompt_embeds; got neither"),
    ("a folder", ["--prompt", "a", "--output", "cat.jpg"], 2, "must end in .png"),
    (
        "odd size",
        ["--prompt", "a", "--height", 100, "--use_resolution_binning", "no"],
        2,
        "--height 100: must be a mult",
    ),
    ("sampler", ["--prompt", "a", "--sampler", "euler"], 2, "--sampler euler: one of dpm-solver, sa-solver, iddpm"),
    ("steps of DMD", ["--prompt", "a", "--sampler", "dmd", "--num_inference_steps", 4], 2, "takes 1 step, not 4"),
    ("an empty name", ["--prompt", "a", "--latents", ""], 2, "--latents is empty"),
    ("no number", ["--prompt", "a", "--guidance_scale", "nan"], 2, "a finite number is needed"),
    ("a huge size", ["--prompt", "a", "--height", 10**400], 2, "--height"),
    ("two sizes", ["--prompt", "a --ar 1:2", "--prompt", "b"], 2, "ask for different sizes"),
    ("negative", ["--prompt", "a", "--negative_prompt", "b"], 2, "the training code has none"),
    ("a VAE that is none", ["--prompt", "a", "--vae", TEXT_ENCODER], 3, "not a vae but a T5EncoderModel"),
    ("no such VAE", ["--prompt", "a", "--vae", "nowhere"], 3, "nowhere"),
    ("an encoder that is none", ["--prompt", "a", "--text_encoder", VAE], 3, "not a text_encoder but"),
    ("another width", ["--prompt", "a", "--text_encoder", PARTS / "text_encoder-sigma"], 3, "24"),
    ("a budget too small", ["--prompt", "a", "--memory_budget", "100MB"], 2, "is the least that would do"),
    ("no budget", ["--prompt", "a", "--memory_budget", "plenty"], 2, "a size is needed, such as 8GB"),
]


@pytest.mark.parametrize(("words", "code", "message"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_bad_input(
    words: list[object], code: int, message: str, pipelines: dict[str, Path], cli: Cli, tmp_path: Path
) -> None:
    """One line, the right exit code, before anything is loaded, and nothing is written."""
    output = [] if "--output" in words else ["--output", tmp_path / "cat.png"]
    done = cli("pixart", "generate", "--pipeline", pipelines["alpha-ms"], *output, *words)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_pipeline_without_an_encoder(pipelines: dict[str, Path], cli: Cli, tmp_path: Path) -> None:
    done = cli(
        "pixart", "generate", "--pipeline", pipelines["sigma-ms"], "--prompt", "a", "--output", tmp_path / "a.png"
    )
    assert done.returncode == 2
    assert "--text_encoder and --tokenizer are needed" in done.stderr
    assert "--prompt_embeds, a file of embeddings" in done.stderr


def test_a_long_prompt_says_what_was_cut(pipelines: dict[str, Path], cli: Cli, tmp_path: Path) -> None:
    begin = ["generate", "--pipeline", pipelines["alpha-ms"], "--num_inference_steps", 1, "--seed", 1]
    begin += ["--height", 64, "--width", 64, "--use_resolution_binning", "no", "--output", tmp_path / "a.png"]
    done = cli("pixart", *begin, "--prompt", "a red cat on a mat, " * 60 + "the end")
    assert done.returncode == 0, done.stderr
    assert "note: the prompt is longer than 120 tokens: cut off was '" in done.stdout
    assert "the end'" in done.stdout


def test_nothing_that_guidance_begins_at(pipelines: dict[str, Path], cli: Cli, tmp_path: Path) -> None:
    pipeline = shutil.copytree(pipelines["alpha-ms"], tmp_path / "pipeline", symlinks=True)
    (pipeline / "original_extras.safetensors").unlink()
    inputs("alpha-ms", tmp_path)
    prompt_only = {k: v for k, v in load_file(tmp_path / "embeds.safetensors").items() if k.startswith("prompt")}
    save_file(prompt_only, tmp_path / "embeds.safetensors")
    begin = ["generate", "--pipeline", pipeline, "--prompt_embeds", tmp_path / "embeds.safetensors"]
    done = cli("pixart", *begin, "--output", tmp_path / "a.png")
    assert done.returncode == 2, done.stderr
    assert "--null_caption is needed" in done.stderr


def test_a_file_is_not_replaced(pipelines: dict[str, Path], cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"mine")
    begin = ["generate", "--pipeline", pipelines["alpha-ms"], "--prompt", "a", "--output", tmp_path / "a.png"]
    done = cli("pixart", *begin)
    assert done.returncode == 2
    assert "exists" in done.stderr
    assert (tmp_path / "a.png").read_bytes() == b"mine"


def test_latents_of_another_shape(pipelines: dict[str, Path], cli: Cli, tmp_path: Path) -> None:
    save_file({"latents": torch.zeros(1, 3, 8, 8)}, tmp_path / "three.safetensors")
    save_file({"latents": torch.zeros(1, 4, 8, 8)}, tmp_path / "small.safetensors")
    begin = ["generate", "--pipeline", pipelines["alpha-ms"], "--prompt", "a", "--output", tmp_path / "a.png"]
    done = cli("pixart", *begin, "--latents", tmp_path / "three.safetensors")
    assert done.returncode == 3
    assert "[1, 3, 8, 8]: floats [B, 4, height / 8, width / 8] are needed" in done.stderr
    save_file({"latents": torch.zeros(1, 4, 0, 8)}, tmp_path / "none.safetensors")
    done = cli("pixart", *begin, "--latents", tmp_path / "none.safetensors")
    assert done.returncode == 3
    assert "[1, 4, 0, 8]: floats" in done.stderr
    save_file({"latents": torch.full((1, 4, 8, 8), torch.nan)}, tmp_path / "nan.safetensors")
    done = cli("pixart", *begin, "--latents", tmp_path / "nan.safetensors")
    assert done.returncode == 3
    assert "nan.safetensors: latents: holds NaN or infinity" in done.stderr
    done = cli("pixart", *begin, "--latents", tmp_path / "small.safetensors", "--height", 128)
    assert done.returncode == 2
    assert "--height 128: the latents given are of 64 pixels" in done.stderr


def test_an_encoder_and_a_tokenizer_may_be_given(pipelines: dict[str, Path], cli: Cli, tmp_path: Path) -> None:
    given: list[Any] = ["--vae", vae_of("alpha"), "--text_encoder", TEXT_ENCODER, "--tokenizer", TOKENIZER]
    begin = ["generate", "--pipeline", PARTS / "alpha-fixed.pth", "--num_attention_heads", HEADS, *given]
    done = cli("pixart", *begin, "--prompt", "a cat", "--num_inference_steps", 1, "--output", tmp_path / "a.png")
    assert done.returncode == 0, done.stderr
    assert opened(tmp_path / "a.png").size == (128, 128)
    other = [*begin, "--height", 64, "--width", 64, "--prompt", "a", "--output", tmp_path / "b.png"]
    done = cli("pixart", *other)
    assert done.returncode == 2
    assert "the training code draws 128 x 128" in done.stderr


SMALL: list[object] = ["--height", 64, "--width", 64, "--use_resolution_binning", "no", "--num_inference_steps", 2]


def test_several_prompts(pipelines: dict[str, Path], cli: Cli, tmp_path: Path) -> None:
    """Each picture holds its own prompt."""
    begin = ["generate", "--pipeline", pipelines["alpha-ms"], *SMALL, "--num_images_per_prompt", 2]
    done = cli("pixart", *begin, "--prompt", "a red cat", "--prompt", "a dog", "--output", tmp_path / "a.png")
    assert done.returncode == 0, done.stderr
    kept = [json.loads(opened(tmp_path / f"a-{i}.png").text["convert-pixart"])["prompt"] for i in (1, 2, 3, 4)]
    assert kept == ["a red cat", "a red cat", "a dog", "a dog"]


def test_latents_and_the_seed_of_further_noise(pipelines: dict[str, Path], cli: Cli, tmp_path: Path) -> None:
    """Some samplers add noise, whatever the picture begins with: with a seed it is the same again."""
    save_file({"latents": torch.ones(1, 4, 8, 8)}, tmp_path / "ones.safetensors")
    begin = ["generate", "--pipeline", pipelines["alpha-ms"], "--prompt", "a --ar 1:2", "--num_inference_steps", 6]
    begin += ["--sampler", "sa-solver", "--latents", tmp_path / "ones.safetensors", "--output_type", "latent"]
    drawn = []
    for i, seed in enumerate((3, 3, 4)):
        out = tmp_path / f"{i}.safetensors"
        done = cli("pixart", *begin, "--seed", seed, "--output", out, "--json")
        assert done.returncode == 0, done.stderr
        parameters = json.loads(done.stdout)["parameters"]
        assert (parameters["seed"], parameters["height"], parameters["width"]) == (seed, 64, 64)
        drawn.append(load_file(out)["latents"])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_files_are_asked_for_before_anything_is_drawn(pipelines: dict[str, Path], cli: Cli, tmp_path: Path) -> None:
    """Of several pictures each file; and nothing that is read is written over."""
    begin = ["generate", "--pipeline", pipelines["alpha-ms"], *SMALL, "--prompt", "a"]
    (tmp_path / "a-2.png").write_bytes(b"mine")
    done = cli("pixart", *begin, "--num_images_per_prompt", 2, "--output", tmp_path / "a.png")
    assert done.returncode == 2
    assert "a-2.png: exists; use --overwrite" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a-2.png"]
    both = tmp_path / "both.safetensors"
    latent = [*begin, "--output_type", "latent", "--output", both, "--save_prompt_embeds", both, "--overwrite"]
    done = cli("pixart", *latent)
    assert done.returncode == 2
    assert "give each a file of its own" in done.stderr
    original = tmp_path / "original.pth"
    original.write_bytes((PARTS / "alpha-ms.pth").read_bytes())
    over = ["--num_attention_heads", HEADS, "--reference", original, "--save_prompt_embeds", original, "--overwrite"]
    done = cli("pixart", *begin, *over, "--output", tmp_path / "b.png")
    assert done.returncode == 2
    assert "original.pth: is the input" in done.stderr
    assert original.read_bytes() == (PARTS / "alpha-ms.pth").read_bytes()


def test_relative_is_not_blind() -> None:
    assert relative(torch.ones(4) * 1.1, torch.ones(4)) == pytest.approx(0.1, rel=1e-5)
