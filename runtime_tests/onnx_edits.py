"""Edits of an ONNX graph that a test needs, made in memory.

The edits, on a graph alone (the weights stay in their file, which onnxruntime maps):

- exact: ``accuracy_level`` 0 on every MatMulNBits, and a float32 product in place of every DynamicQuantizeMatMul, so
  that activations are not rounded to int8; float32 caches where they are quantized;
- exact, where activations are codes: QuantizeLinear and DequantizeLinear of an activation are bypassed;
- cut: codes of every rounded activation are outputs, and what is behind them goes on from inputs in their place, of
  the shapes given or, where channels are filled up with zeros, told by the file;
- score: the node that keeps the last token before the head is bypassed, which gives the outputs of all tokens.

An edited graph is given as bytes; ``session.model_external_initializers_file_folder_path`` tells where its weights are.

What must not live here: sessions, and anything that writes into the artifact.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artifacts import EdgewrightError
from artifacts.formats import onnx as formats

GIVEN = "given/"


def edited_graph(path: Path, *, exact: bool, score: bool, cut: Mapping[str, tuple[int, ...]] | None = None) -> bytes:
    """The graph of ``path`` with the edits that this module describes, serialized; its external data is not read."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    graph = model.graph
    if exact:
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type == "MatMulNBits" and attribute.name == "accuracy_level":
                    attribute.i = 0
        _unround_activations(graph)
        _bypass_codes(graph)
        _unquantize_caches(graph)
    for node in graph.node:
        if cut and node.op_type == "DequantizeLinear" and node.input[0] in cut:
            node.input[0] = f"{GIVEN}{node.input[0]}"
    told = {value.name: [size.dim_value for size in value.type.tensor_type.shape.dim] for value in graph.value_info}
    for name, own in (cut or {}).items():
        shape = told.get(name, own)
        graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, shape))
        graph.input.append(onnx.helper.make_tensor_value_info(f"{GIVEN}{name}", onnx.TensorProto.UINT8, shape))
    if score:
        last = next((node for node in graph.node if node.name == formats.LAST_POSITION), None)
        if last is None:
            raise EdgewrightError(f"{path}: no node {formats.LAST_POSITION!r}, though the manifest says so")
        for node in graph.node:
            node.input[:] = [last.input[0] if name == last.output[0] else name for name in node.input]
        graph.node.remove(last)
        for output in graph.output:
            sizes = output.type.tensor_type.shape.dim
            if len(sizes) > 1 and sizes[1].dim_value == 1:
                sizes[1].dim_param = formats.TOKENS
    return bytes(model.SerializeToString())


def _unround_activations(graph: Any) -> None:
    """Cast, Mul, MatMul and Add for every DynamicQuantizeMatMul: the same weights, activations as they are."""
    from onnx import helper

    nodes = []
    for node in graph.node:
        if node.op_type != "DynamicQuantizeMatMul":
            nodes.append(node)
            continue
        (x, codes, scales, *rest), (out,) = node.input, node.output
        wide, product = f"{out}/wide", f"{out}/product" if len(rest) > 1 else out
        # a DequantizeLinear would be taken back into a kernel that rounds activations
        nodes.append(helper.make_node("Cast", [codes], [f"{wide}/codes"], to=1))
        nodes.append(helper.make_node("Mul", [f"{wide}/codes", scales], [wide]))
        nodes.append(helper.make_node("MatMul", [x, wide], [product]))
        if len(rest) > 1:
            nodes.append(helper.make_node("Add", [product, rest[1]], [out]))
    del graph.node[:]
    graph.node.extend(nodes)


def _bypass_codes(graph: Any) -> None:
    """Every activation as it is: without its QuantizeLinear, and the DequantizeLinear behind it."""
    from onnx import helper

    rounds = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    wide = {
        node.output[0]: rounds[node.input[0]]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in rounds
    }
    kept = [node for node in graph.node if node.output[0] not in rounds and node.output[0] not in wide]
    for node in kept:
        node.input[:] = [wide.get(name, name) for name in node.input]
    outputs = {output.name for output in graph.output}
    kept += [helper.make_node("Identity", [wide[name]], [name]) for name in sorted(outputs & wide.keys())]
    del graph.node[:]
    graph.node.extend(kept)


def _unquantize_caches(graph: Any) -> None:
    """Float32 keys and values in every GroupQueryAttention: no scales (its inputs from 12 on), no cache types."""
    names = set()
    for node in graph.node:
        kept = [a for a in node.attribute if a.name not in ("k_quant_type", "v_quant_type", "kv_cache_bit_width")]
        if node.op_type == "GroupQueryAttention" and len(kept) < len(node.attribute):
            del node.attribute[:], node.input[9:]
            node.attribute.extend(kept)
            names |= {*node.input[3:5], *node.output[1:3]}
    for tensor in [*graph.input, *graph.output]:
        if tensor.name in names:
            tensor.type.tensor_type.elem_type = 1  # TensorProto.FLOAT
