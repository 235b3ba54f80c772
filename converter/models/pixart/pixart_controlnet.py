# Licence: Apache-2.0. From convert-pixart: converter/models/pixart/pixart_controlnet.py. Needs diffusers and torch.
"""PixArt-delta's ControlNet: copies of a PixArt's first blocks, whose outputs are added to what its own blocks get.

diffusers has no such class; the keys are those of its examples/research_projects/pixart/controlnet_pixart_alpha.py.
Source: arXiv 2401.05252 ("ControlNet-Transformer"); PixArt-alpha, diffusion/model/nets/pixart_controlnet.py."""

from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin, PixArtAlphaPipeline
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.controlnets.controlnet import zero_module
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn


class PixArtControlNetBlock(nn.Module):
    """A copy of a block. The first one also takes the latent's tokens in, all others only what the one before gives."""

    def __init__(self, first: bool, heads: int, head_dim: int, cross_attention_dim: int) -> None:
        super().__init__()
        width = heads * head_dim
        if first:
            self.before_proj = zero_module(nn.Linear(width, width))
        self.transformer_block = BasicTransformerBlock(
            width, heads, head_dim, cross_attention_dim=cross_attention_dim, activation_fn="gelu-approximate",
            attention_bias=True, norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6)  # fmt: skip
        self.after_proj = zero_module(nn.Linear(width, width))  # an untrained adapter changes nothing

    def forward(self, hidden_states: Tensor, control: Tensor, **conditions: Any) -> tuple[Tensor, Tensor]:
        """What is added to the latent's tokens, and the control's tokens for the next copy; all are (B, N, D)."""
        control = hidden_states + self.before_proj(control) if hasattr(self, "before_proj") else control
        control = self.transformer_block(control, **conditions)
        return self.after_proj(control), control


def _run(model: Any, block: nn.Module, *states: Tensor, **conditions: Any) -> Any:
    if torch.is_grad_enabled() and model.gradient_checkpointing:
        return model._gradient_checkpointing_func(lambda *each: block(*each, **conditions), *states)
    return block(*states, **conditions)


class PixArtControlNetAdapterModel(ModelMixin, ConfigMixin):
    """The copies alone, of any number and width; the defaults are those of the published ones."""

    _supports_gradient_checkpointing, gradient_checkpointing = True, False
    _no_split_modules, _auto_class = ("PixArtControlNetBlock",), "AutoModel"  # a saved config names this file

    @register_to_config
    def __init__(self, num_layers: int = 13, num_attention_heads: int = 16, attention_head_dim: int = 72,
                 cross_attention_dim: int = 1152) -> None:  # fmt: skip
        super().__init__()
        sizes = num_attention_heads, attention_head_dim, cross_attention_dim
        self.controlnet_blocks = nn.ModuleList(PixArtControlNetBlock(i == 0, *sizes) for i in range(num_layers))

    def forward(self, hidden_states: Tensor, control: Tensor, **conditions: Any) -> list[Tensor]:
        """What is added before the base's blocks 1, 2 and so on, out of its tokens after block 0 and the control's."""
        skips = []
        for block in self.controlnet_blocks:
            skip, control = _run(self, block, hidden_states, control, **conditions)
            skips.append(skip)
        return skips

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:  # `auto_map` is AutoModel's
        return super().extract_init_dict({k: v for k, v in config_dict.items() if k != "auto_map"}, **kwargs)

    def save_config(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        super().save_config(save_directory, *args, **kwargs)
        Path(save_directory, Path(__file__).name).write_bytes(Path(__file__).read_bytes())


class PixArtControlNetTransformerModel(ModelMixin, ConfigMixin):
    """A PixArt and its adapter, used like a transformer; they are saved and loaded each by itself."""

    _supports_gradient_checkpointing, gradient_checkpointing = True, False

    def __init__(self, transformer: Any, controlnet: PixArtControlNetAdapterModel) -> None:
        super().__init__()
        if 0 < len(transformer.transformer_blocks) <= len(controlnet.controlnet_blocks):
            raise ValueError("the adapter has more blocks than the transformer has after its first")
        if getattr(transformer, "compresses", False):
            raise ValueError("the transformer has KV compression, and a ControlNet has none: give another one")
        self.register_to_config(**transformer.config)
        self.transformer, self.controlnet = transformer, controlnet

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, timestep: Tensor,
                added_cond_kwargs: dict[str, Tensor] | None = None, encoder_attention_mask: Tensor | None = None,
                controlnet_cond: Tensor | None = None, conditioning_scale: float = 1.0,
                return_dict: bool = True) -> Any:  # fmt: skip
        """As the transformer's; `controlnet_cond` is a latent like `hidden_states`, or None for no control at all."""
        base, conditions, skips = self.transformer, {"encoder_attention_mask": encoder_attention_mask}, list[Tensor]()
        if hook := getattr(base, "_hf_hook", None):  # of a pipeline that offloads: not `base` is called, but its parts
            hook.pre_forward(base)
        (batch, _, height, width), patch = hidden_states.shape, base.config.patch_size
        if encoder_attention_mask is not None and encoder_attention_mask.ndim == 2:
            conditions["encoder_attention_mask"] = (1 - encoder_attention_mask.to(hidden_states))[:, None] * -10000.0
        latents = [hidden_states] if controlnet_cond is None else [hidden_states, controlnet_cond]
        hidden_states, *control = base.pos_embed(torch.cat(latents)).chunk(len(latents))
        conditions["timestep"], embedded = base.adaln_single(timestep, added_cond_kwargs, batch, hidden_states.dtype)
        conditions["encoder_hidden_states"] = base.caption_projection(encoder_hidden_states)
        for i, block in enumerate(base.transformer_blocks):
            skips = self.controlnet(hidden_states, *control, **conditions) if i == 1 and control else skips
            if 0 < i <= len(skips):
                hidden_states = hidden_states + conditioning_scale * skips[i - 1]
            hidden_states = _run(self, block, hidden_states, **conditions)
        shift, scale = (base.scale_shift_table[None] + embedded[:, None]).chunk(2, dim=1)
        output = base.proj_out(base.norm_out(hidden_states) * (1 + scale) + shift)
        output = output.reshape(batch, height // patch, width // patch, patch, patch, base.out_channels)
        output = output.permute(0, 5, 1, 3, 2, 4).reshape(batch, base.out_channels, height, width)
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)


