"""What diffusers' own class computes otherwise than SANA's training code, and the class that has it right.

Both are measured on the original nets: diffusion/model/nets/sana_blocks.py in the Sana repository.
"""

from __future__ import annotations

from ...families.amended import Amended, Amendment
from ...families.base import Findings

QK_NORM, TRAINED_IN, FP16, BF16 = "qk_norm", "trained_in", "fp16", "bf16"  # hyper-parameters, and what the second is


def normed(findings: Findings) -> bool:
    """Whether queries and keys are normalised, in both attentions."""
    return bool(findings[QK_NORM].value)


EPS = Amendment(
    "eps 1e-5 in the norms of the cross attention, where the original has 1e-6",
    "block.attn2.norm_q.eps = block.attn2.norm_k.eps = 1e-6",
    normed,
)
CLIP = Amendment(
    "a self attention that is clipped at 65504 in float16 alone, where an original trained in fp16 always clips it",
    "block.attn1.register_forward_hook(lambda _, __, out: out.clip(-65504, 65504))",
    lambda findings: findings[TRAINED_IN].value == FP16,
)
AMENDED = Amended("SanaTransformer2DModel", "SanaExactTransformer2DModel", "exact_attention", (EPS, CLIP), TRAINED_IN)
