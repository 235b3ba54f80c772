"""How two checkpoints differ, tensor by tensor, whatever their layouts: `diff`."""

from .differ import diff
from .result import Diff
from .weights import Disagreement, TensorDiff, WeightsDiff

__all__ = ["Diff", "Disagreement", "TensorDiff", "WeightsDiff", "diff"]
