"""Where the target library's own class computes something else than the original, whatever the weights are: what it
does, the line of Python that mends a loaded model, and the class of this project that travels in its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .base import Findings


@dataclass(frozen=True)
class Amendment:
    """One thing that the class computes otherwise."""

    why: str  # in words
    statement: str  # the Python that mends a `block` of the loaded model
    needed: Callable[[Findings], bool] = lambda findings: True  # whether a model shows the difference


@dataclass(frozen=True)
class Amended:
    """A class of the library, and ours that has its amendments.

    Example:
        >>> from converter.models.dit.table import AMENDED
        >>> AMENDED.line(Findings({}))
        'for block in model.transformer_blocks: block.norm1.emb.time_proj.downscale_freq_shift = 0'
    """

    stock: str  # the names of both classes
    exact: str
    flag: str  # of a family: the user's word that whoever loads the library's own class runs the line
    amendments: tuple[Amendment, ...]
    said_by: str = ""  # of a family's flags: the user's word on what the original computes, whatever its class is now

    def needed(self, findings: Findings) -> list[Amendment]:
        """What a model takes of them."""
        return [amendment for amendment in self.amendments if amendment.needed(findings)]

    def line(self, findings: Findings) -> str:
        """The line of Python that makes a loaded `model` compute the original's function; '' where none is needed."""
        statements = "; ".join(amendment.statement for amendment in self.needed(findings))
        return statements and f"for block in model.transformer_blocks: {statements}"

    def why(self, findings: Findings) -> str:
        """What the library's class computes otherwise, in words."""
        return f"stock {self.stock} has " + "; ".join(amendment.why for amendment in self.needed(findings))

    def ours(self, findings: Findings) -> bool:
        """Whether our class is to be written where a model needs it. One that was trained in the library's, as one in
        its layout may be, keeps that."""
        original = findings.source_class in (None, self.exact) or self.said_by in findings.given
        return original and not findings.stock and not findings.given.get(self.flag)

    def class_name(self, findings: Findings) -> str:
        """The class to write."""
        return self.exact if self.ours(findings) and self.needed(findings) else self.stock

    def describe(self, findings: Findings) -> None:
        """Tell of the library's own class, in both directions, where that is the class of a model that needs more."""
        if self.flag in findings.given:
            findings.given_or_assumed(self.flag)
        line = self.line(findings)
        if not line or self.ours(findings):
            return
        findings.diffusers_notes.append(
            f"{self.why(findings)}, which no weights can make up for: to get the original's function, run this on what "
            f"from_pretrained loads: {line}"
        )
        if findings.source_class is not None:
            findings.original_notes.append(
                f"{self.why(findings)}: if it was trained in that class, and not converted for it, the original's code "
                "computes something else"
            )
