"""How a user says which compression a model has, and how a config does."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.errors import UsageError
from converter.models.pixart import pixart_transformer
from converter.models.pixart.compression import SAMPLINGS, Compression, fields, of_fields, parse

compressions = st.builds(
    Compression,
    st.sampled_from(SAMPLINGS),
    st.integers(2, 9),
    st.frozensets(st.integers(0, 60), min_size=1, max_size=20),
)


def test_the_class_that_travels_knows_the_same_samplings() -> None:
    assert set(SAMPLINGS) == set(pixart_transformer.SAMPLINGS)


@given(compressions)
def test_what_is_written_is_read_again(how: Compression) -> None:
    assert parse("kv_compress", str(how)) == how
    assert of_fields(fields(how)) == how
    assert parse("kv_compress", str(how), depth=max(how.blocks) + 1) == how
    with pytest.raises(UsageError, match="the model has blocks"):
        parse("kv_compress", str(how), depth=max(how.blocks))


@pytest.mark.parametrize("value", [False, "false", "no", "None", " off "])
def test_a_model_that_compresses_nothing(value: Any) -> None:
    assert parse("kv_compress", value) is None
    assert of_fields(fields(None)) is None


@pytest.mark.parametrize(
    "value",
    [
        True, 2, "", "true", "conv", "sampling=conv", "sampling=conv,factor=2", "sampling=conv,factor=2,blocks=",
        "sampling=mean,factor=2,blocks=1", "sampling=ave,factor=1,blocks=1", "sampling=ave,factor=two,blocks=1",
        "sampling=ave,factor=2,blocks=3-1", "sampling=ave,factor=2,blocks=-1",
        "sampling=ave,factor=2,blocks=1,sampling=ave",
        "sampling=ave,factor=2,blocks=1-", "sampling=ave,factor=2,blocks=0-99999", "sampling=ave,factor=²,blocks=1",
        "blocks=1,factor=2,sampling=ave,size=3", "1-2,sampling=ave,factor=2,blocks=3", ["sampling"],
    ],
)  # fmt: skip
def test_what_says_no_compression_is_refused_in_one_line(value: Any) -> None:
    with pytest.raises(UsageError, match=r"^`kv_compress`") as raised:
        parse("kv_compress", value)
    assert "\n" not in str(raised.value)
