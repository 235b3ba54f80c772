"""A net as a training code has it: two stacks, rotary positions, linear attention, gated convolutions, a caption."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HIDDEN, HEADS, DEPTH, REFINERS, CAPTION, TOKENS, CHANNELS, PATCH, SIDE = 32, 48, 4, 3, 2, 24, 5, 4, 2, 8
GRID = SIDE // PATCH


def rotary_table(grid: int, dims: int) -> Tensor:
    """(grid^2, dims / 2, 2): cosine and sine of the angles, the first half of them of the row."""
    frequencies = 100.0 ** -(torch.arange(dims // 4) / (dims // 4))
    rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    angles = torch.cat([places.reshape(-1, 1) * frequencies for places in (rows, columns)], dim=1)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Pairs of neighbouring channels of (B, N, H, C), turned by their angles."""
    one, other = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = table[:, None].unbind(-1)
    return torch.stack([one * cos - other * sin, one * sin + other * cos], dim=-1).flatten(-2)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def linear_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, table: Tensor) -> Tensor:
    q, k, v = (part.unflatten(-1, (heads, -1)) for part in (q, k, v))
    q, k = F.elu(q) + 1, F.elu(k) + 1
    weights = torch.einsum("bnhc,bhc->bnh", q, k.sum(1))[..., None]
    sums = torch.einsum("bnhc,bnhd->bhcd", rotate(k, table), v)
    return (torch.einsum("bnhc,bhcd->bnhd", rotate(q, table), sums) / weights).flatten(2)


def sinusoids(t: Tensor) -> Tensor:
    angles = t[:, None] * torch.exp(-torch.arange(16, dtype=t.dtype, device=t.device) / 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def normed(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.q_norm, self.k_norm = Norm(WIDTH), Norm(WIDTH)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        out: Tensor = self.proj(linear_attention(self.q_norm(q), self.k_norm(k), v, HEADS, table))
        return out


class CrossAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_linear, self.kv_linear = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        out: Tensor = self.proj(softmax_attention(self.q_linear(x), *self.kv_linear(y).chunk(2, dim=-1), HEADS))
        return out


class Conv(nn.Module):
    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class GLUMBConv(nn.Module):
    """1 x 1 up, SiLU, depthwise 3 x 3, the value times SiLU of the gate, 1 x 1 down."""

    def __init__(self) -> None:
        super().__init__()
        self.inverted_conv = Conv(nn.Conv2d(WIDTH, 2 * HIDDEN, 1))
        self.depth_conv = Conv(nn.Conv2d(2 * HIDDEN, 2 * HIDDEN, 3, padding=1, groups=2 * HIDDEN))
        self.point_conv = Conv(nn.Conv2d(HIDDEN, WIDTH, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        image = x.transpose(1, 2).unflatten(2, (GRID, GRID))
        value, gate = self.depth_conv(F.silu(self.inverted_conv(image))).chunk(2, dim=1)
        out: Tensor = self.point_conv(value * F.silu(gate))
        return out.flatten(2).transpose(1, 2)


class Block(nn.Module):
    def __init__(self, cross: bool) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(6, WIDTH) / 3)
        self.attn, self.mlp = Attention(), GLUMBConv()
        self.cross_attn = CrossAttention() if cross else None

    def forward(self, x: Tensor, t0: Tensor, y: Tensor, table: Tensor) -> Tensor:
        modulation = self.scale_shift_table[None] + t0.unflatten(1, (6, -1))
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = modulation.chunk(6, dim=1)
        x = x + gate * self.attn(normed(x, shift, scale), table)
        if self.cross_attn:
            x = x + self.cross_attn(x, y)
        out: Tensor = x + gate_mlp * self.mlp(normed(x, shift_mlp, scale_mlp))
        return out


class Refiner(nn.Module):
    """Of the caption."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, y: Tensor) -> Tensor:
        q, k, v = self.qkv(F.layer_norm(y, y.shape[-1:])).chunk(3, dim=-1)
        out: Tensor = y + self.proj(softmax_attention(q, k, v, HEADS))
        return out


class PatchEmbed(nn.Module):
    """Only holds its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(CHANNELS, WIDTH, PATCH, stride=PATCH)


class Final(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mod, self.linear = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, PATCH**2 * 2 * CHANNELS)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        shift, scale = self.mod(F.silu(t))[:, None].chunk(2, dim=-1)
        x = self.linear(normed(x, shift, scale))
        return F.pixel_shuffle(x.transpose(1, 2).unflatten(2, (GRID, GRID)), PATCH)


class Kite(nn.Module):
    rope: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.x_embedder, self.y_proj = PatchEmbed(), nn.Linear(CAPTION, WIDTH)
        self.t_embedder = nn.Sequential(nn.Linear(32, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 6 * WIDTH))
        self.refiner = nn.ModuleList(Refiner() for _ in range(REFINERS))
        self.blocks = nn.ModuleList(Block(cross=i % 2 == 0) for i in range(DEPTH))
        self.final_layer, self.logvar = Final(), nn.Parameter(torch.randn(1))
        self.register_buffer("rope", rotary_table(GRID, WIDTH // HEADS))
        self.register_buffer("null_caption", torch.randn(TOKENS, CAPTION))

    def forward(self, latent: Tensor, timestep: Tensor, caption: Tensor) -> Tensor:
        x, y = self.x_embedder.proj(latent).flatten(2).transpose(1, 2), self.y_proj(caption)
        t = self.t_embedder(sinusoids(timestep))
        t0 = self.t_block(t)
        for refiner in self.refiner:
            y = refiner(y)
        for block in self.blocks:
            x = block(x, t0, y, self.rope)
        out: Tensor = self.final_layer(x, t)
        return out
