# Licence: Apache-2.0. From convert-pixart: converter/models/pixart/pixart_transformer.py. Needs diffusers and torch.
"""PixArt with normalised queries and keys, and with compressed keys and values, which diffusers' own class lacks.

`PixArtExtendedTransformer2DModel` is `PixArtTransformer2DModel`, whose self attention does two things more between its
projections and the split into heads; all else is diffusers' own, the attention processors too. This file lies beside
the `config.json` that names it: `AutoModel.from_pretrained(..., trust_remote_code=True)`.
Source: PixArt-sigma (arXiv 2403.04692, "Efficient DiT Design"), and AttentionKVCompress in its repository,
diffusion/model/nets/PixArt_blocks.py.
"""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import PixArtTransformer2DModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

SAMPLINGS = ("conv", "uniform", "ave", "uniform_every")


class PixArtExtendedAttention(Attention):
    """An attention of diffusers, of which queries and keys are normalised, and keys and values compressed.

    It takes the place of a `stock` one, and all that this has. Without `sampling`, the `grid` is ignored.
    """

    def __init__(
        self, stock: Attention, *, qk_norm: bool = False, sampling: str | None = None, factor: int = 1
    ) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(stock.__dict__)
        width, self.sampling, self.factor = self.inner_dim, sampling, factor
        self.q_norm = nn.LayerNorm(width, eps=1e-5) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width, eps=1e-5) if qk_norm else nn.Identity()
        if sampling == "conv":  # begins as the average, as in the original
            self.sr = nn.Conv2d(width, width, factor, stride=factor, groups=width)
            nn.init.constant_(self.sr.weight, 1 / factor**2)
            nn.init.constant_(self.sr.get_parameter("bias"), 0)
            self.norm = nn.LayerNorm(width, eps=1e-5)

    def compress(self, tokens: Tensor, grid: tuple[int, int]) -> Any:
        """Of keys or values (B, N, D), N = rows * columns, floor(rows / factor) * floor(columns / factor) ones, with
        'uniform_every' N / factor. Where the original fails for a remainder, so does this."""
        count, (rows, columns), factor = tokens.shape[1], grid, self.factor
        if self.sampling is None:
            return tokens
        if self.sampling == "uniform_every" and count % factor:
            raise ValueError(f"KV compression 'uniform_every': {count} tokens are not a multiple of {factor}")
        if self.sampling == "uniform" and (rows % factor or columns % factor):
            raise ValueError(f"KV compression 'uniform': a grid of {rows} x {columns} is not a multiple of {factor}")
        if self.sampling == "uniform_every":
            return tokens[:, ::factor]
        image = tokens.transpose(1, 2).unflatten(2, grid)
        if self.sampling == "conv":
            return self.norm(self.sr(image).flatten(2).transpose(1, 2))
        # 'ave' in the original, which averages nothing; without a remainder, the tokens that its 'uniform' takes.
        return nn.functional.interpolate(image, scale_factor=1 / factor, mode="nearest").flatten(2).transpose(1, 2)

    def forward(self, hidden_states: Tensor, *args: Any, grid: tuple[int, int] = (0, 0), **kwargs: Any) -> Any:
        return _AsProcessorsSeeIt(self, grid).forward(hidden_states, *args, **kwargs)

    def fuse_projections(self, fuse: bool = True) -> None:
        raise ValueError("fused projections would skip the norms and the KV compression of this model")


class _AsProcessorsSeeIt:
    """An attention as its processor sees it, whichever that is: all that it has, but with more in its projections.

    The projections themselves stay plain layers, so that a LoRA changes what is normalised and compressed.
    """

    forward = Attention.forward  # calls the processor with this in place of the attention

    def __init__(self, attention: PixArtExtendedAttention, grid: tuple[int, int]) -> None:
        self._attention, self._grid = attention, grid

    def __getattr__(self, name: str) -> Any:
        return getattr(self._attention, name)

    def to_q(self, hidden_states: Tensor) -> Any:
        return self._attention.q_norm(self._attention.to_q(hidden_states))

    def to_k(self, hidden_states: Tensor) -> Any:
        return self._attention.compress(self._attention.k_norm(self._attention.to_k(hidden_states)), self._grid)

    def to_v(self, hidden_states: Tensor) -> Any:
        return self._attention.compress(self._attention.to_v(hidden_states), self._grid)


