"""How two checkpoints differ, tensor by tensor, whatever their layouts: `diff`."""

from .differ import diff
from .result import Diff, Disagreement, TensorDiff, WeightsDiff

__all__ = ["Diff", "Disagreement", "TensorDiff", "WeightsDiff", "diff"]
