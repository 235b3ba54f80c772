"""Conversions on the Hugging Face hub: published with a model card, by way of `huggingface_hub` and its settings."""

from .upload import Pushed, check, push

__all__ = ["Pushed", "check", "push"]
