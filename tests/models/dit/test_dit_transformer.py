"""DiT with the original's timestep frequencies in diffusers."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

import makers
import torch
from diffusers import AutoencoderKL, AutoModel, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from makers import GOLDEN, HEADS, ROOT, dit_keyed, recorded

from converter.models.dit.dit_transformer import DiTExactTransformer2DModel

module_cache = makers.module_cache
SETTINGS, CASES = recorded("dit")
CONFIG = {
    "num_layers": SETTINGS["depth"],
    "num_attention_heads": HEADS,
    "attention_head_dim": SETTINGS["hidden_size"] // HEADS,
    "sample_size": SETTINGS["input_size"],
    "patch_size": SETTINGS["patch_size"],
    "out_channels": 8,
    "num_embeds_ada_norm": SETTINGS["num_classes"],
}


def load(kind: Any) -> Any:
    model = kind(**CONFIG)
    state = torch.load(GOLDEN / "dit.pt", weights_only=True)
    model.load_state_dict(dit_keyed(state, SETTINGS["depth"]))
    return model.eval()


def off(model: Any) -> float:
    """How far its outputs are from the recorded ones."""
    errors = []
    for case in CASES:
        with torch.no_grad():
            output = model(case["latent"], timestep=case["timestep"], class_labels=case["class_label"]).sample
        errors.append(float((output - case["output"]).abs().max()))
    return max(errors)


def test_every_recorded_output_is_reproduced() -> None:
    assert off(load(DiTExactTransformer2DModel)) < 2e-5 < 1e-3 < off(load(DiTTransformer2DModel))


def test_its_fields_and_weights_are_those_of_the_stock_class() -> None:
    ours, stock = DiTExactTransformer2DModel, DiTTransformer2DModel
    assert signature(ours.__init__) == signature(stock.__init__)
    assert ours(**CONFIG).state_dict().keys() == stock(**CONFIG).state_dict().keys()
    assert dict(ours(**CONFIG).config) == dict(stock(**CONFIG).config)


def test_what_was_saved_loads_by_its_own_code(tmp_path: Path) -> None:
    """`AutoModel` twice: what it loads, it saves so that it can load it again."""
    load(DiTExactTransformer2DModel).save_pretrained(tmp_path / "0", max_shard_size="200kB")
    assert off(DiTExactTransformer2DModel.from_pretrained(tmp_path / "0")) < 2e-5
    for i in range(2):
        loaded = AutoModel.from_pretrained(f"{tmp_path}/{i}", trust_remote_code=True)
        assert type(loaded).__module__ == "diffusers_modules.local.dit_transformer"
        assert off(loaded) < 2e-5
        loaded.save_pretrained(tmp_path / str(i + 1))


def test_gradient_checkpointing_and_compilation_change_nothing() -> None:
    model, case = load(DiTExactTransformer2DModel), CASES[0]
    words = {"timestep": case["timestep"], "class_labels": case["class_label"]}
    wanted = model(case["latent"], **words).sample
    gradients = torch.autograd.grad(wanted.square().mean(), list(model.parameters()), allow_unused=True)
    model.enable_gradient_checkpointing()
    output = model(case["latent"], **words).sample
    again = torch.autograd.grad(output.square().mean(), list(model.parameters()), allow_unused=True)
    torch.testing.assert_close(again, gradients)
    model.disable_gradient_checkpointing()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")(case["latent"], **words).sample
    assert torch.equal(compiled, wanted)


def test_two_steps_of_the_stock_pipeline() -> None:
    vae = AutoencoderKL.from_pretrained(ROOT / "fixtures" / "pipeline" / "vae")
    images = []
    for kind in (DiTExactTransformer2DModel, DiTTransformer2DModel):
        torch.manual_seed(0)
        transformer = kind(**CONFIG | {"num_embeds_ada_norm": 1000})  # of which the pipeline takes 1000 for none
        pipeline = DiTPipeline(transformer=transformer.eval(), vae=vae, scheduler=DDIMScheduler())
        pipeline.set_progress_bar_config(disable=True)
        words = {"num_inference_steps": 2, "output_type": "np", "generator": torch.Generator().manual_seed(0)}
        images.append(torch.from_numpy(pipeline([3], **words).images))
    assert images[0].isfinite().all()
    assert not torch.equal(*images)
