"""What the ONNX target and its session agree on: the `runtime` section of the manifest, and names inside of graphs.

A package is a set of graph files. Each says which entries it answers and under which names it takes and gives their
ports, so that a session need not know whose layout the package has.
"""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from artifacts.formats.interface import Count, Name

# the node that keeps the last position only; without it a graph gives the entry `SCORE`: outputs of all positions
LAST_POSITION = "last_position"
SCORE = "score"
# where graphs in the ORT format are, and what a build of ONNX Runtime must have to run them
ORT = "ort"
ORT_OPERATORS = f"{ORT}/required_operators_and_types.config"
# the named dimension that counts what of it is the last
TOKENS = "tokens"


# of vectors and matrices, which kernels are chosen by
_VECTORS = re.compile(r"avx|amx|fma|asimd|i8mm|bf16|sve|sme(\d|$)")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class State(_Strict):
    """A state as a graph has it: None where the graph does not read it, or leaves it as it is.

    shape: in the graph, at its largest; heads may be wider there than in the model. shared: the graph writes in place,
    so one buffer may be input and output at once.
    """

    input: str | None
    output: str | None
    shape: tuple[Count, ...]
    shared: bool


class Cache(_Strict):
    """What attention over a cache asks of a call: `positions`, a port int64 [batch, tokens], counts on by one and ends
    before `most`. mask: an input int64 [batch, positions so far] of ones, where the graph has lengths from it."""

    positions: Name
    most: int = Field(gt=0)
    mask: str | None


class Images(_Strict):
    """Tiles as transformers hands them over: `port`, [tiles, channels, height, width], goes in as [1, tiles, …], and
    beside it an input `mask`, bool [1, tiles, height, width], with a one for every pixel that is of an image."""

    port: Name
    mask: str


class Graph(_Strict):
    """One file. entries: those of the component that it answers; inputs, outputs, states: their ports by the names in
    the file; inputs that it does not read are left out.

    tokens: whether its outputs are the last token's or of all; None where entries have no `SCORE` beside them.
    images: None where every input is as its port. prepacked: the same with weights as a processor's kernels pack them,
    over the same data; None without. ort: the same in the ORT format, with its weights; None without.
    codes: tensors of the file with codes of rounded activations, by the names that `vectors.safetensors` has for them;
    one whose shape the file tells has more channels than the activation, which mean nothing, behind its own.
    """

    file: str
    component: Name
    entries: tuple[Name, ...] = Field(min_length=1)
    inputs: dict[Name, str]
    outputs: dict[Name, str]
    states: dict[Name, State]
    cache: Cache | None
    tokens: Literal["last", "all"] | None
    images: Images | None = None
    ort: str | None = None
    prepacked: str | None = None
    codes: dict[Name, str] = {}


class Packing(_Strict):
    """What weights are packed for: the recipe's word for it, and what decides how kernels pack."""

    wanted: str
    machine: str
    instructions: tuple[str, ...]
    onnxruntime: str


class CacheError(_Strict):
    """How well INT8 scales fit the keys and values of calibration text: the worst layer's signal-to-noise ratios."""

    scales: Literal["channel", "tensor"]
    worst_key_snr_db: float
    worst_value_snr_db: float


class OnnxRuntime(_Strict):
    """The `runtime` section of an ONNX package's manifest.

    payload: what an app ships, by platform. genai_tokenizer_options: what an app asks onnxruntime-genai's tokenizer
    for, so that texts begin as they have to. packing: of the graphs' `prepacked`.
    """

    graphs: tuple[Graph, ...]
    payload: dict[str, tuple[str, ...]] | None = None
    genai_tokenizer_options: dict[str, str] = {}
    kv_error: CacheError | None = None
    packing: Packing | None = None


def packing_here(wanted: str, onnxruntime: str) -> Packing:
    """For this processor: instruction sets as Linux names them, none where nothing tells them."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    listed = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    names = {name for name in (listed.group(1).split() if listed else ()) if _VECTORS.match(name)}
    return Packing(
        wanted=wanted, machine=platform.machine(), instructions=tuple(sorted(names)), onnxruntime=onnxruntime
    )