class PixArtControlNetPipeline(PixArtAlphaPipeline):
    """Draws with an `image`, or `control_latents`, one or one for each prompt; sigma's with max_sequence_length=300."""

    def __init__(self, tokenizer: Any, text_encoder: Any, vae: Any, transformer: Any, scheduler: Any, controlnet: Any):
        super().__init__(tokenizer, text_encoder, vae, transformer, scheduler)
        self.register_modules(controlnet=controlnet)

    def __call__(self, prompt: Any = None, image: Any = None, control_latents: Tensor | None = None,
                 conditioning_scale: float = 1.0, num_images_per_prompt: int = 1, generator: Any = None,
                 **others: Any) -> Any:  # fmt: skip
        base, vae = self.components["transformer"], self.vae

        def add(_: nn.Module, latents: tuple[Tensor], named: dict[str, Any]) -> tuple[tuple[Tensor], dict[str, Any]]:
            nonlocal control_latents
            batch, size = len(latents[0]), [side * self.vae_scale_factor for side in latents[0].shape[-2:]]
            if image is not None and control_latents is None:
                pixels = self.image_processor.preprocess(image, *size).to(vae.device, vae.dtype)
                control_latents = vae.encode(pixels).latent_dist.sample(generator) * vae.config.scaling_factor
            if control_latents is not None:
                prompts = 1 if isinstance(prompt, str) else len(others["prompt_embeds"] if prompt is None else prompt)
                if len(control_latents) not in (1, prompts):
                    raise ValueError(f"{len(control_latents)} controls, {prompts} prompts: give one, or one for each")
                which = torch.arange(batch) // num_images_per_prompt % len(control_latents)
                named["controlnet_cond"] = control_latents[which].to(latents[0])
            sizes, ratios = (torch.tensor([n] * batch).to(latents[0]) for n in (size, [size[0] / size[1]]))
            named["added_cond_kwargs"] = {"resolution": sizes, "aspect_ratio": ratios}
            return latents, named | {"conditioning_scale": conditioning_scale}

        self.transformer = PixArtControlNetTransformerModel(base, self.controlnet)
        self.transformer.register_forward_pre_hook(add, with_kwargs=True)
        try:
            return super().__call__(prompt, num_images_per_prompt=num_images_per_prompt, generator=generator, **others)
        finally:
            self.transformer = base
