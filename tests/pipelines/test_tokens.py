"""Prompts as tokens: those that SentencePiece itself makes of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
import torch
from makers import ROOT

from converter.errors import InputError, UsageError
from converter.pipelines.text_encoder import tokenize

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
    monkeypatch.setattr("converter.errors.find_spec", lambda name: name if name in there else None)
    with pytest.raises(UsageError, match=r"a prompt needs protobuf: pip install 'convert-pixart\[pipeline\]'"):
        tokenize(PROMPTS, spiece, 8)
