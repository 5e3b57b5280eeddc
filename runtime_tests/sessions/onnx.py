"""ONNX packages in plain onnxruntime: IO binding, and states that stay in their buffers from call to call.

What lives here: sessions and bindings. What must not: anything that writes into the artifact, the edits of a graph that
a test needs (``onnx_edits.py``), and what a model is for.
"""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from artifacts import MANIFEST, EdgewrightError, Figure, GateFailed, Manifest
from artifacts.formats import interface
from artifacts.formats import onnx as formats
from artifacts.manifest import payload_file
from runtime_tests.onnx_edits import GIVEN, edited_graph

from . import Arrays, call_sizes, runtime_section

_CPU = Path("/proc/cpuinfo")
_SATURATES = (
    "this processor has no VNNI, and onnxruntime's products of 8-bit activations may saturate in 16 bits on it; phones "
    "and newer processors sum in 32, so judge such a package there"
)
_ELSEWHERE = (
    "the packed weights are for {} and onnxruntime {}, so the plain graphs are run here, which copy their weights into "
    "memory: what a phone with such a processor holds is less by about these copies"
)
_NOT_A_PHONES = (
    "the packed weights are for this machine's {}: a phone holds as little memory only with copies for its own "
    "processor, made with prepacked: dotprod (or neon, i8mm) or by the app at its first start"
)
_REPEATED = 8  # calls after a load that are asked again of the plain graphs
_FOLDER = "session.model_external_initializers_file_folder_path"
_TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
}


class _Buffer:
    """Memory that onnxruntime reads and writes in place."""

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self.array = np.empty(shape, dtype)
        self.value = ort.OrtValue.ortvalue_from_numpy(self.array)  # not a copy


@dataclass
class _Open:
    """A loaded graph. score: whether it was edited to give all tokens."""

    session: Any
    binding: Any
    score: bool
    outputs: dict[str, _Buffer] = field(default_factory=dict)


