"""Values that a TOML file may hold, and how they are written in it."""

from __future__ import annotations

import json
from datetime import date, datetime
from typing import Any

from hypothesis import strategies as st

ANY = st.one_of(
    st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]), max_size=8),
    st.integers(-(10**400), 10**400),
    st.floats(),
    st.booleans(),
    st.dates(),
    st.datetimes(),
    st.lists(st.integers(0, 3) | st.sampled_from(["float32", "int8"]), max_size=3),
)


def toml(value: Any) -> str:
    """A value as TOML writes it.

    >>> toml(["a", True]), toml(date(2027, 1, 31))
    ('["a", true]', '2027-01-31')
    """
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, str | bool):
        return json.dumps(value).replace("\x7f", "\\u007f")
    return str(value)
