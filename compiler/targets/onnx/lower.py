"""From an imported graph to ONNX Runtime's fused kernels: a table of what each edge op becomes.

| dialect | kernel |
|---|---|
| linear | com.microsoft::MatMulNBits, or DynamicQuantizeMatMul (`geometry.by_row`); FusedMatMul at 16 bits |
| embedding | com.microsoft::GatherBlockQuantized over the bytes of a tied head; Gather at 16 bits |
| convolution | DequantizeLinear of the packed bytes, Conv; at 16 bits Conv |
| rounded | QuantizeLinear and DequantizeLinear, taken by ONNX Runtime into QLinearConv, QLinearAdd, QLinearConcat … |
| bias | the kernel's own bias behind a Conv, MatMulNBits or LayerNormalization, else Add |
| scale | Mul; with a bias behind it BatchNormalization of mean 0 and variance 1 |
| rms_norm, add_rms_norm | SimplifiedLayerNormalization, com.microsoft::SkipSimplifiedLayerNormalization |
| layer_norm | LayerNormalization |
| rotary, attention | com.microsoft::GroupQueryAttention (`attention.py`) |
| x * sigmoid(x) | com.microsoft::QuickGelu |

Around convolutions of codes some of that depends on the neighbours: `chains.py`.

Operator reference: onnxruntime `docs/ContribOperators.md`. Weights are named here and bound later (`weights.py`); what
a graph's inputs and outputs are called is its layout's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from artifacts import EdgewrightError
from compiler.activations import Rounding
from compiler.models.base import Component
from compiler.slots import Scheme, Slot
from compiler.targets.onnx import chains
from compiler.targets.onnx.geometry import EDGE, OPSET, block_size, by_row, multiplies_codes
from compiler.targets.onnx.options import OnnxOptions
from compiler.targets.onnx.weights import Part, Weight

MICROSOFT = "com.microsoft"
_IR_VERSION = 10
Values = tuple[ir.Value, ...]


class Lowering:
    """Rewrites one imported graph in place.

    rounding: of its activations, if any; asked: the convolutions that were to multiply codes, of which some may not.
    filled, meeting: see `chains`. codes: those of rounded values, by their names; wide: which of them are filled
    up, and have shapes in the file. scaled: products with a slot along the channels. weights: what its initializers are
    to be. unused: outputs that no kernel is to compute. before: the node that is being replaced; new ones go before it.
    """

    def __init__(
        self,
        model: ir.Model,
        component: Component,
        options: OnnxOptions,
        where: str,
        rounding: Rounding | None = None,
        asked: Collection[str] = (),
    ) -> None:
        self.model, self.graph = model, model.graph
        self.component, self.options = component, options
        self.where = where
        self.rounded = frozenset() if rounding is None else rounding.slots
        self.spared = frozenset(asked) - self.rounded if rounding is not None else frozenset()
        self.filled = chains.filled(self.graph, self.rounded)
        self.meeting = chains.meeting(self.graph, self.spared)
        self.codes: dict[str, ir.Value] = {}
        self.wide: set[ir.Value] = set()
        self.scaled: dict[ir.Value, str] = {}
        self.weights: dict[ir.Value, Weight] = {}
        self.unused: list[ir.Value] = []
        self.before: ir.Node | None = None
        self._slots = {slot.name: slot for slot in component.slots}

    def run(self, table: Mapping[str, Callable[[Lowering, ir.Node], Values]]) -> None:
        """Replace every edge op by what `table` makes of it, and fuse what the importer took apart."""
        for node in list(self.graph):
            self.before = node
            if node.domain == EDGE:
                self._replace(node, table[node.op_type](self, node))
            elif node.op_type == "Mul":
                self._quick_gelu(node)
        for name, value in list(self.graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del self.graph.initializers[name]
                self.weights.pop(value, None)
        for node in self.graph:
            for value in node.outputs:
                if not value.is_graph_output() and value not in self.wide:
                    value.type = value.shape = None  # ONNX Runtime infers them
        self.graph.opset_imports.clear()
        self.graph.opset_imports.update({"": OPSET, MICROSOFT: 1})
        self.model.ir_version, self.model.producer_name, self.model.producer_version = _IR_VERSION, "edgewright", None

    def _replace(self, node: ir.Node, outputs: Values) -> None:
        for old, new in zip(node.outputs, outputs, strict=True):
            if new.producer() is not None:
                new.name, new.type, new.shape = old.name, old.type, old.shape
            if old in self.filled:
                self.filled[new] = self.filled[old]
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)

    def _quick_gelu(self, node: ir.Node) -> None:
        for gate, other in (node.inputs, reversed(node.inputs)):
            assert gate is not None and other is not None
            sigmoid = gate.producer()
            if sigmoid is None or sigmoid.op_type != "Sigmoid" or sigmoid.inputs[0] is not other:
                continue
            if len(gate.uses()) == 1 and not gate.is_graph_output():
                self._replace(node, self.op("QuickGelu", [other], MICROSOFT, alpha=1.0))
                self.graph.remove(sigmoid, safe=True)
            return

    # -- building ---------------------------------------------------------------------------------------------------

    def op(
        self,
        kind: str,
        inputs: Sequence[ir.Value | None],
        domain: str = "",
        outputs: int = 1,
        unused: Sequence[int] = (),
        **attributes: Any,
    ) -> Values:
        """A new node before the one that is being replaced. unused: outputs that it is not to compute."""
        assert self.before is not None
        name = f"{self.before.outputs[0].name}/{kind}"
        node = ir.node(kind, inputs, attributes, domain=domain, num_outputs=outputs, name=name)
        for at, value in enumerate(node.outputs):
            value.name = f"{name}.{at}" if outputs > 1 else name
        self.unused += [node.outputs[at] for at in unused]
        self.graph.insert_before(self.before, node)
        return tuple(node.outputs)

    def constant(self, name: str, value: NDArray[Any]) -> ir.Value:
        """An initializer by name, made once."""
        if name not in self.graph.initializers:
            tensor = ir.tensor(value, name=name)
            self.graph.register_initializer(ir.val(name, tensor.dtype, value.shape, const_value=tensor))
        return self.graph.initializers[name]

    def weight(
        self,
        name: str,
        dtype: ir.DataType,
        shape: Sequence[int],
        part: Part,
        slots: Sequence[Slot],
        bits: int = 32,
        repeated: int = 1,
    ) -> ir.Value:
        """An initializer by name, made once, whose value comes when weights are bound."""
        if name not in self.graph.initializers:
            value = self.graph.initializers[name] = ir.val(name, dtype, shape)
            self.weights[value] = Weight(part, tuple(slots), bits, repeated)
        return self.graph.initializers[name]

    def fill(self, value: ir.Value, sizes: Sequence[int], mode: str = "constant") -> ir.Value:
        """An initializer up to these sizes, with zeros behind it or, with `edge`, its last value. What is stored stays
        as it was: ONNX Runtime folds this when it loads a graph."""
        assert value.shape is not None
        more = [size - own for size, own in zip(sizes, value.shape.numpy(), strict=True)]
        if not any(more):
            return value
        pads = self.constant(f"pads.{'x'.join(map(str, more))}", np.asarray([0] * len(more) + more, np.int64))
        (found,) = self.op("Pad", [value, pads], mode=mode)
        return found

    def slots(self, names: Sequence[str]) -> list[Slot]:
        return [self._slots[name] for name in names]

    def values(self, names: Sequence[str], shape: Sequence[int], name: str | None = None) -> ir.Value:
        """Float values of slots. At 16 bits float32 too: ONNX Runtime's CPU kernels would copy halves to it."""
        return self.weight(name or "+".join(names), ir.DataType.FLOAT, shape, "values", self.slots(names))

    def refuse(self, what: str) -> EdgewrightError:
        return EdgewrightError(f"onnx: {self.where}: {what}")


