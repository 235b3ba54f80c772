"""The recorded SANAs, converted once."""

from __future__ import annotations

from pathlib import Path

import pytest
from makers import GOLDEN
from sanas import GIVEN

import converter


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each of them, by name; no test writes into them."""
    at = tmp_path_factory.mktemp("sana")
    return {
        name: converter.convert(GOLDEN / f"{name}.pth", at / name, hyper_parameters=given).path
        for name, given in GIVEN.items()
    }
