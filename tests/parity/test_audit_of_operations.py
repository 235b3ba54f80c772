"""The audit of rows that change places, and of two stacks of blocks: every fault of the catalogue, by its key."""

from __future__ import annotations

from pathlib import Path

import two_stacks
from makers import save
from memory_tensors import memory_tensors
from two_stacks import KEYS, state

import converter
from converter.conversion.analysis import analyse
from converter.nets.faults import with_fault
from converter.parity.audit import audit
from converter.parity.catalogue import catalogue
from converter.parity.sides import Sides

FAMILY = str(two_stacks.__file__)


def test_the_audit_finds_every_fault_and_names_the_place(tmp_path: Path) -> None:
    source = save({key: tensor.clone() for key, tensor in state().items()}, tmp_path / "toy.pth")
    with converter.open_checkpoint(source) as original:
        looked = analyse(original, {}, FAMILY)
        family = looked.require()
        theirs = KEYS(state())
        sidecar = memory_tensors({"null": state()["null"]})
        for fault in catalogue(looked.plan):
            if "weights" not in fault.expected:
                continue
            spoilt = {key: held.torch() for key, held in with_fault(memory_tensors(theirs), fault).items()}
            found = audit(Sides(family, looked.findings, looked.plan, original, memory_tensors(spoilt), sidecar))
            assert found.verdict == "FAIL", fault.name
        made = memory_tensors(theirs)
        right = audit(Sides(family, looked.findings, looked.plan, original, made, sidecar))
        assert right.verdict == "PASS", right.words
        made |= memory_tensors({"norm_out.linear.weight": state()["final.mod.weight"]})
        wrong = audit(Sides(family, looked.findings, looked.plan, original, made, sidecar))
        assert "norm_out.linear.weight differs in 128 of 128 elements" in wrong.words
        other = theirs["transformer_blocks.1.norm.linear.weight"]
        made |= memory_tensors({"norm_out.linear.weight": other})
        wrong = audit(Sides(family, looked.findings, looked.plan, original, made, sidecar))
        assert "holds what belongs in transformer_blocks.1.norm.linear.weight" in wrong.words
