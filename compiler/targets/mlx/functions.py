"""`.mlxfn` files: a captured graph as MLX operations, for Python, C++ and Swift without a model class.

The graph of a component is walked twice over: once by `torch.export`, once here, where each node calls its entry in
the tables `aten.py` and `edge.py` on MLX arrays while MLX traces. The file holds the traces and no weights: those are
keyword arguments under their names in the safetensors files beside it, so a prefill and a decode trace share them,
and so do the package and its functions.

MLX's own hazard: the format is experimental, a file is for the MLX that wrote it and what newer ones still read.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from artifacts import EdgewrightError
from compiler.graph import Node, capture
from compiler.models.base import Component, Entry
from compiler.targets.mlx.aten import ATEN, conv_layout
from compiler.targets.mlx.edge import EDGE, Parts

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from compiler.targets.base import BuildJob, Job

Arrays = Mapping[str, mx.array]
_TRACED_IN = (mx.float16, mx.float32)


class GraphFunction:
    """A captured graph as a function of MLX arrays: its own inputs in order, weights by name.

    Raises EdgewrightError naming the operators that the tables lack.
    """

    def __init__(self, program: ExportedProgram) -> None:
        signature = program.graph_signature
        self._nodes: list[Node] = list(program.graph.nodes)
        named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self._weight_names = {**named, **signature.inputs_to_lifted_tensor_constants}
        self._layouts = _conv_weights(self._nodes, self._weight_names)
        missing = sorted({str(n.target) for n in self._nodes if n.op == "call_function" and _entry(n) is None})
        if missing:
            raise EdgewrightError(f"mlx: no lowering for {', '.join(missing)}")

    @property
    def weight_layouts(self) -> Mapping[str, tuple[bool, int]]:
        """Convolution weights that are taken in MLX's layout, by name: (transposed convolution, groups)."""
        return {self._weight_names[node]: layout for node, layout in self._layouts.items()}

    def __call__(self, *inputs: mx.array, **weights: mx.array) -> tuple[mx.array, ...]:
        given = iter(inputs)
        values: dict[Node, Any] = {}
        for node in self._nodes:
            if node.op == "placeholder":
                name = self._weight_names.get(node.name)
                values[node] = next(given) if name is None else weights[name]
            elif node.op == "call_function":
                values[node] = self._call(node, values, weights)
            elif node.op == "output":
                return tuple(_array(values[n]) for n in node.args[0])
        raise ValueError("a graph without an output")

    def _call(self, node: Node, values: Mapping[Node, Any], weights: Arrays) -> Any:
        def value(argument: Any) -> Any:
            if isinstance(argument, (list, tuple)):
                return [value(a) for a in argument]
            return values[argument] if hasattr(argument, "op") else argument

        entry = _entry(node)
        assert entry is not None
        arguments = [value(a) for a in node.args]
        keywords = {key: value(a) for key, a in node.kwargs.items()}
        if str(node.target) in EDGE:
            return entry(weights, *arguments)
        if _is_conv(node) and node.args[1].name not in self._layouts:
            arguments[1] = conv_layout(arguments[1], *_conv_layout_of(node))
        if node.target is operator.getitem or str(node.target) in _TAKES_PARTS:
            return entry(*arguments, **keywords)
        return entry(*(_array(a) for a in arguments), **keywords)


_TAKES_PARTS = {"aten.split.Tensor"}


def _array(value: Any) -> Any:
    """The parts of a fused linear as one array, also inside a list; anything else as it is."""
    if isinstance(value, list):
        return [_array(item) for item in value]
    return value.joined() if isinstance(value, Parts) else value


def _entry(node: Node) -> Callable[..., Any] | None:
    if node.target is operator.getitem:
        return operator.getitem  # type: ignore[no-any-return]  # its overloads are not a Callable to mypy
    return EDGE.get(str(node.target)) or ATEN.get(str(node.target))


def _is_conv(node: Node) -> bool:
    return str(node.target).startswith("aten.conv") and str(node.target) in ATEN


def _conv_layout_of(node: Node) -> tuple[bool, int]:
    """Whether a convolution is transposed, and its groups, by its schema's argument names."""
    names = [argument.name for argument in node.target._schema.arguments]
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    return "transpose" in str(node.target), int(given.get("groups", 1))


def _conv_weights(nodes: Sequence[Node], weights: Mapping[str, str]) -> dict[str, tuple[bool, int]]:
    """Weights that only convolutions of one layout use, by the name of their placeholder."""
    found = {}
    for node in nodes:
        if node.op == "placeholder" and node.name in weights and node.users:
            layouts = {_conv_layout_of(u) if _is_conv(u) and u.args[1] is node else None for u in node.users}
            if len(layouts) == 1 and (layout := layouts.pop()) is not None:
                found[node.name] = layout
    return found


