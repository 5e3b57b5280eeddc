"""ONNX packages in plain onnxruntime: IO binding, and one buffer per cache tensor that is past and present at once.

What lives here: sessions, bindings, and the two edits of the graph that a test needs, made in memory. What must not:
anything that writes into the artifact.

The edits, on the graph alone (the weights stay in their file, which onnxruntime maps):

- exact: ``accuracy_level`` 0 on every MatMulNBits, so that activations are not rounded to int8, and float32 caches
  where they are quantized;
- all positions: the Gather ``last_position`` before the head is bypassed.

An edited graph is given as bytes; ``session.model_external_initializers_file_folder_path`` tells where its weights are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from artifacts import MANIFEST, EdgewrightError
from artifacts.manifest import payload_file

from . import Ids, Logits

LAST_POSITION = "last_position"
_PAST, _PRESENT = "past_key_values.", "present."
_TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
}


class Settings(BaseModel):
    """What ``runtime`` of an ONNX package's manifest must hold; other keys are for other readers."""

    model_config = ConfigDict(frozen=True)

    model: str
    max_tokens: int = Field(gt=0)
    vocab_size: int = Field(gt=0)
    layers: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    logits: Literal["last", "all"]


class OnnxRunner:
    """One session at a time, so that a large model is never in memory twice; the cache belongs to the runner."""

    def __init__(self, artifact: Path, runtime: Mapping[str, JsonValue]) -> None:
        try:
            self._settings = Settings.model_validate(dict(runtime))
        except ValidationError as error:
            raise EdgewrightError(f"{artifact / MANIFEST}: runtime: {error}") from error
        self._model = payload_file(artifact, self._settings.model)
        self._exact, self._threads, self._spinning = False, 2, False
        self._opened: Literal["last", "all"] | None = None
        self._session: Any = None
        self._binding: Any = None
        self._cache: dict[str, Any] = {}
        self._logits: NDArray[np.float32] | None = None
        self._length = 0

    def load(self, *, exact: bool = False, threads: int = 2, spinning: bool = False) -> None:
        """Open the package. ``spinning``: idle threads keep their core, which pays only where nothing else runs."""
        if exact != self._exact:
            self._cache = {}  # it may be of another type
        self._exact, self._threads, self._spinning = exact, threads, spinning
        self._opened = None
        self._open(self._settings.logits)

    def logits(self, ids: Ids) -> Logits:
        """[S, V] of one prefill from an empty cache; opens the graph again where it gives the last position only."""
        self._open("all")
        self._length = 0
        return self._run(ids)

    def prefill(self, ids: Ids) -> Logits:
        """[V] of the last position, from an empty cache, with the graph as it ships."""
        self._open(self._settings.logits)
        self._length = 0
        row: Logits = self._run(ids)[-1]
        return row

    def decode(self, token: int) -> Logits:
        """[V] after one more token."""
        row: Logits = self._run(np.array([token], np.int64))[-1]
        return row

    def _open(self, wanted: Literal["last", "all"]) -> None:
        if self._opened == wanted:
            return
        self._opened = self._binding = self._session = None  # one session is freed before the next is made
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self._threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if self._spinning else "0")
        source: str | bytes = str(self._model)
        bypass = wanted != self._settings.logits
        if self._exact or bypass:
            source = edited_graph(self._model, exact=self._exact, all_positions=bypass)
            folder = str(self._model.parent.resolve())
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        self._cache = self._cache or self._allocate()
        self._binding = self._session.io_binding()
        for name, value in self._cache.items():
            self._binding.bind_ortvalue_input(_PAST + name, value)
            self._binding.bind_ortvalue_output(_PRESENT + name, value)
        self._takes_positions = any(tensor.name == "position_ids" for tensor in self._session.get_inputs())
        self._logits, self._length, self._opened = None, 0, wanted

    def _allocate(self) -> dict[str, Any]:
        """The cache, written to its end: what a full context would hold, not the part that a short test touches."""
        settings = self._settings
        inputs = [tensor for tensor in self._session.get_inputs() if tensor.name.startswith(_PAST)]
        if len(inputs) != 2 * settings.layers:
            raise EdgewrightError(f"{self._model}: {len(inputs)} cache inputs, {settings.layers} layers need two each")
        cache = {}
        for tensor in inputs:
            known = [tensor.shape[1], *tensor.shape[3:]] == [settings.kv_heads, settings.head_dim]
            if tensor.type not in _TYPES or not known:
                raise EdgewrightError(
                    f"{self._model}: {tensor.name} is {tensor.type} {tensor.shape}, not as in {MANIFEST}"
                )
            buffer = np.empty((1, settings.kv_heads, settings.max_tokens, settings.head_dim), _TYPES[tensor.type])
            buffer.fill(0)
            cache[tensor.name.removeprefix(_PAST)] = ort.OrtValue.ortvalue_from_numpy(buffer)
        return cache

    def _run(self, ids: Ids) -> Logits:
        """[S, V] of the new tokens, or [1, V] where the graph gives the last position only; the caller's."""
        past, count = self._length, len(ids)
        total = past + count
        if count == 0 or total > self._settings.max_tokens:
            raise EdgewrightError(f"{count} tokens after {past} do not fit the context of {self._settings.max_tokens}")
        feeds = {
            "input_ids": np.ascontiguousarray(ids, np.int64)[None],
            "attention_mask": np.ones((1, total), np.int64),
        }
        if self._takes_positions:
            feeds["position_ids"] = np.arange(past, total, dtype=np.int64)[None]
        values = {
            name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()
        }  # these are not copies
        for name, value in values.items():
            self._binding.bind_ortvalue_input(name, value)
        rows = count if self._opened == "all" else 1
        if self._logits is None or len(self._logits) != rows:
            self._logits = np.empty((rows, self._settings.vocab_size), np.float32)
            bound = ort.OrtValue.ortvalue_from_numpy(self._logits[None])
            self._binding.bind_ortvalue_output("logits", bound)
        self._session.run_with_iobinding(self._binding)
        self._length = total
        if rows == 1:  # keep the small buffer bound, decoding uses it again
            return self._logits.copy()
        result, self._logits = self._logits, None
        return result


