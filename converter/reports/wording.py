"""How a kind of report explains itself: its heading, its verdicts, what each phase does, what the terms mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .report import FAIL, INCONCLUSIVE, INTERNAL, PASS, REJECTED


@dataclass(frozen=True)
class Wording:
    """The words of one kind of report: the `title` and `question` of its page, what each verdict means, what each phase
    is about, a glossary of terms; `subject` and `name` are what a heading names in place of the converted model."""

    title: str
    question: str
    meaning: Mapping[str, str]
    about: Mapping[str, str] = field(default_factory=dict)
    glossary: Mapping[str, str] = field(default_factory=dict)
    subject: str = ""
    name: str = ""


# What each phase does, for whoever reads a report for the first time.
ABOUT = {
    "provenance": "what was compared, and on what",
    "weights": "the converted file, mapped back, byte by byte against the original",
    "config": "every field that matters, against what the original shows",
    "function": "both nets on the same fixed noise",
    "trajectory": "a few sampler steps from the same noise, each net on its own latents",
    "images": "both nets from the same noise to the picture, by the training code's conventions",
    "self-test": "deliberate faults: if one were not caught, a PASS would be worth nothing",
}
GLOSSARY = {
    "noise floor": "How far the original's own float32 output is from its float64 output on the same inputs. Rounding "
    "alone puts a clean conversion at about 1 times the floor; the limit is 3 times.",
    "float64 limit": "In float64 rounding is next to nothing, so both nets have to agree to seven digits: the sharpest "
    "test of what they compute.",
    "relative L2": "The size of the difference relative to that of the output. The worst pixel, the worst channel "
    "and the worst place inside a patch have limits too, since a small fault may hide in an average.",
    "epsilon, variance": "The two halves of the output: the predicted noise, and the predicted variance.",
    "case": "One set of inputs, such as t999-t321: timesteps 999 and 321. The table of cases says what each tries.",
    "where it goes wrong": "Every stage of the converted net is given what the original's stage got. A right one then "
    "gives what the original's gives, whatever went wrong before it.",
    "stock conventions": "What diffusers' pipelines do otherwise than the training code, whatever the net: each is "
    "tried by itself on the original's net. What a picture differs by for their sake is no fault of a conversion.",
    "self-test": "The same checks on conversions that are wrong on purpose: q and k swapped, a mask ignored, and more.",
}
MEANING = {
    PASS: "The converted model computes the original's function, and every one of its weights is accounted for.",
    FAIL: "The converted model is not the original: do not use it in its place.",
    INCONCLUSIVE: "Nothing wrong was found, but the evidence does not suffice to say that the two are the same.",
    REJECTED: "An input is missing, malformed, unsafe or of another kind: nothing was compared.",
    INTERNAL: "The checker itself failed: this says nothing about the model.",
}
PARITY = Wording(
    "Parity report", "does the converted model compute the original's function?", MEANING, ABOUT, glossary=GLOSSARY
)
