"""The graph of an entry with edge ops for nodes, imported once for all schemes that change nothing but numbers in it.

Capturing and importing a graph takes a small model longer than most else of its package. Bits, group and symmetry enter
it as plain attributes of its edge ops, so the variants of a sweep have one graph between them: it is kept in this
process, without weights, and each gets a copy with its own numbers. What must not live here: a kernel (`lower.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from artifacts import EdgewrightError, Progress, silent
from compiler.apart import apart
from compiler.graph import capture
from compiler.models.base import Component, Entry, scheme_arguments
from compiler.slots import Schemes
from compiler.targets.onnx.geometry import EDGE

if TYPE_CHECKING:
    from onnx import ModelProto

_MOST = 8  # a model's entries; no graph holds more than a table or a mask
_SCHEME = ("bits", "group", "symmetric")
_kept: list[tuple[Any, ModelProto]] = []

Wanted = tuple[Component, Entry, Schemes, Collection[str]]
"""The arguments of `imported`."""


def imported(component: Component, entry: Entry, schemes: Schemes, ops: Collection[str]) -> ir.Model:
    """The graph of an entry under some schemes, for the caller to change. ops: names of the edge ops that will be
    lowered.

    Raises EdgewrightError naming every op that has no lowering.
    """
    where, wanted = f"{component.name}.{entry.name}", _made_of(component, entry, schemes, ops)
    proto = _found(wanted)
    if proto is None:
        proto = _imported(component, entry, schemes, ops)
        _keep(wanted, proto)
    model = ir.from_proto(proto)
    _renumber(model, schemes, where)
    return model


def import_ahead(graphs: Sequence[Wanted]) -> None:
    """Have graphs imported by another process, for `imported` to find. Raises as it does."""
    missing = [graph for graph in graphs if _found(_made_of(*graph)) is None][:_MOST]
    if missing:
        protos: list[ModelProto] = apart(_import_all, missing, progress=silent)
        for graph, proto in zip(missing, protos, strict=True):
            _keep(_made_of(*graph), proto)


def _import_all(graphs: Sequence[Wanted], _: Progress) -> list[ModelProto]:
    return [_imported(*graph) for graph in graphs]


def _imported(component: Component, entry: Entry, schemes: Schemes, ops: Collection[str]) -> ModelProto:
    from compiler.targets.onnx.importer import import_program

    program = capture(component, entry, schemes)
    return ir.to_proto(import_program(program, ops, f"{component.name}.{entry.name}"))


def _found(wanted: Any) -> ModelProto | None:
    return next((known for given, known in _kept if given == wanted), None)


def _keep(wanted: Any, proto: ModelProto) -> None:
    _kept.append((wanted, proto))
    del _kept[:-_MOST]


def _made_of(component: Component, entry: Entry, schemes: Schemes, ops: Collection[str]) -> Any:
    """All that a graph follows from but for the numbers of its schemes, to be compared: a module's function with what
    is bound to it, and which of the fusions that schemes can prevent there are."""
    module = component.module
    body = (module.func, module.args, module.keywords) if isinstance(module, partial) else module
    return body, entry, component.states, component.slots, component.unfused(schemes), sorted(ops)


def _renumber(model: ir.Model, schemes: Schemes, where: str) -> None:
    """Give every edge op the schemes of its slots."""
    for node in model.graph:
        if node.domain != EDGE or not {*_SCHEME} <= node.attributes.keys():
            continue
        given: Any = node.attributes["slots" if "slots" in node.attributes else "slot"].value
        names = [given] if isinstance(given, str) else list(given)
        found = {scheme_arguments(schemes, name) for name in names}
        if len(found) != 1:
            raise EdgewrightError(f"onnx: {where}: {node.op_type} reads {', '.join(names)}, whose schemes differ")
        for name, value in zip(_SCHEME, found.pop(), strict=True):
            node.attributes[name] = ir.AttrInt64(name, int(value))
