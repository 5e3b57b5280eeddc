"""Tensors that are stored quantized already (by QAT, GPTQ or AWQ elsewhere): their codes are lowered as they are.

A rule with this method says the bits, group and symmetry that the checkpoint has, so that a recipe can be read, and
planned, without it. Any other method requantizes such a tensor from its dequantized values.
"""

from __future__ import annotations

from collections.abc import Sequence

from artifacts import EdgewrightError
from compiler.checkpoint import Checkpoint
from compiler.quantize.methods import NoOptions
from compiler.quantize.rules import Assignment
from compiler.slots import Slot

OPTIONS = NoOptions


def kept(assignment: Assignment) -> frozenset[str]:
    """The slots whose codes are copied."""
    return frozenset(name for name, rule in assignment.rules.items() if rule.method == "keep")


def check(checkpoint: Checkpoint, slots: Sequence[Slot], assignment: Assignment) -> None:
    """Raises EdgewrightError when a tensor to keep is not stored quantized, or not as its rule says."""
    names = kept(assignment)
    for slot in slots:
        if slot.name not in names:
            continue
        if slot.tensor not in checkpoint.compressed:
            raise EdgewrightError(
                f"tensor {slot.tensor!r} is not stored quantized: method keep has nothing to keep; use another method"
            )
        stored = checkpoint.compressed.scheme(slot.tensor)
        if stored != assignment.schemes[slot.name]:
            raise EdgewrightError(
                f"tensor {slot.tensor!r} is stored with {stored.bits} bits, group {stored.group or 'channel'}, "
                f"{'symmetric' if stored.symmetric else 'asymmetric'}; its rule must say the same to keep it: "
                f"{{match: {slot.name}, bits: {stored.bits}, group: {stored.group or 'channel'}, "
                f"symmetric: {str(stored.symmetric).lower()}, method: keep}}"
            )
