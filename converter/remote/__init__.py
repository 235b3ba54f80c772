"""Sources and targets in object storage, and wherever else fsspec reaches, by URL: `s3://bucket/runs/a.pth`."""

from .source import fetched
from .store import is_url, matching, shown
from .target import send, target_at

__all__ = ["fetched", "is_url", "matching", "send", "shown", "target_at"]