class PixArtExtendedTransformer2DModel(PixArtTransformer2DModel):
    """`PixArtTransformer2DModel` with qk-norm and KV compression; the same model where it has neither.

    Args, beside those of the stock class:
        qk_norm: queries and keys of the self attention are normalised, over all channels and not head by head.
        kv_compress_sampling: how its keys and values become fewer, one of `SAMPLINGS`.
        kv_compress_factor: by which rows and columns of the token grid do (for 'uniform_every': the tokens).
        kv_compress_blocks: indices of the blocks in which they do.
    """

    _skip_layerwise_casting_patterns = ("pos_embed", "norm", "adaln_single", r"\.sr$")  # the stock ones, and `sr`
    _repeated_blocks = ("BasicTransformerBlock",)
    _auto_class = "AutoModel"  # a saved config names this file

    def __init__(self, *args: Any, qk_norm: bool = False, kv_compress_sampling: str | None = None,
                 kv_compress_factor: int = 1, kv_compress_blocks: Sequence[int] = (),
                 **kwargs: Any) -> None:  # fmt: skip
        super().__init__(*args, **kwargs)
        sampling, factor, listed = kv_compress_sampling, kv_compress_factor, list(kv_compress_blocks)
        own = {"kv_compress_sampling": sampling, "kv_compress_factor": factor, "kv_compress_blocks": listed}
        self.register_to_config(qk_norm=qk_norm, **own)
        self.compresses, blocks = factor > 1 and bool(listed), self.transformer_blocks
        named = sampling in SAMPLINGS or (sampling is None and not self.compresses)
        if not named or factor < 1 or not set(listed) <= set(range(len(blocks))):
            raise ValueError(f"no such KV compression in {len(blocks)} blocks: {own}; samplings are {SAMPLINGS}")
        for i, block in enumerate(blocks):
            if qk_norm or self.compresses:
                how = sampling if self.compresses and i in listed else None
                block.attn1 = PixArtExtendedAttention(block.attn1, qk_norm=qk_norm, sampling=how, factor=factor)
            if self.compresses and block.attn2 is not None:  # it is given the grid as well
                block.attn2 = PixArtExtendedAttention(block.attn2)

    # The fields of a config are read off the signature: those of the stock class, and those above.
    vars(__init__)["__signature__"] = inspect.Signature([
        *inspect.signature(PixArtTransformer2DModel.__init__).parameters.values(),
        *(p for p in inspect.signature(__init__).parameters.values() if p.kind is p.KEYWORD_ONLY),
    ])  # fmt: skip

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Any = None, timestep: Any = None,
                added_cond_kwargs: Any = None, cross_attention_kwargs: Any = None, *args: Any,
                **kwargs: Any) -> Any:  # fmt: skip
        """As in the stock class. The grid of the tokens goes to the attentions as one of `cross_attention_kwargs`, so
        that gradient checkpointing repeats a block with its own, and `torch.compile` sees it."""
        if self.compresses:
            rows, columns = (side // self.config.patch_size for side in hidden_states.shape[-2:])
            cross_attention_kwargs = {**(cross_attention_kwargs or {}), "grid": (rows, columns)}
        conditions = (encoder_hidden_states, timestep, added_cond_kwargs)
        return super().forward(hidden_states, *conditions, cross_attention_kwargs, *args, **kwargs)

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in the stock class, without the warning that `auto_map`, which `AutoModel` reads, is no argument."""
        return super().extract_init_dict({k: v for k, v in config_dict.items() if k != "auto_map"}, **kwargs)

    def save_config(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As in the stock class, with this file, which the saved config names."""
        super().save_config(save_directory, *args, **kwargs)
        Path(save_directory, Path(__file__).name).write_bytes(Path(__file__).read_bytes())