class OnnxSession:
    """Every graph of the package is loaded in one of its forms, so that a large model is never in memory twice."""

    warnings: tuple[str, ...] = ()
    stand_in: str | None = None
    exact_stand_in: str | None = None

    def __init__(self, artifact: Path, manifest: Manifest) -> None:
        self._where = artifact / MANIFEST
        runtime = runtime_section(formats.OnnxRuntime, artifact, manifest)
        self._graphs = runtime.graphs
        self._files = {graph.file: payload_file(artifact, graph.file) for graph in self._graphs}
        self._ort = {graph.file: payload_file(artifact, graph.ort) for graph in self._graphs if graph.ort is not None}
        self._packed = {g.file: payload_file(artifact, g.prepacked) for g in self._graphs if g.prepacked is not None}
        self._components = {component.name: component for component in manifest.components}
        for graph in self._graphs:
            if (known := self._components.get(graph.component)) is None or not _fits(graph, known):
                raise EdgewrightError(f"{self._where}: runtime: {graph.file} is not of the components that it states")
        if any(graph.codes for graph in self._graphs) and _saturates():
            self.warnings = (_SATURATES,)
        packing = runtime.packing
        here = packing and formats.packing_here(packing.wanted, ort.__version__)
        if packing is not None and here != packing:
            self._packed = {}
            self.warnings += (_ELSEWHERE.format(packing.machine, packing.onnxruntime),)
        elif here and here.machine.lower() not in ("aarch64", "arm64"):
            self.warnings += (_NOT_A_PHONES.format(here.machine),)
        self._asked: list[tuple[str, str, Arrays, str]] = []
        self._noted = False
        self._open: dict[str, _Open] = {}
        self._states: dict[tuple[str, str], _Buffer] = {}
        self._spare: dict[tuple[str, str], _Buffer] = {}
        self._exact, self._plain, self._threads, self._spinning = False, False, 2, False

    @property
    def packed(self) -> bool:
        """Whether there are packed weights for this processor."""
        return bool(self._packed)

    def load(self, *, exact: bool = False, threads: int = 2, spinning: bool = False, plain: bool = False) -> None:
        """Open the package. ``spinning``: idle threads keep their core, which pays only where nothing else runs.
        ``plain``: the graphs without packed weights, though those for this processor are there."""
        if exact != self._exact:
            self._states, self._spare = {}, {}  # they may be of another type
        self._open, self._asked = {}, []
        self._plain = plain or exact  # exact kernels pack otherwise
        self._exact, self._threads, self._spinning = exact, threads, spinning
        for graph in self._graphs:
            self._opened(graph, score=False)
        self.reset()

    def reset(self) -> None:
        """States to zeros, to their ends: memory then holds a full context, not what a short test touches."""
        self._noted = not self._asked  # what is asked again begins with states of zeros
        for buffer in self._states.values():
            buffer.array.fill(0)

    def call(self, component: str, entry: str, **arrays: NDArray[Any]) -> Arrays:
        """See `Session`."""
        found = self._called(component, entry, arrays)
        if self._packed and not self._plain and self._noted and len(self._asked) < _REPEATED:
            given = {name: array.copy() for name, array in arrays.items()}
            self._asked.append((component, entry, given, _digest(found)))
        return found

    def repeated(self) -> int | None:
        """How many of the first calls since the last load the plain graphs answer otherwise, in any bit; they are
        loaded for it. None where no packed weights were run."""
        asked = self._asked
        if not asked:
            return None
        self.load(threads=self._threads, spinning=self._spinning, plain=True)
        return sum(_digest(self._called(part, entry, given)) != digest for part, entry, given, digest in asked)

    def _called(self, component: str, entry: str, arrays: Arrays) -> Arrays:
        graph = self._graph(component, entry)
        score = entry == formats.SCORE and entry not in graph.entries
        known = self._components[component].entry(graph.entries[0] if score else entry)
        sizes = call_sizes(f"{component}.{entry}", known, arrays)
        opened = self._opened(graph, score=score and graph.tokens == "last")
        feeds = {name: np.ascontiguousarray(arrays[port]) for port, name in graph.inputs.items()}
        if graph.images is not None:
            tiles = arrays[graph.images.port]
            feeds[graph.inputs[graph.images.port]] = np.ascontiguousarray(tiles[None])
            feeds[graph.images.mask] = np.ones((1, len(tiles), *tiles.shape[2:]), np.bool_)
        if graph.cache is not None:
            total = _total(graph.cache, arrays[graph.cache.positions])
            if graph.cache.mask is not None:
                feeds[graph.cache.mask] = np.ones((len(arrays[graph.cache.positions]), total), np.int64)
        for name, array in feeds.items():
            # not a copy: `feeds` keeps the arrays until the run is over
            opened.binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        self._bind_states(graph, opened.binding, shared=False)
        every = score or graph.tokens == "all"
        for port in known.outputs:
            wide = port.model_copy(update={"shape": (port.shape[0], formats.TOKENS, *port.shape[2:])})
            shape = (wide if every else port).sized(sizes)
            self._bind_output(opened, graph.outputs[port.name], shape, port.dtype)
        opened.session.run_with_iobinding(opened.binding)
        self._swap_states(graph)
        found = {}
        for port in known.outputs:
            name = graph.outputs[port.name]
            buffer = opened.outputs.pop(name) if every else opened.outputs[name]  # of all tokens, it is not kept
            found[port.name] = buffer.array if score else (buffer.array[:, -1:] if every else buffer.array).copy()
        return found

    def forms(self, component: str, entry: str, **arrays: NDArray[Any]) -> tuple[Arrays, Arrays] | None:
        """The entry's outputs as its graph gives them without what ONNX Runtime does for this machine, and as the same
        in the ORT format does; None where the package has no such file."""
        graph = self._graph(component, entry)
        if graph.ort is None:
            return None
        feeds = {name: np.ascontiguousarray(arrays[port]) for port, name in graph.inputs.items()}
        found = []
        for file in (self._files[graph.file], self._ort[graph.file]):
            options = self._options()
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
            session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
            values = session.run(list(graph.outputs.values()), feeds)
            found.append(dict(zip(graph.outputs, values, strict=True)))
        return found[0], found[1]

    def steps(self, component: str, entry: str, codes: Arrays, **arrays: NDArray[Any]) -> tuple[Arrays, Arrays]:
        """See `Session`."""
        graph = self._graph(component, entry)
        if graph.codes.keys() != codes.keys():
            raise GateFailed(f"{component}.{entry}: rounds other activations: {min(graph.codes.keys() ^ codes.keys())}")
        shapes = {graph.codes[name]: values.shape for name, values in codes.items()}
        options = self._options()
        options.add_session_config_entry(_FOLDER, str(self._files[graph.file].parent.resolve()))
        source = edited_graph(self._files[graph.file], exact=False, score=False, cut=shapes)
        session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        wanted = {port: np.ascontiguousarray(arrays[port]) for port in graph.inputs}
        known = {value.name: value.shape for value in session.get_inputs()}
        given = {f"{GIVEN}{graph.codes[name]}": values for name, values in codes.items()}
        given = {name: _filled(values, known[name]) for name, values in given.items() if name in known}
        feeds = {name: wanted[port] for port, name in graph.inputs.items() if name in known} | given
        names = [*graph.outputs.values(), *graph.codes.values()]
        found = dict(zip(names, session.run(names, feeds), strict=True))
        outputs = {port: found[name] for port, name in graph.outputs.items()}
        own = {name: tuple(map(slice, shapes[graph.codes[name]])) for name in codes}
        return outputs, {name: found[graph.codes[name]][of] for name, of in own.items()}

    def footprint(self) -> list[Figure]:
        """Nothing: memory is measured."""
        return []

    def _graph(self, component: str, entry: str) -> formats.Graph:
        for graph in self._graphs:
            if graph.component == component and (entry in graph.entries or (entry == formats.SCORE and graph.tokens)):
                return graph
        raise EdgewrightError(f"{self._where}: the package has no {component}.{entry}")

    # -- buffers ----------------------------------------------------------------------------------------------------

    def _bind_states(self, graph: formats.Graph, binding: Any, *, shared: bool) -> None:
        """Bind the states that are read and written in one buffer, which stays the same, or those that are swapped."""
        for name, state in graph.states.items():
            key = graph.component, name
            if state.shared != shared:
                continue
            if state.input is not None:
                binding.bind_ortvalue_input(state.input, self._states[key].value)
            if state.output is not None:
                binding.bind_ortvalue_output(state.output, (self._states if shared else self._spare)[key].value)

    def _swap_states(self, graph: formats.Graph) -> None:
        for name, state in graph.states.items():
            if state.output is not None and not state.shared:
                key = graph.component, name
                self._states[key], self._spare[key] = self._spare[key], self._states[key]

    @staticmethod
    def _bind_output(opened: _Open, name: str, shape: tuple[int, ...], dtype: str) -> None:
        """Bind memory for an output; that of the last call stays, where it has the shape."""
        if name not in opened.outputs or opened.outputs[name].array.shape != shape:
            opened.outputs.pop(name, None)
            opened.outputs[name] = _Buffer(shape, dtype)
            opened.binding.bind_ortvalue_output(name, opened.outputs[name].value)

    # -- loading ----------------------------------------------------------------------------------------------------

    def _opened(self, graph: formats.Graph, *, score: bool) -> _Open:
        """The graph in the form that is asked for; its other form is freed before."""
        if graph.file in self._open:
            if self._open[graph.file].score == score:
                return self._open[graph.file]
            del self._open[graph.file]
        file = self._files[graph.file] if self._plain else self._packed.get(graph.file, self._files[graph.file])
        options = self._options()
        source: str | bytes = str(file)
        if self._exact or score:
            source = edited_graph(file, exact=self._exact, score=score)
            options.add_session_config_entry(_FOLDER, str(file.parent.resolve()))
        session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        self._check(graph, session)
        self._open[graph.file] = opened = _Open(session, session.io_binding(), score)
        self._bind_states(graph, opened.binding, shared=True)
        return opened

    def _options(self) -> Any:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self._threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if self._spinning else "0")
        return options

    def _check(self, graph: formats.Graph, session: Any) -> None:
        """Compare a loaded graph with the manifest, and allocate the states that it has."""
        file = self._files[graph.file]
        inputs, outputs = ({t.name: t for t in tensors} for tensors in (session.get_inputs(), session.get_outputs()))
        masks = {made.mask or "" for made in (graph.cache, graph.images) if made is not None}
        wanted = {*graph.inputs.values(), *(state.input or "" for state in graph.states.values()), *masks} - {""}
        given = {*graph.outputs.values(), *(state.output or "" for state in graph.states.values())} - {""}
        if wanted != set(inputs) or not given <= set(outputs):
            differing = sorted((wanted ^ set(inputs)) | (given - set(outputs)))
            raise EdgewrightError(f"{file}: {', '.join(differing)} are not as in {MANIFEST}")
        for name, state in graph.states.items():
            shape, key = state.shape, (graph.component, name)
            found = [tensors[at] for at, tensors in ((state.input, inputs), (state.output, outputs)) if at is not None]
            for tensor in found:
                fits = len(tensor.shape) == len(shape) and tensor.type in _TYPES
                if not fits or any(isinstance(h, int) and h != w for h, w in zip(tensor.shape, shape, strict=True)):
                    raise EdgewrightError(
                        f"{file}: {tensor.name} is {tensor.type} {tensor.shape}, not as in {MANIFEST}"
                    )
            swapped = state.output is not None and not state.shared
            for buffers in (self._states, self._spare) if swapped else (self._states,):
                if key not in buffers:
                    buffers[key] = _Buffer(shape, _TYPES[found[0].type])


