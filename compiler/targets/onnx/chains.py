"""What stands around convolutions in an imported graph, for kernels whose time depends on it. Lowers nothing.

Two things cost more than their work where activations are codes (ONNX Runtime 1.31 on an x86, one thread, maps of 160 x
160 with 12 and 32 channels):

- A depthwise convolution whose channels do not fill the vectors of its kernel. With channels of zeros they do: 12 as 16
  take 0.45 ms instead of 1.4, and in floats, with the way there and back, 0.85; what the dense convolutions around it
  get to do more is not to be seen. On ARM64 the kernel takes multiples of 8.
- A sum of codes and floats. On x86 ONNX Runtime keeps floats of convolutions in blocks of channels, where a sum is part
  of the convolution whose output it takes if both operands have blocks. Codes come without: the sum was a kernel
  between two changes of layout, and codes became floats once for each reader, for 1.1 ms. A depthwise convolution by
  one, for 0.27 ms, gives all readers the same values in blocks. On ARM64 floats have no blocks and the sum was part of
  the convolution already: there it saves one of two DequantizeLinear, 0.17 ms, and costs 0.27 (seen on the x86 without
  blocks). A pool of one pixel is as fast on blocks and takes 2.7 ms without.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from compiler.targets.onnx.geometry import EDGE, filled_up

_BEHIND = ("bias", "Relu", "rounded")


def filled(graph: ir.Graph, slots: Collection[str]) -> dict[ir.Value, int]:
    """The values whose channels are filled up with zeros, and how many there are then: all that lies between the dense
    convolution before a depthwise one and the dense one behind it, where nothing else reads any of it.

    slots: of the convolutions that multiply codes.
    """
    found: dict[ir.Value, int] = {}
    chains = {node: _chain(node) for node in graph if _convolves(node, slots)}
    for first, (*before, middle) in chains.items():
        if middle not in chains or _groups(first) > 1:
            continue
        *behind, last = chains[middle]
        rows, columns, *_ = middle.attributes["shape"].as_ints()
        if last in chains and _groups(last) == 1 and _groups(middle) == rows != filled_up(rows) and columns == 1:
            between = (first, *before, middle, *behind)
            found |= {node.outputs[0]: filled_up(rows) for node in between if node is not None}
    return found


def meeting(graph: ir.Graph, spared: Collection[str]) -> set[ir.Node]:
    """The roundings whose codes nothing reads but convolutions in floats and sums with what such a one gives.

    spared: slots of fewer than 16 bits that are constants in floats too.
    """
    slots = {
        *spared,
        *(_slot(node) for node in graph if _is_convolution(node) and node.attributes["bits"].as_int() == 16),
    }
    return {node for node in graph if node.op_type == "rounded" and _meets(node.outputs[0], slots)}


def _meets(value: ir.Value, slots: Collection[str]) -> bool:
    readers = [use.node for use in value.uses()]
    sums = [node for node in readers if node.op_type == "Add"]
    convolutions = [node for node in readers if _convolves(node, slots)]
    if not (sums and convolutions) or len(sums) + len(convolutions) < len(readers) or value.is_graph_output():
        return False
    assert value.shape is not None
    # a convolution of another number of channels in groups has no blocks
    channels = value.shape[1] if len(value.shape) == 4 else None
    whole = isinstance(channels, int) and filled_up(channels) == channels
    return whole and all(_given_by(other, slots) for node in sums for other in node.inputs if other is not value)


def _given_by(value: ir.Value | None, slots: Collection[str]) -> bool:
    """Whether a value is what one of these convolutions gives, with its bias or without, to one reader."""
    node = None if value is None else value.producer()
    if node is not None and node.op_type == "bias" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node is not None and _convolves(node, slots) and _chain(node)[-1] is not None


def _chain(node: ir.Node) -> list[ir.Node | None]:
    """The nodes behind a convolution: its bias, relu and rounding, as far as they are there, and what then reads it;
    None for that where not one node alone does."""
    found = [_reader(node)]
    for kind in _BEHIND:
        if (read := found[-1]) is not None and read.op_type == kind:
            found.append(_reader(read))
    return found


def _reader(node: ir.Node) -> ir.Node | None:
    value = node.outputs[0]
    readers = [use.node for use in value.uses()]
    return readers[0] if len(readers) == 1 and not value.is_graph_output() else None


def _convolves(node: ir.Node, slots: Collection[str]) -> bool:
    return _is_convolution(node) and _slot(node) in slots


def _is_convolution(node: ir.Node) -> bool:
    return node.domain == EDGE and node.op_type == "convolution"


def _slot(node: ir.Node) -> str:
    return node.attributes["slot"].as_string()


def _groups(node: ir.Node) -> int:
    return node.attributes["groups"].as_int()
