"""From a captured program to an ONNX graph: PyTorch's exporter, with the edge ops as nodes of their own domain.

Every aten op is the exporter's business; what it has no function for is refused here by name. Knows no kernel of
ONNX Runtime and no weight.

Source: `torch.onnx.export(program, dynamo=True, custom_translation_table=…)` and `onnxscript.values.Op`.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch
from onnx.defs import OpSchema
from onnxscript import opset21, values

from artifacts import EdgewrightError
from compiler.targets.onnx.geometry import EDGE, OPSET

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_UNKNOWN = "unknown"
_onnx: Any = opset21
_ATTRIBUTES = {
    "str": OpSchema.AttrType.STRING,
    "int": OpSchema.AttrType.INT,
    "bool": OpSchema.AttrType.INT,
    "float": OpSchema.AttrType.FLOAT,
    "List[str]": OpSchema.AttrType.STRINGS,
    "List[int]": OpSchema.AttrType.INTS,
    "List[float]": OpSchema.AttrType.FLOATS,
}
# At every export PyTorch asks 500 functions of onnxscript for what each parses its own source anew.
_traced: Any = getattr(values, "TracedOnnxFunction", None)
if isinstance(_parsed := getattr(_traced, "function_ir", None), property) and _parsed.fget is not None:
    _traced.function_ir = property(cache(_parsed.fget))
_TYPES = [f"tensor({name})" for name in ("float", "double", "float16", "int64", "int32", "int8", "uint8", "bool")]


def import_program(program: ExportedProgram, ops: Collection[str], where: str) -> ir.Model:
    """The program as an ONNX model, whose nodes of the domain `EDGE` are edge ops with all their arguments.

    ops: names of the edge ops that will be lowered. where: what the program is, for errors.
    Raises EdgewrightError naming every op that has no lowering.
    """
    table: dict[Any, Any] = {torch.ops.aten.group_norm.default: _group_norm}
    table |= {op: _translation(op) for op in (getattr(torch.ops.edge, name).default for name in ops)}
    unknown: list[str] = []
    while True:
        try:
            with _quiet():
                exported = torch.onnx.export(
                    program, dynamo=True, custom_translation_table=table, opset_version=OPSET, verbose=False
                )
        except torch.onnx.OnnxExporterError as error:
            # the exporter stops at the first op that it does not know: a stand-in lets it find the next
            op = _without_function(error)
            if op is None or op in table:
                raise EdgewrightError(f"onnx: {where}: PyTorch's ONNX exporter fails: {_reason(error)}") from error
            unknown.append(str(op))
            table[op] = _stand_in(op)
            continue
        if unknown:
            raise EdgewrightError(f"onnx: {where}: no lowering for {', '.join(unknown)}")
        assert exported is not None
        return _stripped(exported.model)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of packages that no graph of ours needs, and of PyTorch's own deprecations."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)


def _translation(op: torch._ops.OpOverload) -> Callable[..., Any]:
    """What emits an edge op as a node: its tensors are inputs, all else attributes."""
    arguments = op._schema.arguments
    tensors = [a.name for a in arguments if str(a.type) == "Tensor"]
    kinds = {a.name: _ATTRIBUTES[str(a.type)] for a in arguments if a.name not in tensors}
    inputs = [OpSchema.FormalParameter(name, f"T_{name}") for name in tensors]
    attributes = [OpSchema.Attribute(name, kind, "", required=True) for name, kind in kinds.items()]
    node = _op(EDGE, op.name().removeprefix("edge::"), inputs, len(op._schema.returns), attributes)

    def emit(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip((a.name for a in arguments), args, strict=False)) | kwargs
        found = {name: int(v) if isinstance(v := given[name], bool) else v for name in kinds}
        return node(*(given[name] for name in tensors), **found)

    return emit


def _group_norm(
    x: ir.Value,
    groups: int,
    weight: ir.Value | None = None,
    bias: ir.Value | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Any:
    """One kernel over the values of each group; the exporter's own function makes a dozen of it, four times slower."""
    assert x.shape is not None
    along = _onnx.Constant(value_ints=[-1, *[1] * (len(x.shape) - 2)])
    flat = _onnx.Reshape(x, _onnx.Constant(value_ints=[0, groups, -1]))
    ones, zeros = (_onnx.Constant(value_floats=[value] * groups) for value in (1.0, 0.0))
    normed = _onnx.Reshape(_onnx.InstanceNormalization(flat, ones, zeros, epsilon=eps), _onnx.Shape(x))
    for vector, apply in ((weight, _onnx.Mul), (bias, _onnx.Add)):
        if vector is not None:
            normed = apply(normed, _onnx.Reshape(vector, along))
    return normed


def _stand_in(op: torch._ops.OpOverload) -> Callable[..., Any]:
    """A node in the place of an op that has no function: its tensors in, as many out as it returns."""
    inputs = [OpSchema.FormalParameter("x", "T_x", param_option=OpSchema.FormalParameterOption.Variadic)]
    node = _op(_UNKNOWN, re.sub(r"\W", "_", op.name()), inputs, len(op._schema.returns), [])

    def emit(*args: Any, **kwargs: Any) -> Any:
        return node(*(value for value in (*args, *kwargs.values()) if isinstance(value, ir.Value)))

    return emit


def _op(domain: str, name: str, inputs: list[Any], outputs: int, attributes: list[Any]) -> values.Op:
    results = [OpSchema.FormalParameter(f"y{at}", f"T_y{at}") for at in range(outputs)]
    constraints = [(parameter.type_str, _TYPES, "") for parameter in (*inputs, *results)]
    schema = OpSchema(
        name, domain, 1, inputs=inputs, outputs=results, type_constraints=constraints, attributes=attributes
    )
    return values.Op(values.Opset(domain, 1), name, schema)


def _without_function(error: BaseException) -> torch._ops.OpOverload | None:
    """The op for which the exporter found no function; None where it failed otherwise."""
    chain = list(_causes(error))
    if not any("No ONNX function found" in str(e) for e in chain):
        return None
    for text in map(str, chain):
        if found := re.search(r"target=torch\.ops\.(\w+)\.(\w+)\.(\w+)\]", text):
            namespace, name, overload = found.groups()
            op: torch._ops.OpOverload = getattr(getattr(getattr(torch.ops, namespace), name), overload)
            return op
    return None


def _reason(error: BaseException) -> str:
    """The innermost cause, in one line."""
    return " ".join(str(list(_causes(error))[-1]).split())[:500]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _stripped(model: ir.Model) -> ir.Model:
    """Without what only debugging needs, stack traces with this machine's paths for one."""
    for node in model.graph:
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    return model
