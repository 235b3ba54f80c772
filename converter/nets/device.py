"""Where a net is to compute, asked for by its user."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import UsageError, printable

if TYPE_CHECKING:
    import torch


def checked_device(device: torch.device | str | int | None, dtype: str = "float64") -> torch.device | None:
    """A device of torch, which is asked only where it is not the CPU; None for that.

    Raises: `UsageError` where there is none such, or it cannot hold numbers of this dtype.

    >>> checked_device("meta")
    Traceback (most recent call last):
    converter.errors.UsageError: `device` meta: Cannot copy out of meta tensor; no data!
    """
    if device is None or device == "cpu":
        return None
    import torch

    try:
        place: Any = torch.device(device)
        # Some have no float64, and one has no numbers at all.
        torch.zeros(1, dtype=getattr(torch, dtype), device=place).cpu()
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = printable(str(error).partition("\n")[0])
        raise UsageError(f"`device` {printable(str(device))}: {reason}") from error
    return None if place.type == "cpu" else place