def _digest(outputs: Arrays) -> str:
    digest = hashlib.sha256()
    for name in sorted(outputs):
        digest.update(np.ascontiguousarray(outputs[name]).data)
    return digest.hexdigest()


def _saturates() -> bool:
    """Whether this processor sums products of bytes in 16 bits."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        return not re.search(r"\b(avx512_vnni|avx_vnni)\b", _CPU.read_text())
    except OSError:
        return False  # where nothing tells, a validation's figures do


def _fits(graph: formats.Graph, component: interface.Component) -> bool:
    """Whether a graph's ports and states are those of its entries."""
    entries = {entry.name: entry for entry in component.entries}
    states = {state.name: state.shape for state in component.states}
    asked = {graph.cache.positions} if graph.cache is not None else set()
    shown = {graph.images.port} if graph.images is not None else set()
    return (
        {*graph.entries} <= set(entries)
        and {*graph.states} <= set(states)
        and all(state.input or state.output for state in graph.states.values())
        and all(_as_wide(state.shape, states[name]) for name, state in graph.states.items())
        and shown <= {*graph.inputs}
        and all({*graph.inputs} | asked <= {port.name for port in entries[name].inputs} for name in graph.entries)
        and all({*graph.outputs} == {port.name for port in entries[name].outputs} for name in graph.entries)
    )


def _as_wide(shape: tuple[int, ...], port: tuple[int | str, ...]) -> bool:
    """Whether a state's shape in a graph is its port's, but for a last dimension that may be larger."""
    *before, last = port
    return [*shape[:-1]] == before and isinstance(last, int) and shape[-1:] >= (last,)


def _total(cache: formats.Cache, positions: NDArray[np.int64]) -> int:
    """The length of the sequence after a call; EdgewrightError where the cache has no such positions."""
    past, count = int(positions[0, 0]), int(positions.shape[1])
    if (positions != np.arange(past, past + count)).any():
        raise EdgewrightError(f"{cache.positions} do not count on by one from {past}")
    if past < 0 or past + count > cache.most:
        raise EdgewrightError(f"{count} tokens after {past} do not fit the context of {cache.most}")
    return past + count


def _filled(values: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """Up to a shape with zeros behind."""
    return np.pad(values, [(0, size - own) for size, own in zip(shape, values.shape, strict=True)])


SESSION = OnnxSession