def export_component(program: ExportedProgram, folder: Path, name: str, dtype: mx.Dtype = mx.float16) -> None:
    """Write `name`.mlxfn and `name`.safetensors, the program's own parameters in `dtype`, into a folder.

    The function takes the program's inputs, floating ones in `dtype`, and gives its outputs in it.
    """
    function = GraphFunction(program)
    weights = {key: _cast(array, dtype) for key, array in _own(program, function).items()}
    mx.save_safetensors(str(folder / f"{name}.safetensors"), weights, metadata={"format": "mlx"})
    examples = [_cast(mx.array(value.numpy()), dtype) for value in program.example_inputs[0]]

    def traced(*inputs: mx.array, **given: mx.array) -> tuple[mx.array, ...]:
        return tuple(_cast(out, dtype) for out in function(*inputs, **given))

    with mx.exporter(str(folder / f"{name}.mlxfn"), traced) as exporter:
        exporter(tuple(examples), weights)


def _own(program: ExportedProgram, function: GraphFunction) -> dict[str, mx.array]:
    """The tensors that a program holds itself, by name and as its function takes them."""
    found = {}
    for key, tensor in {**program.state_dict, **program.constants}.items():
        array = mx.array(tensor.detach().numpy())
        layout = function.weight_layouts.get(key)
        found[key] = array if layout is None else conv_layout(array, *layout)
    return found


def check(job: Job) -> None:
    """Raises EdgewrightError naming the operators of any entry that the tables lack."""
    for component in job.model.components:
        for entry in component.shipped:
            sizes = {name: low for name, (low, _) in entry.dimensions.items()}
            GraphFunction(capture(component, entry, job.schemes, sizes))


def export_entry(
    job: Job,
    component: Component,
    entry: Entry,
    sizes: Sequence[Mapping[str, int]],
    package: Path,
    path: Path,
    slotted: Callable[[str], str] = str,
) -> None:
    """Write the traces of an entry, in float16 and float32 at each of `sizes`, into one file.

    Arguments: inputs and then states; keyword arguments: the tensors of the package's safetensors, of which `slotted`
    gives the names by their slots. Results: outputs and then states.
    """
    weights = load_lazily(package)
    programs = [capture(component, entry, job.schemes, size) for size in sizes]
    graphs = [(found := GraphFunction(program), _own(program, found)) for program in programs]
    # the order in which the exporter traces; what a graph holds itself becomes part of its traces
    turn = iter([(graph, own, dtype) for graph, own in graphs for dtype in _TRACED_IN])

    def step(*inputs: mx.array, **given: mx.array) -> tuple[mx.array, ...]:
        graph, own, dtype = next(turn)
        tables = {name: _cast(array, dtype) for name, array in own.items()}
        return graph(*inputs, **{slotted(name): array for name, array in given.items()}, **tables)

    with mx.exporter(str(path), step) as exporter:
        for size in sizes:
            for dtype in _TRACED_IN:
                ports = [*entry.inputs, *component.states]
                zeros = [_cast(mx.zeros(p.sized(size), getattr(mx, p.dtype)), dtype) for p in ports]
                # as one mapping: MLX's binding takes at most 1,024 keyword arguments
                exporter(tuple(zeros), {name: _cast(array, dtype) for name, array in weights.items()})


def load_lazily(package: Path) -> dict[str, mx.array]:
    """The tensors of a package by name, opened and not read."""
    weights: dict[str, mx.array] = {}
    for file in sorted(package.glob("model*.safetensors")):
        loaded = mx.load(str(file))
        assert isinstance(loaded, dict)
        weights |= loaded
    return weights


def export_decoder(job: BuildJob, package: Path, path: Path, prefill: int, prefix: str) -> None:
    """Write prefill and decode of a text decoder over a fixed cache into one file.

    Arguments: ids and positions int32 [1, n], n = `prefill` or 1, consecutive positions; then key and value cache
    [1, kv_heads, max_tokens, head_dim] of every layer. Keyword arguments: the tensors of the package's safetensors.
    Results: logits [1, n, vocab] and the caches.
    """
    component = job.model.component("decoder")
    entry = component.entry("score")
    functions = {
        length: GraphFunction(capture(component, entry, job.schemes, {"tokens": length})) for length in (prefill, 1)
    }

    def step(ids: mx.array, positions: mx.array, *caches: mx.array, **given: mx.array) -> tuple[mx.array, ...]:
        plain = {name.removeprefix(prefix): array for name, array in given.items()}
        return functions[ids.shape[1]](ids, positions, *caches, **plain)

    caches = [mx.zeros(state.sized({}), mx.float16) for state in component.states]
    weights = load_lazily(package)
    with mx.exporter(str(path), step) as exporter:
        for length in functions:
            example = mx.zeros((1, length), mx.int32)
            exporter((example, example, *caches), weights)


def _cast(array: mx.array, dtype: mx.Dtype) -> mx.array:
    return array.astype(dtype) if mx.issubdtype(array.dtype, mx.floating) else array
