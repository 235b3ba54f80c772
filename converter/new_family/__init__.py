"""A first draft of a model family out of two lists of keys: what certainly corresponds, and what to look at."""

from .draft import Draft, DraftRow, draft
from .keylist import KeyList, read_keys
from .rendering import render

__all__ = ["Draft", "DraftRow", "KeyList", "draft", "read_keys", "render"]
