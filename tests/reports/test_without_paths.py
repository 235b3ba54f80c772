"""Texts that are published keep no folder of somebody's computer."""

from __future__ import annotations

import pytest

from converter.reports.published import without_paths


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/me/runs/x.pth: missing", "x.pth: missing"),
        ("in (/home/me/x) and '../../me/y' or ~/me/z", "in (x) and 'y' or z"),
        (r"C:\me\x.pth, D:/me/y, \\me\share\z", "x.pth, y, z"),
        ("transformer/config.json and 3 / 4, and/or", "transformer/config.json and 3 / 4, and/or"),
        ("t999 / epsilon; https://host/a/b; hf://owner/name/x", "t999 / epsilon; https://host/a/b; hf://owner/name/x"),
        ("me/my runs/x.pth", "x.pth"),
    ],
)
def test_texts_lose_their_folders(text: str, shown: str) -> None:
    assert without_paths({"a": [text]}, ["me/my runs/y", "hf://owner/name/x", "/", "..", "."]) == {"a": [shown]}


def test_texts_are_searched_in_time_linear_in_them() -> None:
    for part in ("/a", "../", "C:\\", "\\\\", "/", "~", "a/b", "~a"):
        without_paths(part * 50_000)
