"""What tests of models in memory share: one thread, and a cache of diffusers' own for modules that travel."""

from __future__ import annotations

from makers import module_cache, one_thread

__all__ = ["module_cache", "one_thread"]
