"""The Hugging Face hub, both ways: sources that lie there, and results that are published there.

Everything goes through `huggingface_hub`, so its settings hold: HF_ENDPOINT, HF_HOME, HF_TOKEN, HF_HUB_OFFLINE. It is
imported where it is first needed: a path on this machine never needs it.
"""

from .source import local
from .upload import Pushed, check, push

__all__ = ["Pushed", "check", "local", "push"]
