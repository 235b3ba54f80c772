"""What was converted to a class that travels loads and runs where this package cannot be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from makers import GOLDEN, HEADS, ROOT, recorded
from safetensors.torch import load_file

import converter
from converter.pipelines.assemble import Components

# What is converted, and of which version, where it becomes a whole pipeline.
MODELS = {"sigma-kvcompress": "sigma", "sigma-qknorm": None, "alpha-ms": "alpha", "alpha-controlnet": None, "dit": None,
          "sana-1.5": None}  # fmt: skip
OF_SANA = {"num_attention_heads": 2, "num_cross_attention_heads": HEADS, "timestep_scale": 1.0}
OURS = "diffusers_modules.local."  # where diffusers puts what it copies from a folder
CLASSES = {
    "sigma-kvcompress": OURS + "pixart_transformer.PixArtExtendedTransformer2DModel",
    "sigma-qknorm": OURS + "pixart_transformer.PixArtExtendedTransformer2DModel",
    "control of alpha-controlnet": OURS + "pixart_controlnet.PixArtControlNetAdapterModel",
    "saved control of alpha-controlnet": OURS + "pixart_controlnet.PixArtControlNetAdapterModel",
    "dit": OURS + "dit_transformer.DiTExactTransformer2DModel",
    "sana-1.5": OURS + "sana_transformer.SanaExactTransformer2DModel",
    "pipeline sigma-kvcompress": "diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma.PixArtSigmaPipeline",
    "part of sigma-kvcompress": OURS + "pixart_transformer.PixArtExtendedTransformer2DModel",
    "pipeline alpha-ms": OURS + "pixart_pipeline.PixArtAlphaMSPipeline",
    "part of alpha-ms": "diffusers.models.transformers.pixart_transformer_2d.PixArtTransformer2DModel",
}

# Prints the classes, and writes what the models put out for their recorded inputs.
ELSEWHERE = """
import json, sys
from pathlib import Path

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "converter":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import torch
from diffusers import AutoModel, DiffusionPipeline
from safetensors.torch import load_file, save_file

def noted(what, thing):
    classes[what] = f"{type(thing).__module__}.{type(thing).__name__}"
    return thing

folders, golden, results, classes = Path(sys.argv[1]), Path(sys.argv[2]), {}, {}
torch.set_num_threads(1)
for folder in sorted(folders.iterdir()):
    recorded = load_file(golden / f"{folder.name}.golden.safetensors")
    case = {key[6:]: tensor for key, tensor in recorded.items() if key.startswith("case0.")}
    words, latent = {"timestep": case["timestep"]}, case["latent"]
    if "caption" in case:
        texts = {"prompt_embeds": case["caption"][:, 0], "prompt_attention_mask": case["caption_mask"][:, 0, 0]}
        words["encoder_hidden_states"], words["encoder_attention_mask"] = texts.values()
        if "sana" not in folder.name:
            words["added_cond_kwargs"] = {"resolution": None, "aspect_ratio": None}
    else:
        words["class_labels"] = case["class_label"]
    if "auto_map" in json.loads((folder / "transformer" / "config.json").read_text()):
        model = noted(folder.name, AutoModel.from_pretrained(str(folder / "transformer"), trust_remote_code=True))
        with torch.no_grad():
            results[folder.name] = model(latent, **words).sample.contiguous()
    if (control := folder / "controlnet").is_dir():
        adapter = noted(f"control of {folder.name}", AutoModel.from_pretrained(str(control), trust_remote_code=True))
        adapter.save_pretrained(saved := str(folder / "saved"))
        again = noted(f"saved control of {folder.name}", AutoModel.from_pretrained(saved, trust_remote_code=True))
        assert again.config.num_layers == adapter.config.num_layers == 2
    if (folder / "model_index.json").is_file():
        pipeline = noted(f"pipeline {folder.name}", DiffusionPipeline.from_pretrained(folder, trust_remote_code=True))
        noted(f"part of {folder.name}", pipeline.transformer)
        how = {"negative_prompt": None, "num_inference_steps": 2, "use_resolution_binning": False}
        how |= {"latents": latent, "height": 8 * latent.shape[2], "width": 8 * latent.shape[3], "output_type": "latent"}
        null = {f"negative_{name}": tensor for name, tensor in texts.items()}
        assert pipeline(**texts, **null, **how).images.isfinite().all()
assert "converter" not in sys.modules
save_file(results, sys.argv[3])
print(json.dumps(classes))
"""


@pytest.mark.slow
def test_every_class_that_travels(tmp_path: Path) -> None:
    folders, results = tmp_path / "folders", tmp_path / "results.safetensors"
    for name, version in MODELS.items():
        words: dict[str, Any] = {"hyper_parameters": OF_SANA if "sana" in name else {"num_attention_heads": HEADS}}
        if version:
            words["hyper_parameters"]["version"] = version
            vae = "vae-alpha" if version == "alpha" else "vae"
            words["components"] = Components(vae=ROOT / "fixtures" / "pipeline" / vae)
        converter.convert(next(GOLDEN.glob(f"{name}.pt*")), folders / name, **words)
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-I", "-c", ELSEWHERE, folders, GOLDEN, results]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "not expected" not in done.stderr  # fields of a config that the class does not know
    assert json.loads(done.stdout) == CLASSES
    outputs = load_file(results)
    assert outputs.keys() == {name for name in MODELS if name not in ("alpha-ms", "alpha-controlnet")}
    for name, output in outputs.items():
        assert (output - recorded(name)[1][0]["output"]).abs().max() < 2e-5
