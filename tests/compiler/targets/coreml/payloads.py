"""Whether every weight of a finished package is the packed one, read back through the saved program's own offsets.

Which linear reads which slots is taken from the captured graph, not from the binding that is under test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from compiler.codes import unpack
from compiler.quantize.packed import PackedWeights
from compiler.targets.base import BuildJob, Job
from compiler.targets.coreml.capture import capture
from compiler.targets.coreml.packaging.text import PACKAGE, packages
from compiler.tensors import row_blocks
from runtime_tests.mil.bisect import plain_name
from runtime_tests.mil.package import Package
from runtime_tests.mil.values import decode

Slots = tuple[str, ...]


def slots_of(job: Job) -> dict[str, Slots]:
    """Which slots each operation of the program reads, by its name."""
    nodes = capture(packages(job)[PACKAGE][-1], job.schemes, stateful=True).graph.nodes
    readers = [n for n in nodes if str(n.target) in ("edge.linear.default", "edge.embedding.default")]
    found = {n.name: (n.args[1],) if isinstance(n.args[1], str) else tuple(n.args[1]) for n in readers}
    found["logits"] = found.pop(readers[-1].name)  # outputs have the names of features
    return found


def readers(package: Package, function_name: str, slots: dict[str, Slots]) -> list[tuple[Slots, Any]]:
    """The slots and the constexpr operation of every weight that a function reads."""
    function = package.spec.mlProgram.functions[function_name]
    operations = function.block_specializations[function.opset].operations
    constants = {o.outputs[0].name: o for o in operations if o.type.startswith("constexpr_")}
    found = []
    for operation in operations:
        name = plain_name(operation.outputs[0].name) if operation.outputs else ""
        if operation.type in ("linear", "gather") and name in slots:
            key = "weight" if operation.type == "linear" else "x"
            found.append((slots[name], constants[operation.inputs[key].arguments[0].name]))
    assert len(found) == len(slots), f"{function_name}: {len(found)} of {len(slots)} weights are read"
    return found


def _values(constant: Any) -> dict[str, Any]:
    return {key: argument.arguments[0].value for key, argument in constant.inputs.items()}


def entries(package: Package, job: Job) -> dict[Slots, tuple[int, int]]:
    """Offsets of the codes and the scales of every weight in the weight file."""
    found = readers(package, package.functions[0], slots_of(job))
    return {
        slots: (_values(constant)["data"].blobFileValue.offset, _values(constant)["scale"].blobFileValue.offset)
        for slots, constant in found
    }


def verify(package: Package, job: BuildJob) -> int:
    """Compare codes and scales of every weight in every function; the number of payloads compared."""
    slots = slots_of(job)
    seen: dict[int, Slots] = {}
    for name in package.functions:
        for read, constant in readers(package, name, slots):
            _compare(package, constant, read, job.weights, seen)
    return len(seen)


def _compare(package: Package, constant: Any, slots: Slots, weights: PackedWeights, seen: dict[int, Slots]) -> None:
    values = _values(constant)
    offsets = [values[key].blobFileValue.offset for key in ("data", "scale")]
    if offsets[0] in seen:
        assert seen[offsets[0]] == slots, f"{slots} and {seen[offsets[0]]} share an entry"
        return
    seen |= dict.fromkeys(offsets, slots)
    data, scale = (decode(values[key], package.blob) for key in ("data", "scale"))
    base = 0
    for slot in slots:
        rows, columns = weights.shape(slot)
        bits = weights.scheme(slot).bits
        for start, stop in row_blocks(rows, columns):
            part = slice(base + start, base + stop)
            codes = data.rows(part.start, part.stop) if hasattr(data, "rows") else data[part]
            np.testing.assert_array_equal(codes.numpy(), unpack(weights.packed(slot, start, stop), bits), err_msg=slot)
            scales = scale.rows(part.start, part.stop) if hasattr(scale, "rows") else scale[part]
            np.testing.assert_array_equal(scales.float().numpy(), weights.scales(slot, start, stop), err_msg=slot)
        base += rows


def open_package(folder: Path) -> Package:
    return Package(folder / PACKAGE)
