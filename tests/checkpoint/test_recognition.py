"""A text where weights should be is quoted, made safe to print, and said to be no weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zip_builder import assert_refused, save

from converter.checkpoint.recognition import text_in
from converter.errors import printable

TEXTS = {
    "Entry not found": (b"Entry not found", "this is text, not weights: 'Entry not found' (a message from a server?"),
    "a line": (b"Not Found\r\n", "'Not Found'"),
    "with a mark": (b"\xef\xbb\xbfAccess denied", "'Access denied'"),
    "with two marks": (b"\xef\xbb\xbf\xef\xbb\xbf<html>gone</html>", "an HTML or XML page, not the weights: 'gone'"),
    "user": (b"Invalid username or password.", "'Invalid username or password.'"),
    "UTF-8": ("Zugriff verweigert: f\u00fcr dich nicht".encode(), "f\u00fcr dich nicht"),
    "Latin-1": ("Acc\u00e8s refus\u00e9".encode("latin-1"), "Acc\u00e8s refus\u00e9"),
    "UTF-16": ("Access denied".encode("utf-16"), "'Access denied'"),
    "Chinese": ("\u8bbf\u95ee\u88ab\u62d2\u7edd".encode(), "\u8bbf\u95ee\u88ab\u62d2\u7edd"),
    "two bytes": (b"no", "'no'"),
    "a terminal's command": (b"Not \x1b[31mfound\x1b[0m, whatever you may do about it", r"Not \x1b[31mfound"),
    "a link that was stored as text": (b"../../blobs/0123456789abcdef", "'../../blobs/0123456789abcdef'"),
    "XML": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML page, not the weights: 'Access"),
    "HTML": (b"<!DOCTYPE html><html><head><title>\n 404 Not Found</title>", "HTML or XML page, not the weights: '404"),
    "HTML of another encoding": ("<html>\u8bbf\u95ee".encode("gbk"), "HTML"),
    "JSON": (b'{"error": "not found"}', """JSON text, not the weights: '{"error": "not found"}'"""),
    "an index": (b'{"metadata": {}, "weight_map": {"a": "b"}}', "an index of shards, not the weights: give the folder"),
    "Git-LFS": (b"version https://git-lfs.github.com/spec/v1\r\noid sha256:0\r\nsize 9\r\n", "git lfs pull"),
    "Git-LFS with a mark": (b"\xef\xbb\xbfversion https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "a token": (b"no access for hf_abcdefghijklmnop, Bearer abc.def", "'no access for ***, Bearer ***'"),
    "long": (b"word " * 10_000, "'" + "word " * 32 + "...'"),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ""])
def test_it_is_quoted(tmp_path: Path, name: str, suffix: str) -> None:
    data, fragment = TEXTS[name]
    assert_refused(save(tmp_path, data, f"weights{suffix}"), "offset 0: this is ", fragment)


@given(st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Zs")), min_size=1, max_size=3000))
def test_any_text_is_recognised_also_where_its_beginning_ends_in_a_character(text: str) -> None:
    data = text.encode()
    for head, whole in ((data, True), (data[:2048], len(data) <= 2048)):
        line = text_in(head, whole=whole)
        assert bool(line) == bool(text.lstrip())
        assert line.isprintable()
        assert len(line) < 600
        if line.startswith("this is text"):
            assert printable(" ".join(text.split())[:20]) in line or "***" in line


@given(st.binary(max_size=300))
def test_anything_at_all_gives_one_printable_line(data: bytes) -> None:
    assert text_in(data, whole=True).isprintable()


@pytest.mark.parametrize("data", [
    b"", b" \n", b"\0\0\0", b"\x80\x02}q\0.", b"\xfe\xdc\xba\x98" * 9, b"abc\0def", bytes(range(256)),
])  # fmt: skip
def test_what_is_no_text(data: bytes) -> None:
    assert text_in(data, whole=True) == ""
