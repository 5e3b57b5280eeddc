"""Other quantizers' weights for the same matrices, dequantized: onnxruntime's, MLX's and llama.cpp's own code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.models.decoder import DecoderSpec

Matrices = dict[str, NDArray[np.float32]]


def onnxruntime(matrices: Mapping[str, NDArray[np.float32]], method: str, group: int) -> tuple[Matrices, int]:
    """RTN (symmetric or not), HQQ or k-quant of `onnxruntime.quantization`: weights, and bytes as it stores them.

    A graph of one MatMul for each matrix goes through MatMulNBitsQuantizer; its MatMulNBits nodes are decoded.
    """
    import contextlib
    import io
    import logging

    import onnx
    from onnx import TensorProto, helper
    from onnxruntime.quantization import matmul_nbits_quantizer as q

    nodes, weights, inputs, outputs = [], [], [], []
    for at, (name, rows) in enumerate(matrices.items()):
        weights.append(onnx.numpy_helper.from_array(np.ascontiguousarray(rows.T), name))
        nodes.append(helper.make_node("MatMul", [f"x{at}", name], [f"y{at}"], name=name))
        inputs.append(helper.make_tensor_value_info(f"x{at}", TensorProto.FLOAT, [1, rows.shape[1]]))
        outputs.append(helper.make_tensor_value_info(f"y{at}", TensorProto.FLOAT, [1, rows.shape[0]]))
    graph = helper.make_graph(nodes, "matrices", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    if method in ("rtn", "rtn-asymmetric"):
        config = q.DefaultWeightOnlyQuantConfig(block_size=group, is_symmetric=method == "rtn")
    elif method == "hqq":
        config = q.HQQWeightOnlyQuantConfig(block_size=group)
    else:
        config = q.KQuantWeightOnlyQuantConfig()
    quantizer = q.MatMulNBitsQuantizer(model, block_size=group, algo_config=config)
    logging.disable(logging.WARNING)
    with contextlib.redirect_stdout(io.StringIO()):  # a progress bar and a line for every matrix
        quantizer.process()
    logging.disable(logging.NOTSET)
    result = quantizer.model.model
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in result.graph.initializer}
    found: Matrices = {}
    size = 0
    for node, name in zip((n for n in result.graph.node if n.op_type == "MatMulNBits"), matrices, strict=True):
        attributes = {a.name: a.i for a in node.attribute}
        stored = [arrays[i] for i in node.input[1:] if i]
        size += sum(a.nbytes for a in stored)
        found[name] = _nbits(stored, attributes["N"], attributes["K"], attributes["block_size"], matrices[name].shape)
    return found, size


def _nbits(
    stored: list[NDArray[Any]], rows: int, columns: int, group: int, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Dequantize MatMulNBits' 4-bit blocks: (code - zero point) * scale, zero point 8 when there is none."""
    blocks = columns // group
    packed, scales = stored[0].reshape(rows, blocks, group // 2), stored[1].reshape(rows, blocks, 1)
    codes = np.stack([packed & 15, packed >> 4], -1).reshape(rows, blocks, group).astype(np.float32)
    zeros: NDArray[np.float32] | float = 8.0
    if len(stored) > 2:
        points = stored[2].reshape(rows, -1)
        if points.dtype == np.uint8:
            points = np.stack([points & 15, points >> 4], -1).reshape(rows, -1)[:, :blocks]
        zeros = points.astype(np.float32).reshape(rows, blocks, 1)
    values = (codes - zeros) * scales.astype(np.float32)
    if (rows, columns) != shape:
        raise ValueError(f"{rows} x {columns} where {shape} was given")
    return np.asarray(values.reshape(shape), np.float32)


def mlx(matrices: Mapping[str, NDArray[np.float32]], group: int) -> tuple[Matrices, int]:
    """`mx.quantize` of bfloat16 weights, as mlx_lm.convert calls it: weights, and bytes as it stores them."""
    import mlx.core as mx

    found: Matrices = {}
    size = 0
    for name, rows in matrices.items():
        stored = mx.quantize(mx.array(rows).astype(mx.bfloat16), group_size=group, bits=4)
        size += sum(a.nbytes for a in stored)
        found[name] = np.array(mx.dequantize(*stored, group_size=group, bits=4).astype(mx.float32))
    return found, size


def gguf_weights(file: Path, spec: DecoderSpec) -> Matrices:
    """The weights of a GGUF file by slot name, dequantized, queries and keys back in rotate-half order."""
    import gguf

    from tests.bench.llamacpp import _NAMES

    slots = {v: k for k, v in _NAMES.items()}
    found: Matrices = {}
    for tensor in gguf.GGUFReader(file).tensors:
        base = tensor.name.removesuffix(".weight")
        if base.startswith("blk."):
            _, layer, kind = base.split(".")
            name = f"model.layers.{layer}.{slots[kind]}"
        elif base in ("token_embd", "output_norm", "output"):
            name = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}[base]
        else:
            continue
        rows = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        heads = {"q_proj": spec.heads, "k_proj": spec.kv_heads}.get(name.rsplit(".", 1)[-1])
        if heads:
            pairs = rows.reshape(heads, spec.head_dim // 2, 2, rows.shape[1])
            rows = pairs.swapaxes(1, 2).reshape(rows.shape)
        found[name] = rows
    return found
