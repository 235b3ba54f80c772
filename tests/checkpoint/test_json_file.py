"""JSON by others: what is no JSON is refused, but for the infinities that diffusers writes where they are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from converter.checkpoint.json_file import read_json
from converter.errors import InputError


@pytest.mark.parametrize("text", ["Infinity", "-Infinity"])
def test_infinity_is_read_only_where_it_is_expected(text: str, tmp_path: Path) -> None:
    path = tmp_path / "scheduler_config.json"
    path.write_text(f'{{"lambda_min_clipped": {text}}}')
    assert read_json(path, infinite=True) == {"lambda_min_clipped": float(text)}
    with pytest.raises(InputError, match=f"{text} is not JSON"):
        read_json(path)


@pytest.mark.parametrize("text", ["NaN", "1e999"])
def test_other_numbers_that_are_none_are_always_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(f"[{text}]")
    with pytest.raises(InputError, match=f"{text} is not JSON"):
        read_json(tmp_path / "a.json", infinite=True)
