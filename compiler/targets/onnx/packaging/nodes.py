"""Nodes that a packaging puts into a lowered graph, where an ecosystem calls it otherwise than its entry says."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir


class Nodes:
    """Puts nodes before all others of a graph, or behind them, one after another; names begin with `name`."""

    def __init__(self, graph: ir.Graph, name: str, *, last: bool = False) -> None:
        self._graph, self._name = graph, name
        self._first = None if last else graph[0]
        self._constants: dict[str, ir.Value] = {}

    def op(self, kind: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """The only output of a new node of the standard domain."""
        node = ir.node(kind, inputs, attributes, name=f"{self._name}/{kind}")
        if self._first is None:
            self._graph.append(node)
        else:
            self._graph.insert_before(self._first, node)
        return node.outputs[0]

    def integers(self, *values: int, scalar: bool = False) -> ir.Value:
        """A constant, int64 [values], or a scalar."""
        array = np.asarray(values[0] if scalar else values, np.int64)
        name = f"{self._name}/{array.tolist()}"
        if name not in self._constants:
            value = ir.val(name, ir.DataType.INT64, array.shape, const_value=ir.tensor(array, name=name))
            self._graph.register_initializer(value)
            self._constants[name] = value
        return self._constants[name]
