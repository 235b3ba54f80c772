"""Conversions published on the Hugging Face hub with a model card, by way of `huggingface_hub` and its settings.

Above `conversion` and `parity`, whose results it publishes; fetching sources is below them, in `hub`.
"""

from .upload import Pushed, check, push

__all__ = ["Pushed", "check", "push"]
