"""What may be chosen of a comparison: the words for flags, keys of a `parity.toml` and fields of `CheckOptions`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UsageError, printable

FLOAT64, FLOAT32 = "float64", "float32"
GATING_PRECISIONS = (FLOAT64, FLOAT32)
HALF = ("float16", "bfloat16")
PRECISIONS = (*GATING_PRECISIONS, *HALF)  # to run the nets in, or that a conversion rounds weights to

PROFILES = ("quick", "standard", "full")
SELF_TESTS = ("quick", "full")
WEIGHTS = ("raw", "ema")
MOST_THREADS = 1024


@dataclass(frozen=True)
class CheckOptions:
    """The options of `check`.

    Attributes:
        profile: 'quick' (one batch of four samples), 'standard' (more cases, and sampler steps) or 'full' (also the
            model's own size and the stock loader).
        family: the family that the checkpoint has to be of.
        weights: 'raw' or 'ema'; default: what the conversion record says was taken.
        state_dict_key: where in the original the weights lie, where it holds several state dicts; default likewise.
        device: where the nets run.
        dtype: one or several of 'float64', 'float32' (both by default), 'float16', 'bfloat16' (reported; the float64
            gate is then run as well).
        cast: the dtype that the conversion rounded to, where it did.
        cases: a file of saved inputs to run instead of the profile's.
        save_failing: a folder for the inputs and outputs of failing cases.
        self_test: 'quick', or 'full' for the whole catalogue of deliberate faults.
        threads: of the CPU, for the whole run; default: as many as torch would use. They are part of the report.
        require_evidence: refuse (`UsageError`) a comparison that rests on an assumption, and name what to state.
    """

    profile: str = "quick"
    family: str | None = None
    weights: str | None = None
    state_dict_key: str | None = None
    device: str = "cpu"
    dtype: str | Sequence[str] | None = None
    cast: str | None = None
    cases: str | os.PathLike[str] | None = None
    save_failing: str | os.PathLike[str] | None = None
    self_test: str = "quick"
    threads: int | None = None
    require_evidence: bool = False

    @property
    def precisions(self) -> tuple[str, ...]:
        """The dtypes to run: the float64 gate is the sharpest, and the one that the self-test vouches for; half
        precision gates nothing."""
        asked = self.dtype or GATING_PRECISIONS
        return tuple(dict.fromkeys((FLOAT64, *([asked] if isinstance(asked, str) else asked))))

    def validate(self) -> None:
        """Raises: `UsageError` for a value that is none of those to choose from; asked before anything is read."""
        named: list[tuple[str, object, Sequence[str]]] = [
            ("profile", self.profile, PROFILES),
            ("self_test", self.self_test, SELF_TESTS),
            ("weights", self.weights or WEIGHTS[0], WEIGHTS),
            ("cast", self.cast or FLOAT32, PRECISIONS),
            *(("dtype", precision, PRECISIONS) for precision in self.precisions),
        ]
        for name, value, known in named:
            if value not in known:
                raise UsageError(f"`{name}` {printable(value)}: one of {', '.join(known)}")
        if self.threads is not None and not 0 < self.threads <= MOST_THREADS:
            raise UsageError(f"`threads` {printable(self.threads)}: from 1 to {MOST_THREADS}")
        folder = self.save_failing
        if folder is not None and os.path.lexists(folder) and not os.path.isdir(folder):
            raise UsageError(f"`save_failing` {printable(folder)}: not a folder")
