# Licence: Apache-2.0. From convert-pixart: converter/models/dit/dit_transformer.py. Needs diffusers and torch.
"""DiT with the timestep frequencies that it was trained with, 10000^(-j/128), where diffusers has 10000^(-j/127).

This file lies beside the `config.json` that names it: `AutoModel.from_pretrained(..., trust_remote_code=True)`.
Source: DiT (arXiv 2212.09748), TimestepEmbedder in models.py of its repository.
"""

import inspect
from pathlib import Path
from typing import Any

from diffusers import DiTTransformer2DModel


class DiTExactTransformer2DModel(DiTTransformer2DModel):
    """`DiTTransformer2DModel`, and in every block the frequencies of the original; the config's fields are the same."""

    _auto_class = "AutoModel"  # so that a saved config names this file

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for block in self.transformer_blocks:
            block.norm1.emb.time_proj.downscale_freq_shift = 0

    # The fields of a config are read off the signature.
    vars(__init__)["__signature__"] = inspect.signature(DiTTransformer2DModel.__init__)

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in the stock class, without the warning that `auto_map`, of which `AutoModel` knows, is no argument."""
        return super().extract_init_dict({k: v for k, v in config_dict.items() if k != "auto_map"}, **kwargs)

    def save_config(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As in the stock class, with this file, which the saved config names."""
        super().save_config(save_directory, *args, **kwargs)
        Path(save_directory, Path(__file__).name).write_bytes(Path(__file__).read_bytes())
