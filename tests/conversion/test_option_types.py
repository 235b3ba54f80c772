"""Options from Python are of the types that they are declared with: 'false' is true, and True is 1."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from makers import GOLDEN

from converter import UsageError, convert, inspect
from converter.parity import check
from converter.parity.choices import CheckOptions


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"overwrite": "false"}, "`overwrite` 'false': must be bool, not str"),
        ({"allow_zeros": 1}, "`allow_zeros` 1: must be bool, not int"),
        ({"variant": 1}, "`variant` 1: must be str or None, not int"),
        ({"dtype": ["float16"]}, "`dtype` ['float16']: must be str or None, not list"),
        ({"max_shard_size": True}, "`max_shard_size` True: must be str or int or None, not bool"),
        ({"family": Path("x.py")}, "must be str or None, not PosixPath"),
        ({"weights": "EMA"}, "`weights` EMA: one of raw, ema"),
        ({"hyper_parameters": [1]}, "`hyper_parameters`: must map names to values, not be a list"),
    ],
)
def test_convert(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        convert(GOLDEN / "sigma-ms.pth", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"require_evidence": "no"}, "`require_evidence` 'no': must be bool, not str"),
        ({"threads": "2"}, "`threads` '2': must be int or None, not str"),
        ({"dtype": 16}, "`dtype` 16: must be str or Sequence or None, not int"),
        ({"hyper_parameters": [1]}, "`hyper_parameters`: must map names to values, not be a list"),
    ],
)
def test_check(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        check(GOLDEN / "sigma-ms.pth", tmp_path, **options)


def test_inspect() -> None:
    options: dict[str, Any] = {"hyper_parameters": [1]}
    with pytest.raises(UsageError, match="`hyper_parameters`: must map names to values, not be a list"):
        inspect(GOLDEN / "sigma-ms.pth", **options)


@pytest.mark.parametrize(
    ("asked", "run"),
    [
        (None, ("float64", "float32")), ("float64", ("float64",)), ("float32", ("float64", "float32")),
        ("bfloat16", ("float64", "float32", "bfloat16")),  # takes the place of no gate
        (["float16", "float64"], ("float64", "float16")),
    ],
)  # fmt: skip
def test_half_precision_takes_the_place_of_no_gate(asked: Any, run: tuple[str, ...]) -> None:
    assert CheckOptions(dtype=asked).precisions == run
