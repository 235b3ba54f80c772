"""Prompts as PixArt's training code takes them: cleaned as captions were, and with the picture's size in them."""

from __future__ import annotations

import re
import warnings

from ...errors import UsageError, printable, require

_FLAG = re.compile(r"--(aspect_ratio|ar|hw)(?:\s+(\d{1,5}):(\d{1,5})(?!\d))?")


def clean_prompt(text: str) -> str:
    """A prompt in lower case, without web addresses, HTML, odd punctuation and more, as captions were in the training
    of PixArt-alpha: by diffusers' own `PixArtAlphaPipeline._text_preprocessing`.

    Raises: `UsageError` where packages are missing that this takes; no other cleaning stands in for it.

    >>> clean_prompt(" A <b>Cat</b>, see https://cats.org ")
    'a cat, see'
    """
    require("cleaning a prompt", "transformers", "bs4", "ftfy")
    from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import PixArtAlphaPipeline

    pipeline = PixArtAlphaPipeline.__new__(PixArtAlphaPipeline)  # the cleaning uses no component
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bs4 warns of a prompt that looks like a file's name
        # Half characters, which a broken terminal makes, are none.
        (cleaned,) = pipeline._text_preprocessing(text.encode(errors="replace").decode(), clean_caption=True)
    return str(cleaned)


def split_size_flags(prompt: str) -> tuple[str, float | tuple[int, int] | None]:
    """(what comes before the first size flag, the size that the flags ask for, if there are any: the ratio of height to
    width, or both in pixels).

    The flags are those of the original code: `--aspect_ratio h:w` or `--ar h:w`, and `--hw h:w` for pixels. Of two of
    one name the first counts; `--aspect_ratio` comes before `--ar`, and `--hw` before both.

    Raises: `UsageError` for a flag without its h:w, which the original takes for 1:1.

    Source: PixArt-sigma, `diffusion/model/utils.py`, `prepare_prompt_ar`.

    >>> split_size_flags("a cat --ar 3:4"), split_size_flags("a cat --hw 512:768"), split_size_flags("a cat")
    (('a cat ', 0.75), ('a cat ', (512, 768)), ('a cat', None))
    """
    sizes: dict[str, tuple[int, int]] = {}
    for flag in _FLAG.finditer(prompt):
        name, height, width = flag[1], int(flag[2] or 0), int(flag[3] or 0)
        if not height or not width:
            where = printable(prompt[flag.start() :], 30)
            raise UsageError(f"`prompt`: --{name} needs a height and a width, such as --{name} 3:4: {where}")
        sizes.setdefault(name, (height, width))
    if not sizes:
        return prompt, None
    high, wide = sizes.get("aspect_ratio") or sizes.get("ar") or (1, 1)
    return _FLAG.split(prompt, maxsplit=1)[0], sizes.get("hw", high / wide)
