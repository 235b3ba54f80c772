"""What a team's CI needs around `check`: a list of checkpoints, waivers in files, a cache of results, batches."""

from .batch import check_all

__all__ = ["check_all"]
