"""A progress bar on a terminal, and nothing elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any


def bar(shown: ExitStack, total: int, what: str, **how: Any) -> Callable[[int], None]:
    """What is to be called with each count done; the bar is wiped when `shown` ends."""
    import sys

    if not sys.stderr.isatty():
        return lambda count: None
    from tqdm import tqdm

    update: Callable[[int], None] = shown.enter_context(tqdm(total=total, leave=False, desc=what, **how)).update
    return update
