"""From a prompt as it was typed to the ids of its tokens."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import InputError, UsageError, printable
from .extras import require

if TYPE_CHECKING:
    from torch import Tensor

Size = tuple[Literal["ratio"], float] | tuple[Literal["size"], tuple[int, int]]

_FLAG = re.compile(r"--(aspect_ratio|ar|hw)(?:\s+(\d{1,5}):(\d{1,5})(?!\d))?")
_MODELS = ("spiece.model", "tokenizer.json")  # of a tokenizer


def clean_prompt(text: str, clean: bool) -> str:
    """A prompt as the text encoder gets it.

    Args:
        clean: in lower case, without web addresses, HTML, odd punctuation and more, as captions were in the training of
            PixArt-alpha: by diffusers' own `PixArtAlphaPipeline._text_preprocessing`. Else only blanks at the ends go,
            as in the scripts of PixArt-sigma.

    Raises: `UsageError` where packages are missing that this takes; no other cleaning stands in for it.

    >>> clean_prompt(" A <b>Cat</b>, see https://cats.org ", clean=True)
    'a cat, see'
    >>> clean_prompt(" A <b>Cat</b>, see https://cats.org ", clean=False)
    'A <b>Cat</b>, see https://cats.org'
    """
    text = _whole(text)
    if not clean:
        return text.strip()
    require("cleaning a prompt (`clean_caption`)", "transformers", "bs4", "ftfy")
    from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import PixArtAlphaPipeline

    pipeline = PixArtAlphaPipeline.__new__(PixArtAlphaPipeline)  # the cleaning uses no component
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bs4 warns of a prompt that looks like a file's name
        (cleaned,) = pipeline._text_preprocessing(text, clean_caption=True)
    return str(cleaned)


def _whole(text: str) -> str:
    return text.encode(errors="replace").decode()  # half characters come of a broken terminal


def split_size_flags(prompt: str) -> tuple[str, Size | None]:
    """(what comes before the first size flag, the size that the flags ask for, if there are any).

    The flags are those of the original code: `--aspect_ratio h:w` or `--ar h:w`, and `--hw h:w` for pixels. Of two of
    one name the first counts; `--aspect_ratio` comes before `--ar`, and `--hw` before both.

    Raises: `UsageError` for a flag without its h:w, which the original takes for 1:1.

    Source: PixArt-sigma, `diffusion/model/utils.py`, `prepare_prompt_ar`.

    >>> split_size_flags("a cat --ar 3:4"), split_size_flags("a cat --hw 512:768"), split_size_flags("a cat")
    (('a cat ', ('ratio', 0.75)), ('a cat ', ('size', (512, 768))), ('a cat', None))
    """
    flags = list(_FLAG.finditer(prompt))
    sizes: dict[str, tuple[int, int]] = {}
    for flag in flags:
        name, height, width = flag[1], int(flag[2] or 0), int(flag[3] or 0)
        if not height or not width:
            where = printable(prompt[flag.start() :], 30)
            raise UsageError(f"`prompt`: --{name} needs a height and a width, such as --{name} 3:4: {where}")
        sizes.setdefault(name, (height, width))
    if not flags:
        return prompt, None
    rest, ratio = prompt[: flags[0].start()], sizes.get("aspect_ratio") or sizes.get("ar")
    return rest, ("size", sizes["hw"]) if "hw" in sizes or not ratio else ("ratio", ratio[0] / ratio[1])


def tokenize(prompts: Sequence[str], folder: Path, tokens: int) -> tuple[Tensor, Tensor, list[str]]:
    """Prompts as ids, by transformers' own T5 tokenizer: padded or cut to `tokens`, the end of the text among them.

    Args:
        folder: the tokenizer's, with a `spiece.model` or a `tokenizer.json`.

    Returns: ids (B, `tokens`) and mask (B, `tokens`; 1 for a token, 0 for padding), both int64; and for each prompt the
        words that were cut off, '' for none.

    Raises: `InputError` for a folder that holds no tokenizer, `UsageError` for missing packages.

    >>> tokenize(["a cat"], Path("fixtures/golden"), 120)
    Traceback (most recent call last):
    converter.errors.InputError: fixtures/golden: holds no tokenizer: spiece.model or tokenizer.json is missing
    """
    there = [name for name in _MODELS if (folder / name).is_file()]
    if not there:  # transformers would make one up that knows no words
        raise InputError.at(folder, "", f"holds no tokenizer: {' or '.join(_MODELS)} is missing")
    require("a prompt", "transformers", *([] if _MODELS[1] in there else ["sentencepiece", "google.protobuf"]))
    from transformers import T5Tokenizer

    texts = [_whole(prompt) for prompt in prompts]
    try:
        tokenizer = T5Tokenizer.from_pretrained(folder, local_files_only=True)
        whole = tokenizer(texts, verbose=False)["input_ids"]
        short = tokenizer(texts, padding="max_length", max_length=tokens, truncation=True, return_tensors="pt")
        # Of what is kept, the last place is that of the end of the text.
        cut = [tokenizer.decode(ids[tokens - 1 : -1]) if len(ids) > tokens else "" for ids in whole]
    except Exception as error:  # of any kind, whatever is wrong with the files
        raise InputError.at(folder, there[0], f"transformers cannot use this tokenizer: {printable(error)}") from error
    return short["input_ids"], short["attention_mask"], cut