def edited_graph(path: Path, *, exact: bool, all_positions: bool) -> bytes:
    """The graph of ``path`` with the edits that this module describes, serialized; its external data is not read."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    graph = model.graph
    if exact:
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type == "MatMulNBits" and attribute.name == "accuracy_level":
                    attribute.i = 0
        _unquantize_caches(graph)
    if all_positions:
        gather = next((node for node in graph.node if node.name == LAST_POSITION), None)
        if gather is None:
            raise EdgewrightError(
                f"{path}: no node {LAST_POSITION!r}, though the manifest says that logits are the last's"
            )
        for node in graph.node:
            node.input[:] = [gather.input[0] if name == gather.output[0] else name for name in node.input]
        graph.node.remove(gather)
        for output in graph.output:
            if output.name == "logits":
                output.type.tensor_type.shape.dim[1].dim_param = "seq"
    return bytes(model.SerializeToString())


def _unquantize_caches(graph: Any) -> None:
    """Float32 keys and values in every GroupQueryAttention: no scales (its inputs from 12 on), no cache types."""
    for node in graph.node:
        if node.op_type == "GroupQueryAttention":
            kept = [a for a in node.attribute if a.name not in ("k_quant_type", "v_quant_type", "kv_cache_bit_width")]
            if len(kept) < len(node.attribute):
                del node.attribute[:], node.input[9:]
                node.attribute.extend(kept)
    for tensor in [*graph.input, *graph.output]:
        if tensor.name.startswith((_PAST, _PRESENT)):
            tensor.type.tensor_type.elem_type = 1  # TensorProto.FLOAT


RUNNER = OnnxRunner
