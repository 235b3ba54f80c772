"""Sources on the Hugging Face hub, fetched into its cache.

Fetching is below `conversion`, which opens what is fetched; `publishing` is above, as it shows conversions' records.

Everything goes through `huggingface_hub`, so its settings hold: HF_ENDPOINT, HF_HOME, HF_TOKEN, HF_HUB_OFFLINE. It is
imported where it is first needed: a path on this machine never needs it.
"""

from .source import local, local_component

__all__ = ["local", "local_component"]
