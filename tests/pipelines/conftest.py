"""What tests of whole pipelines share: their parts, one thread, a cache of diffusers' own for modules that travel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from makers import one_thread

__all__ = ["one_thread"]


@pytest.fixture(autouse=True, scope="session")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where diffusers copies the classes of a pipeline's folder to, before it imports them."""
    from diffusers.utils import dynamic_modules_utils

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield
