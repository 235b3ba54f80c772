"""The class to publish: the same function by diffusers' names; its gate and its last scale come first."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from kite import Norm, linear_attention, normed, rotary_table, sinusoids, softmax_attention
from torch import Tensor, nn


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, linear: bool) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=not linear) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.norm_q, self.norm_k = (Norm(width), Norm(width)) if linear else (None, None)

    def forward(self, x: Tensor, context: Tensor, table: Tensor | None = None) -> Tensor:
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        if self.norm_q and self.norm_k and table is not None:
            attended = linear_attention(self.norm_q(q), self.norm_k(k), v, self.heads, table)
        else:
            attended = softmax_attention(q, k, v, self.heads)
        out: Tensor = self.to_out[0](attended)
        return out


class GLUMBConv(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.conv_inverted = nn.Conv2d(width, 2 * hidden, 1)
        self.conv_depth = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
        self.conv_point = nn.Conv2d(hidden, width, 1, bias=False)

    def forward(self, x: Tensor, grid: int) -> Tensor:
        image = x.transpose(1, 2).unflatten(2, (grid, grid))
        gate, value = self.conv_depth(F.silu(self.conv_inverted(image))).chunk(2, dim=1)
        out: Tensor = self.conv_point(value * F.silu(gate))
        return out.flatten(2).transpose(1, 2)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, cross: bool) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.zeros(6, width))
        self.attn1, self.ff = Attention(width, heads, linear=True), GLUMBConv(width, hidden)
        self.attn2 = Attention(width, heads, linear=False) if cross else None

    def forward(self, x: Tensor, t0: Tensor, y: Tensor, table: Tensor, grid: int) -> Tensor:
        modulation = self.scale_shift_table[None] + t0.unflatten(1, (6, -1))
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = modulation.chunk(6, dim=1)
        h = normed(x, shift, scale)
        x = x + gate * self.attn1(h, h, table)
        if self.attn2:
            x = x + self.attn2(x, y)
        out: Tensor = x + gate_mlp * self.ff(normed(x, shift_mlp, scale_mlp), grid)
        return out


class Refiner(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads, linear=False)

    def forward(self, y: Tensor) -> Tensor:
        h = F.layer_norm(y, y.shape[-1:])
        out: Tensor = y + self.attn(h, h)
        return out


class KiteTransformer2DModel(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(
        self,
        num_attention_heads: int = 4,
        attention_head_dim: int = 8,
        num_layers: int = 3,
        num_refiner_layers: int = 2,
        in_channels: int = 4,
        out_channels: int = 8,
        caption_channels: int = 24,
        mlp_ratio: float = 1.5,
        patch_size: int = 2,
        sample_size: int = 8,
    ) -> None:
        super().__init__()
        heads, width, self.grid = (
            num_attention_heads,
            num_attention_heads * attention_head_dim,
            sample_size // patch_size,
        )
        self.proj_in = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)
        self.time_embed = nn.ModuleDict({"linear_1": nn.Linear(32, width), "linear_2": nn.Linear(width, width)})
        self.time_proj, self.caption_projection = nn.Linear(width, 6 * width), nn.Linear(caption_channels, width)
        self.refiner_blocks = nn.ModuleList(Refiner(width, heads) for _ in range(num_refiner_layers))
        self.transformer_blocks = nn.ModuleList(
            Block(width, heads, int(width * mlp_ratio), cross=i % 2 == 0) for i in range(num_layers)
        )
        self.norm_out, self.proj_out = nn.Linear(width, 2 * width), nn.Linear(width, patch_size**2 * out_channels)
        self.register_buffer("rotary", rotary_table(self.grid, attention_head_dim), persistent=False)

    def forward(self, latent: Tensor, timestep: Tensor, caption: Tensor) -> Tensor:
        x, y = self.proj_in(latent).flatten(2).transpose(1, 2), self.caption_projection(caption)
        t = self.time_embed["linear_2"](F.silu(self.time_embed["linear_1"](sinusoids(timestep))))
        t0 = self.time_proj(F.silu(t))
        for refiner in self.refiner_blocks:
            y = refiner(y)
        for block in self.transformer_blocks:
            x = block(x, t0, y, self.rotary, self.grid)
        scale, shift = self.norm_out(F.silu(t))[:, None].chunk(2, dim=-1)
        x = self.proj_out(normed(x, shift, scale))
        return F.pixel_shuffle(x.transpose(1, 2).unflatten(2, (self.grid, self.grid)), self.config.patch_size)