def arguments(node: ir.Node) -> dict[str, Any]:
    """The attributes of an edge op as Python values."""
    return {name: attribute.value for name, attribute in node.attributes.items()}


def _x(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _block(low: Lowering, a: Mapping[str, Any]) -> int:
    size = block_size(a["columns"], a["group"])
    if size is None:
        raise low.refuse(f"{a.get('slot') or a['slots'][0]} has groups that no block of MatMulNBits divides")
    return size


def _grouped(low: Lowering, name: str, slots: list[Slot], a: Mapping[str, Any], block: int) -> list[ir.Value]:
    """Scales [rows, blocks] and, if any, packed zero points, as MatMulNBits and GatherBlockQuantized take them."""
    rows, blocks, bits = sum(slot.rows for slot in slots), a["columns"] // block, a["bits"]
    repeated = (a["group"] or a["columns"]) // block
    found = [low.weight(f"{name}.scales", ir.DataType.FLOAT, [rows, blocks], "scales", slots, repeated=repeated)]
    if not a["symmetric"]:
        shape = [rows, -(-blocks * bits // 8)]
        found.append(low.weight(f"{name}.zeros", ir.DataType.UINT8, shape, "row_zeros", slots, bits, repeated))
    return found


def _linear(low: Lowering, node: ir.Node) -> Values:
    a = arguments(node)
    slots, columns, bits = low.slots(a["slots"]), a["columns"], a["bits"]
    name, rows = "+".join(a["slots"]), sum(a["rows"])
    if bits == 16:
        return low.op("FusedMatMul", [_x(node), low.values(a["slots"], [rows, columns])], MICROSOFT, transB=1)
    if by_row(Scheme(bits, a["group"], a["symmetric"]), low.component, low.options):
        codes = low.weight(f"{name}.columns", ir.DataType.INT8, [columns, rows], "columns", slots)
        scales = low.weight(f"{name}.scales", ir.DataType.FLOAT, [rows], "scales", slots)
        return low.op("DynamicQuantizeMatMul", [_x(node), codes, scales], MICROSOFT)
    block, level = _block(low, a), low.options.accuracy_level
    shape = [rows, columns // block, block * bits // 8]
    codes = low.weight(f"{name}.q{bits}", ir.DataType.UINT8, shape, "codes", slots)
    inputs = [_x(node), codes, *_grouped(low, name, slots, a, block)]
    return low.op(
        "MatMulNBits", inputs, MICROSOFT, K=columns, N=rows, bits=bits, block_size=block, accuracy_level=level
    )


def _embedding(low: Lowering, node: ir.Node) -> Values:
    a = arguments(node)
    name, rows, columns, bits = a["slot"], a["rows"], a["columns"], a["bits"]
    if bits == 16:
        return low.op("Gather", [low.values([name], [rows, columns]), _x(node)])
    slots, block = low.slots([name]), _block(low, a)
    # a tied head reads the same bytes in another shape: a Reshape of it would be folded into a copy in memory
    codes = low.weight(f"{name}.rows", ir.DataType.UINT8, [rows, columns * bits // 8], "codes", slots)
    scales, *zeros = _grouped(low, name, slots, a, block)
    return low.op(
        "GatherBlockQuantized",
        [codes, _x(node), scales, *zeros],
        MICROSOFT,
        bits=bits,
        block_size=block,
        gather_axis=0,
        quantize_axis=1,
    )


def _convolution(low: Lowering, node: ir.Node) -> Values:
    """The weight is dequantized by every call, so that in memory too it is the packed bytes of the file. A group is a
    row of its own: a scale for each row takes half of the time of blocks of columns (ONNX Runtime 1.31)."""
    a = arguments(node)
    name, shape, bits = a["slot"], a["shape"], a["bits"]
    settings = {"strides": a["stride"], "dilations": a["dilation"], "group": a["groups"]}
    settings |= {"pads": [*a["padding"], *a["padding"]], "kernel_shape": shape[2:]}
    rows, columns = low.filled.get(node.outputs[0], shape[0]), shape[1]
    if name in low.rounded and multiplies_codes(a["groups"], rows):
        if a["groups"] == 1:
            columns = low.filled.get(_x(node), columns)
        else:
            settings["group"] += rows - shape[0]
        # signed codes: kernels for unsigned weights take three times as long (ONNX Runtime 1.31, x86 with VNNI)
        codes = low.weight(f"{name}.s8", ir.DataType.INT8, shape, "signed", low.slots([name]))
        scales = low.weight(f"{name}.scales", ir.DataType.FLOAT, shape[:1], "scales", low.slots([name]))
        zeros = low.constant(f"zeros.{rows}", np.zeros(rows, np.int8))
        codes, scales = low.fill(codes, [rows, columns, *shape[2:]]), low.fill(scales, [rows], "edge")
        return low.op("Conv", [_x(node), *low.op("DequantizeLinear", [codes, scales, zeros], axis=0)], **settings)
    if bits == 16 or name in low.spared:  # beside integer kernels, a weight that is decoded in every call takes long
        return low.op("Conv", [_x(node), low.values([name], shape)], **settings)
    slots, group = low.slots([name]), a["group"] or math.prod(shape[1:])
    groups = math.prod(shape) // group
    dtype = ir.DataType.UINT4 if bits == 4 else ir.DataType.UINT8
    codes = low.weight(f"{name}.q{bits}", dtype, [groups, group], "codes", slots)
    scales = low.weight(f"{name}.scales", ir.DataType.FLOAT, [groups], "scales", slots)
    zeros = low.weight(f"{name}.zeros", dtype, [groups], "zeros", slots, bits)
    (values,) = low.op("DequantizeLinear", [codes, scales, zeros], axis=0)
    sizes = low.constant("x".join(map(str, shape)), np.asarray(shape, np.int64))
    return low.op("Conv", [_x(node), *low.op("Reshape", [values, sizes])], **settings)


def _rounded(low: Lowering, node: ir.Node) -> Values:
    """Unsigned codes: ONNX Runtime resizes signed ones wrongly, and adds them slower on x86."""
    a = arguments(node)
    name = f"codes.{a['value']}"
    scale = low.constant(f"{name}.scale", np.asarray(a["scale"], np.float32))
    zero = low.constant(f"{name}.zero", np.asarray(a["zero"], np.uint8))
    (codes,) = low.op("QuantizeLinear", [x := _x(node), scale, zero])
    low.codes[a["value"]] = codes
    if x in low.filled:
        assert x.shape is not None
        codes.type = ir.TensorType(ir.DataType.UINT8)
        codes.shape = ir.Shape([x.shape[0], low.filled[x], *x.shape[2:]])
        low.wide.add(codes)
    found = low.op("DequantizeLinear", [codes, scale, zero])
    if node not in low.meeting:
        return found
    assert x.shape is not None
    count = x.shape[1]
    assert isinstance(count, int)
    ones = low.constant(f"ones.{count}", np.ones((count, 1, 1, 1), np.float32))
    return low.op("Conv", [*found, ones], group=count, kernel_shape=[1, 1])


# kernels with a bias of their own: which input it is, and along which axis of the output
_STILL = {"mean": 0.0, "variance": 1.0}
_BIASED = {"Conv": (2, 1), "MatMulNBits": (5, -1), "DynamicQuantizeMatMul": (4, -1), "LayerNormalization": (2, -1)}


def _bias(low: Lowering, node: ir.Node) -> Values:
    a = arguments(node)
    x = _x(node)
    assert x.shape is not None
    count, axis = sum(a["rows"]), a["axis"] % len(x.shape)
    kernel = x.producer()
    if kernel is not None and len(x.uses()) == 1 and not x.is_graph_output():
        if (factor := low.scaled.get(x)) is not None and axis == 1:  # one pass for factor and bias
            assert kernel.inputs[0] is not None
            still = [
                low.constant(f"{name}.{count}", np.full(count, value, np.float32)) for name, value in _STILL.items()
            ]
            inputs = [kernel.inputs[0], low.values([factor], [count]), low.values(a["slots"], [count]), *still]
            found = low.op("BatchNormalization", inputs, epsilon=0.0)
            low.graph.remove(kernel)
            return found
        place, wanted = _BIASED.get(kernel.op_type, (0, 0))
        wanted %= len(x.shape)
        if place and axis == wanted and len(kernel.inputs) <= place:
            kernel.resize_inputs(place + 1)
            low.before, values = kernel, low.values(a["slots"], [count])
            kernel.replace_input_with(place, low.fill(values, [low.filled.get(x, count)]))
            return (x,)
    return low.op("Add", [x, _along(low, a["slots"], count, len(x.shape) - 1 - axis)])


def _along(low: Lowering, slots: Sequence[str], count: int, behind: int) -> ir.Value:
    """Vectors, with a dimension of one for each of the `behind` that a value has behind their axis."""
    name = f"{'+'.join(slots)}.{behind}" if behind else None
    return low.values(slots, [count, *[1] * behind], name)


def _scale(low: Lowering, node: ir.Node) -> Values:
    a = arguments(node)
    x = _x(node)
    assert x.shape is not None
    rank = len(x.shape)
    (found,) = low.op("Mul", [x, _along(low, [a["slot"]], a["columns"], rank - 1 - a["axis"] % rank)])
    if a["axis"] % rank == 1:
        low.scaled[found] = a["slot"]
    return (found,)


def _rms_norm(low: Lowering, node: ir.Node) -> Values:
    a = arguments(node)
    weight = low.values([a["slot"]], [a["columns"]])
    return low.op("SimplifiedLayerNormalization", [_x(node), weight], axis=-1, epsilon=a["eps"], stash_type=1)


def _add_rms_norm(low: Lowering, node: ir.Node) -> Values:
    a = arguments(node)
    inputs = [*node.inputs, low.values([a["slot"]], [a["columns"]])]
    normed, _, _, total = low.op(
        "SkipSimplifiedLayerNormalization", inputs, MICROSOFT, outputs=4, unused=(1, 2), epsilon=a["eps"]
    )
    return normed, total


def _layer_norm(low: Lowering, node: ir.Node) -> Values:
    a = arguments(node)
    return low.op("LayerNormalization", [_x(node), low.values([a["slot"]], [a["columns"]])], axis=-1, epsilon=a["eps"])


TABLE: dict[str, Callable[[Lowering, ir.Node], Values]] = {
    "linear": _linear,
    "embedding": _embedding,
    "convolution": _convolution,
    "rounded": _rounded,
    "bias": _bias,
    "scale": _scale,
    "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm,
    "layer_norm": _layer_norm,
}
