"""What becomes of a model's buffers in an average of models that averages them too: made by torch itself."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn


class _Holder(nn.Module):
    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.register_buffer("pos_embed", table.clone())


def averaged(table: torch.Tensor, decay: float = 0.9999, updates: int = 3000) -> torch.Tensor:
    """A buffer that no step changes, after so many updates of an average: it drifts by the rounding of each."""
    model = _Holder(table)
    average = AveragedModel(model, avg_fn=get_ema_avg_fn(decay), use_buffers=True)
    for _ in range(updates):
        average.update_parameters(model)
    return average.module.state_dict()["pos_embed"]
