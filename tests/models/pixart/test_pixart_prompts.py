"""Prompts: cleaned or as they are, and their size flags."""

from __future__ import annotations

import pytest
from makers import HEADS, ROOT

from converter.errors import UsageError
from converter.models.pixart.prompts import clean_prompt, split_size_flags
from converter.nets.pipeline_spec import ORIGINAL
from converter.pipelines.model import open_picture_model

SIGMA = ROOT / "fixtures" / "pipeline" / "sigma-ms.pth"


@pytest.mark.parametrize(
    ("prompt", "cleaned"),
    [
        ("  A Cat ", "a cat"),
        ("see https://cats.org/one and www.cats.com now", "see and now"),
        ("a <b>bold</b> cat", "a bold cat"),
        ("portrait of <person>", "portrait of person"),
        ("cat #123 by @painter", "cat by"),
        ("a cat \u732b sits", "a cat sits"),
        ("IMG_001.jpg", ""),
        ("&lt;b&gt;cat", "cat"),  # HTML once it is read as HTML: gone after the second pass
        ("\u201cquoted\u201d", "quoted"),
    ],
)
def test_a_prompt_is_cleaned_as_the_captions_of_the_training(prompt: str, cleaned: str) -> None:
    assert clean_prompt(prompt) == cleaned


def test_without_cleaning_only_blanks_at_the_ends_go() -> None:
    with open_picture_model(SIGMA, {"num_attention_heads": HEADS}) as model:
        how = model.spec.conventions(model.findings, ORIGINAL)
    assert how.clean_prompt("  A <b>Cat</b> #123,  by @me\n") == "A <b>Cat</b> #123,  by @me"


@pytest.mark.parametrize(("module", "package"), [("bs4", "beautifulsoup4"), ("ftfy", "ftfy")])
def test_no_other_cleaning_stands_in(module: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converter.errors.find_spec", lambda name: None if name == module else name)
    with pytest.raises(UsageError, match=rf"needs {package}: pip install 'convert-pixart\[pipeline\]'"):
        clean_prompt("a cat")


@pytest.mark.parametrize(
    ("prompt", "rest", "size"),
    [
        ("a cat", "a cat", None),
        ("a cat -- 3:4", "a cat -- 3:4", None),
        ("a cat --ar 3:4", "a cat ", 0.75),
        ("a cat --aspect_ratio  16:9 in oil", "a cat ", 16 / 9),
        ("a cat --hw 512:768", "a cat ", (512, 768)),
        ("a --ar 1:2 cat --ar 2:1", "a ", 0.5),
        ("a --ar 1:2 --aspect_ratio 3:1", "a ", 3.0),
        ("a --ar 1:2 --hw 64:32", "a ", (64, 32)),
        ("--hw 64:32", "", (64, 32)),
    ],
)
def test_flags_in_a_prompt_choose_the_size(prompt: str, rest: str, size: object) -> None:
    assert split_size_flags(prompt) == (rest, size)


@pytest.mark.parametrize("flag", ["--ar", "--ar 3x4", "--hw 0:512", "--aspect_ratio 1:0", "--hw 512", "--ar 1:123456"])
def test_a_flag_without_its_size_is_no_square(flag: str) -> None:
    with pytest.raises(UsageError, match=rf"{flag.split()[0]} needs a height and a width.*: {flag}"):
        split_size_flags(f"a cat {flag}")
