"""What coremltools 9.0 gets wrong without a word, mended or refused before it can reach a package.

- `gelu(approximate="tanh")` on the torch.export route becomes the exact gelu: keyword arguments reach lowerings in a
  place where most do not look. Mended for gelu; any other keyword argument that changes a result is refused.
- numpy 2.4 no longer turns one-element arrays into scalars, which the lowering of casts relies on. Mended.
- Programs with an operator, rank or dtype that Core ML has not are refused with the node's name.

Parity tests stay the last word: these are the cases that are known.
"""

from __future__ import annotations

import inspect
import operator
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from artifacts import EdgewrightError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_MAX_RANK = 5
# keyword arguments that say where or how a tensor is stored, not what it holds
_HARMLESS = {"dtype", "device", "layout", "pin_memory", "memory_format", "non_blocking", "generator", "implicit"}


def check_program(program: ExportedProgram) -> None:
    """Raise EdgewrightError, naming nodes, when Core ML cannot express an exported program or would change it."""
    import torch
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY
    from coremltools.converters.mil.frontend.torch.utils import sanitize_op_kind

    problems: list[str] = []
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target is not operator.getitem and hasattr(node.target, "name"):
            kind = sanitize_op_kind(node.target.name())
            if kind not in _TORCH_OPS_REGISTRY:
                problems.append(f"{node.name}: Core ML has no counterpart of the operator {node.target}")
                continue
            problems += [f"{node.name}: {text}" for text in _dropped(node, kind)]
        value = node.meta.get("val")
        for tensor in value if isinstance(value, (tuple, list)) else (value,):
            if not isinstance(tensor, torch.Tensor):
                continue
            if tensor.ndim > _MAX_RANK:
                problems.append(f"{node.name}: a tensor of rank {tensor.ndim}; Core ML takes {_MAX_RANK} at most")
            if tensor.is_complex() or tensor.dtype in (torch.float64, torch.bfloat16):
                problems.append(f"{node.name}: dtype {tensor.dtype}, which Core ML does not compute in")
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise EdgewrightError("coreml: " + "; ".join(problems[:5]) + more)


def _dropped(node: Any, kind: str) -> Iterator[str]:
    defaults = {a.name: a.default_value for a in node.target._schema.arguments if a.has_default_value()}
    for name, value in node.kwargs.items():
        if name in _HARMLESS or value == defaults.get(name) or _reads(kind, name):
            continue
        yield f"coremltools drops the argument {name}={value!r} of {node.target}; write the model without it"


def _reads(kind: str, keyword: str) -> bool:
    """Whether the lowering of an operator looks at a keyword argument: told from its source."""
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY

    if (kind, keyword) == ("gelu", "approximate"):
        return True
    source = inspect.getsource(_TORCH_OPS_REGISTRY.get_func(kind))
    return re.search(rf'_get_kwinputs\(\s*context,\s*node,\s*"{keyword}"', source) is not None


@contextmanager
def mended() -> Iterator[None]:
    """Run conversions with coremltools' known faults mended; its tables are put back afterwards."""
    from coremltools.converters.mil.frontend.torch import ops
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY

    table = _TORCH_OPS_REGISTRY.name_to_func_mapping
    gelu, cast = table["gelu"], ops._cast
    table["gelu"], ops._cast = _gelu, _mended_cast(cast)
    try:
        yield
    finally:
        table["gelu"], ops._cast = gelu, cast


def _gelu(context: Any, node: Any) -> None:
    """gelu with its approximation, wherever the frontend left it: a string, or the name of a constant."""
    from coremltools.converters.mil import Builder as mb

    named = (node.kwinputs or {}).get("approximate", ())
    given = [*node.inputs[1:2], *(named if isinstance(named, (tuple, list)) else [named])]
    approximate = "none"
    for argument in given:
        text = argument if argument in ("none", "tanh") else context[argument].val
        approximate = str(text)
    if approximate not in ("none", "tanh"):
        raise EdgewrightError(f"coreml: {node.name}: gelu(approximate={approximate!r}) is unknown")
    mode = "TANH_APPROXIMATION" if approximate == "tanh" else "EXACT"
    context.add(mb.gelu(x=context[node.inputs[0]], mode=mode, name=node.name))


def _mended_cast(original: Any) -> Any:
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs

    def cast(context: Any, node: Any, dtype: Any, dtype_name: str) -> None:
        x = _get_inputs(context, node, expected=1)[0]
        if not x.can_be_folded_to_const() or isinstance(x.val, dtype):
            original(context, node, dtype, dtype_name)
            return
        if np.size(x.val) != 1:
            raise ValueError(f"{node.name}: a cast to {dtype_name} of {np.size(x.val)} values")
        context.add(mb.const(val=dtype(np.asarray(x.val).reshape(-1)[0]), name=node.name), node.name)

    return cast
