"""Prompts: cleaned or as they are, their size flags, and their tokens as SentencePiece itself makes them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
import torch
from makers import ROOT

from converter.errors import InputError, UsageError
from converter.pipelines.prompts import clean_prompt, split_size_flags, tokenize

PROMPTS = ["A Photo of a checkpoint, converted to the diffusers layout", "", "x" * 40, "two  words"]


@pytest.fixture(scope="module")
def spiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a T5 tokenizer: a model that SentencePiece has trained."""
    folder = tmp_path_factory.mktemp("tokenizer")
    special = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        input=str(ROOT / "README.md"), model_prefix=str(folder / "spiece"), vocab_size=400, minloglevel=2, **special
    )
    (folder / "spiece.vocab").unlink()
    return folder


# Cleaning.


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
    assert clean_prompt(prompt, clean=True) == cleaned


def test_without_cleaning_only_blanks_at_the_ends_go() -> None:
    assert clean_prompt("  A <b>Cat</b> #123,  by @me\n", clean=False) == "A <b>Cat</b> #123,  by @me"


@pytest.mark.parametrize(("module", "package"), [("bs4", "beautifulsoup4"), ("ftfy", "ftfy")])
def test_no_other_cleaning_stands_in(module: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converter.pipelines.extras.find_spec", lambda name: None if name == module else name)
    with pytest.raises(UsageError, match=rf"needs {package}: pip install 'convert-pixart\[pipeline\]'"):
        clean_prompt("a cat", clean=True)
    assert clean_prompt(" A cat ", clean=False) == "A cat"


# Size flags.


@pytest.mark.parametrize(
    ("prompt", "rest", "size"),
    [
        ("a cat", "a cat", None),
        ("a cat -- 3:4", "a cat -- 3:4", None),
        ("a cat --ar 3:4", "a cat ", ("ratio", 0.75)),
        ("a cat --aspect_ratio  16:9 in oil", "a cat ", ("ratio", 16 / 9)),
        ("a cat --hw 512:768", "a cat ", ("size", (512, 768))),
        ("a --ar 1:2 cat --ar 2:1", "a ", ("ratio", 0.5)),
        ("a --ar 1:2 --aspect_ratio 3:1", "a ", ("ratio", 3.0)),
        ("a --ar 1:2 --hw 64:32", "a ", ("size", (64, 32))),
        ("--hw 64:32", "", ("size", (64, 32))),
    ],
)
def test_flags_in_a_prompt_choose_the_size(prompt: str, rest: str, size: object) -> None:
    assert split_size_flags(prompt) == (rest, size)


@pytest.mark.parametrize("flag", ["--ar", "--ar 3x4", "--hw 0:512", "--aspect_ratio 1:0", "--hw 512", "--ar 1:123456"])
def test_a_flag_without_its_size_is_no_square(flag: str) -> None:
    with pytest.raises(UsageError, match=rf"{flag.split()[0]} needs a height and a width.*: {flag}"):
        split_size_flags(f"a cat {flag}")


# Tokens.


def test_tokens_are_those_of_sentencepiece_padded_and_cut(spiece: Path) -> None:
    tokens = 12
    processor = sentencepiece.SentencePieceProcessor(str(spiece / "spiece.model"))
    wanted = [processor.encode(prompt) for prompt in PROMPTS]
    assert max(map(len, wanted)) >= tokens > min(map(len, wanted))
    ids, mask, cut = tokenize(PROMPTS, spiece, tokens)
    assert ids.dtype == mask.dtype == torch.int64
    assert ids.shape == mask.shape == (len(PROMPTS), tokens)
    for row, ones, pieces, words in zip(ids.tolist(), mask.tolist(), wanted, cut, strict=True):
        kept = [*pieces[: tokens - 1], 1]
        assert row == kept + [0] * (tokens - len(kept))
        assert ones == [1] * len(kept) + [0] * (tokens - len(kept))
        assert words == processor.decode(pieces[tokens - 1 :])
    assert [bool(words) for words in cut] == [len(pieces) >= tokens for pieces in wanted]


def test_what_just_fits_is_not_cut(spiece: Path) -> None:
    count = int(tokenize(PROMPTS[:1], spiece, 100)[1].sum())
    assert tokenize(PROMPTS[:1], spiece, count)[2] == [""]
    assert tokenize(PROMPTS[:1], spiece, count - 1)[2] != [""]


def test_either_file_will_do(spiece: Path, tmp_path: Path) -> None:
    from transformers import T5Tokenizer

    T5Tokenizer.from_pretrained(spiece).save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").exists()
    assert not (tmp_path / "spiece.model").exists()
    for one, other in zip(tokenize(PROMPTS, spiece, 16), tokenize(PROMPTS, tmp_path, 16), strict=True):
        assert one == other if isinstance(one, list) else torch.equal(one, other)


def test_half_characters_are_no_reason_to_fail(spiece: Path) -> None:
    assert clean_prompt("a \udcff cat", clean=True) == "a ? cat"
    ids, _, _ = tokenize(["a \udcff cat"], spiece, 16)
    assert torch.equal(ids, tokenize(["a ? cat"], spiece, 16)[0])


def test_a_folder_without_its_model_file(spiece: Path, tmp_path: Path) -> None:
    """transformers makes a tokenizer of four tokens of it."""
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer"}))
    with pytest.raises(InputError, match=r"holds no tokenizer: spiece\.model or tokenizer\.json is missing"):
        tokenize(PROMPTS, tmp_path, 8)
    shutil.copy(spiece / "spiece.model", tmp_path)
    assert torch.equal(tokenize(PROMPTS, tmp_path, 8)[0], tokenize(PROMPTS, spiece, 8)[0])


@pytest.mark.parametrize(("name", "content"), [("spiece.model", b"no model"), ("tokenizer.json", b'{"a": 1}')])
def test_a_damaged_tokenizer(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}: transformers cannot use this tokenizer"):
        tokenize(PROMPTS, tmp_path, 8)


def test_packages_are_asked_for_first(spiece: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"transformers", "sentencepiece"}
    monkeypatch.setattr("converter.pipelines.extras.find_spec", lambda name: name if name in there else None)
    with pytest.raises(UsageError, match=r"a prompt needs protobuf: pip install 'convert-pixart\[pipeline\]'"):
        tokenize(PROMPTS, spiece, 8)
