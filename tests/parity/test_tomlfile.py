"""TOML that people write: what grows with the square in a parser is refused before it is parsed, and nothing else."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converter.errors import UsageError
from converter.parity.ci.tomlfile import DEEPEST, LIMIT, MOST_PARTS, read_toml

SPELT = {"bare": "a", "quoted": '"a.b"', "literal": "'a.b'", "number": "3", "escaped": r'"\"."'}
parts = st.lists(st.sampled_from(sorted(SPELT.values())), min_size=1, max_size=3 * MOST_PARTS)
blanks = st.sampled_from(["", " ", "\t "])
# How a key stands in a document.
places = st.sampled_from(["{} = 1", "[{}]", "[[{}]]", "x = {{ {} = 1 }}", "x = [1.5, {{ {} = 1 }}]", "[x]\n{} = 1\n"])
# What comes before it, in which no dot is that of a key.
harmless = st.sampled_from(
    [
        "",
        f"# {'.a' * 40}\n",
        f'p = "{"a." * 40}"\n',
        f"p = '''\n{'a.' * 40}\n''\n'''\n",
        'p = """\\""".."""\n',
        "p = '\\'\n",
        f"p = [{', '.join(['1.5'] * 40)}]\n",
        "p = -1.5e-3\nq.r = 1979-05-27T07:32:00.5Z\n",
        "p.p = 1\r\n",
    ]
)


def written(folder: Path, content: str) -> Path:
    path = folder / "parity.toml"
    path.write_bytes(content.encode())
    return path


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=harmless, key=parts, blank=blanks, place=places)
def test_a_key_of_many_parts_is_refused_whatever_it_is_made_of(
    tmp_path: Path, before: str, key: list[str], blank: str, place: str
) -> None:
    content = before + place.format(f"{blank}.{blank}".join(key)) + "\n"
    if len(key) > MOST_PARTS:
        with pytest.raises(UsageError, match=rf"line \d+: a key of more than {MOST_PARTS} parts"):
            read_toml(written(tmp_path, content))
    else:
        read_toml(written(tmp_path, content))


@pytest.mark.parametrize("opening", ["[", "{a=", "[{a=", "{a=["])
def test_what_is_nested_too_deeply_is_refused(tmp_path: Path, opening: str) -> None:
    closing = "".join({"[": "]", "{": "}"}[c] for c in reversed(opening) if c in "[{")
    for count in (1, DEEPEST // len(closing), DEEPEST // len(closing) + 1, 10_000):
        path = written(tmp_path, f"k = {opening * count}1{closing * count}\n")
        if count * len(closing) <= DEEPEST:
            read_toml(path)
        else:
            with pytest.raises(UsageError, match="line 1: more than 16 arrays and tables inside each other"):
                read_toml(path)


HUGE = {
    "one key": "a." * 20_000 + "a = 1",
    "quoted": '"a".' * 10_000 + "a = 1",
    "a table": "[" + "a." * 20_000 + "a]",
    "inline": "x = {" + "a." * 20_000 + "a = 1}",
    "many lines": f"{'a.' * 400}a = 1\n" * 40,
    "tables": "".join(f"[{'.'.join(['a'] * count)}]\n" for count in range(1, 280)),
    "escapes in a string that never ends": 'a = """' + '\\"""' * 100_000,
    "quotes on every line": "a = '\n" * 60_000,
}


@pytest.mark.parametrize("name", HUGE)
def test_what_grows_with_the_square_is_refused_at_once(tmp_path: Path, name: str) -> None:
    began = time.process_time()
    with pytest.raises(UsageError) as raised:
        read_toml(written(tmp_path, HUGE[name]))
    assert time.process_time() - began < 2
    assert "\n" not in str(raised.value)


def test_a_line_is_counted_through_strings_of_several(tmp_path: Path) -> None:
    content = "a = \"\"\"\n\n\"\"\"\n# \nb = '''\n'''\n" + "c." * 30 + "d = 1"
    with pytest.raises(UsageError, match="people write: line 7: a key of more than 16 parts"):
        read_toml(written(tmp_path, content))


def test_a_file_of_the_size_that_is_allowed_is_read(tmp_path: Path) -> None:
    line = "key_{:06} = 1.5\n"
    content = "".join(map(line.format, range(LIMIT // len(line.format(0)) // 10)))
    assert len(read_toml(written(tmp_path, content))) == content.count("\n")
