"""Whether every weight of a finished package is the packed one, read back through the saved program's own offsets.

Which linear reads which slots is taken from the captured graph, not from the binding that is under test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from compiler.checkpoint import row_blocks
from compiler.quantize.packed import PackedWeights, unpack
from compiler.slots import Schemes
from compiler.targets.coreml.capture import capture
from runtime_tests.mil.bisect import plain_name
from runtime_tests.mil.package import Package
from runtime_tests.mil.values import decode


def verify(package: Package, spec: Any, schemes: Schemes, weights: PackedWeights, max_tokens: int) -> int:
    """Compare codes and scales of every weight in every function; the number of payloads compared."""
    nodes = capture(spec, schemes, max_tokens, length=1, stateful=True).graph.nodes
    slots = {n.name: n.args[1] for n in nodes if str(n.target) in ("edge.linear.default", "edge.embedding.default")}
    seen: dict[int, tuple[str, ...]] = {}
    for name in package.functions:
        function = package.spec.mlProgram.functions[name]
        operations = function.block_specializations[function.opset].operations
        constants = {o.outputs[0].name: o for o in operations if o.type.startswith("constexpr_")}
        readers = [o for o in operations if o.type in ("linear", "gather") and plain_name(o.outputs[0].name) in slots]
        assert len(readers) == len(slots), f"{name}: {len(readers)} of {len(slots)} weights are read"
        for operation in readers:
            key = "weight" if operation.type == "linear" else "x"
            constant = constants[operation.inputs[key].arguments[0].name]
            found = slots[plain_name(operation.outputs[0].name)]
            _compare(package, constant, (found,) if isinstance(found, str) else tuple(found), weights, seen)
    return len(seen)


def _compare(package: Package, constant: Any, slots: tuple[str, ...], weights: Any, seen: dict[int, Any]) -> None:
    values = {key: argument.arguments[0].value for key, argument in constant.inputs.items()}
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
    return Package(folder / "model.mlpackage")
