# Licence: Apache-2.0. From convert-pixart: converter/models/sana/sana_transformer.py. Needs diffusers and torch.
"""SANA with the attention that it was trained with: eps 1e-6 in the norms of the cross attention, where diffusers has
1e-5, and the clip of the self attention of models trained in fp16, which diffusers has in float16 only.

This file lies beside the `config.json` that names it: `AutoModel.from_pretrained(..., trust_remote_code=True)`.
Source: SANA-1.5 (arXiv 2501.18427), and LiteLA and MultiHeadCrossAttention in the Sana repository,
diffusion/model/nets/sana_blocks.py.
"""

import inspect
from pathlib import Path
from typing import Any

from diffusers import SanaTransformer2DModel
from torch import Tensor, nn

LARGEST = 65504.0  # of float16


def clip(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """The output of the self attention as it was in training, where float16 could hold no more."""
    return output.clip(-LARGEST, LARGEST)


class SanaExactTransformer2DModel(SanaTransformer2DModel):
    """`SanaTransformer2DModel` with the original's attention.

    Args, beside those of the stock class:
        trained_in: 'fp16' for a model whose self attention was clipped in training, else 'bf16'.
    """

    _auto_class = "AutoModel"  # so that a saved config names this file

    def __init__(self, *args: Any, trained_in: str = "bf16", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_to_config(trained_in=trained_in)
        if trained_in not in ("fp16", "bf16"):
            raise ValueError(f"trained_in {trained_in!r}: 'fp16' or 'bf16'")
        for block in self.transformer_blocks:
            for norm in (block.attn2.norm_q, block.attn2.norm_k):
                if norm is not None:
                    norm.eps = 1e-6
            if trained_in == "fp16":
                block.attn1.register_forward_hook(clip)

    # The fields of a config are read off the signature: those of the stock class, and the one above.
    vars(__init__)["__signature__"] = inspect.Signature([
        *inspect.signature(SanaTransformer2DModel.__init__).parameters.values(),
        inspect.signature(__init__).parameters["trained_in"],
    ])  # fmt: skip

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in the stock class, without the warning that `auto_map`, of which `AutoModel` knows, is no argument."""
        return super().extract_init_dict({k: v for k, v in config_dict.items() if k != "auto_map"}, **kwargs)

    def save_config(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As in the stock class, with this file, which the saved config names."""
        super().save_config(save_directory, *args, **kwargs)
        Path(save_directory, Path(__file__).name).write_bytes(Path(__file__).read_bytes())
