# Licence: Apache-2.0. From convert-pixart: converter/models/pixart/pixart_pipeline.py. Needs diffusers and torch.
"""diffusers' pipeline of PixArt-alpha, for every model that has micro-conditions: it passes them on at 1024 px only.

`PixArtAlphaMSPipeline` is `PixArtAlphaPipeline`, which tells a transformer of another size nothing of the image's size
and aspect ratio, so that the 512 px multi-scale model fails. This file lies beside the `model_index.json` that names
it: `DiffusionPipeline.from_pretrained(..., trust_remote_code=True)`.
Source: PixArt-alpha (arXiv 2310.00426), forward_with_dpmsolver in diffusion/model/nets/PixArtMS.py of its repository.
"""

from typing import Any

import torch
from diffusers import PixArtAlphaPipeline


class PixArtAlphaMSPipeline(PixArtAlphaPipeline):
    """`PixArtAlphaPipeline` with micro-conditions wherever the transformer has them."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As in the stock pipeline."""
        hook = self.transformer.register_forward_pre_hook(self._tell_size, with_kwargs=True)
        try:
            return super().__call__(*args, **kwargs)
        finally:
            hook.remove()

    def _tell_size(self, transformer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The arguments of the transformer, with the size of the image where the stock pipeline leaves it out."""
        if (
            not self.transformer.config.use_additional_conditions
            or kwargs["added_cond_kwargs"]["resolution"] is not None
        ):
            return args, kwargs
        latents, like = args[0], kwargs["encoder_hidden_states"]
        height, width = (side * self.vae_scale_factor for side in latents.shape[-2:])
        conditions = {"resolution": [height, width], "aspect_ratio": [height / width]}
        rows = {k: like.new_tensor(v).repeat(len(latents), 1) for k, v in conditions.items()}
        return args, kwargs | {"added_cond_kwargs": rows}
