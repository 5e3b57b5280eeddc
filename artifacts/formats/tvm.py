"""What the TVM target and its session agree on: the `runtime` section of the manifest, and the parameter file.

The parameter file holds every tensor of the model, aligned, for mapping into memory as it is. Its layout, little-endian
(`compiler/targets/tvm/native/edgewright.cc` reads the same):

    0   magic  8 bytes  "EDGEPAR1"
    8   u32 tensors, u32 bytes of names
    16  sha256 of everything after the header, 32 bytes: the digest that the library repeats
    48  zeros to 64
    64  a record of 64 bytes per tensor: u64 offset in file, u64 bytes, u32 kind, u32 dimensions, u64 shape[4], u64 0
        then the names in order, each ended by a zero byte; then zeros to a page
        then the tensors, each at a multiple of 64 bytes

Kinds: see `KINDS`. The order of tensors is the order in which the library's functions take them.
"""

from __future__ import annotations

import struct
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from artifacts.formats.interface import Count, Name

MAGIC = b"EDGEPAR1"
KINDS = ("uint8", "float16", "float32", "uint16")
ALIGN = 64
PAGE = 16384
HEADER = struct.Struct("<8sII32s16x")
RECORD = struct.Struct("<QQIIQQQQQ")
DIGEST_AT = 16
DIMENSIONS = 4

HOST = "host"
# the library's function () -> JSON with at least `params_digest`: the parameters that it was compiled for
DESCRIBE = "describe"
# an entry whose outputs are of all tokens; where it is not shipped, it takes what `SCORED` takes
SCORE, SCORED = "score", "prefill"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Library(_Strict):
    """One library, for a triple or for `HOST`; `features` is what /proc/cpuinfo has to list."""

    triple: str
    variant: str
    path: str
    features: tuple[str, ...]


class Function(_Strict):
    """An entry as a library has it, as shipped and with float32 activations (exact), under these names.

    It takes the entry's inputs, then the component's states that are not in place, then one tuple: the states that are,
    and every tensor of the parameter file. It gives the entry's outputs, and after them (unless the entry leaves its
    states as they were) the states that are not in place; a single tensor comes without a tuple.
    """

    component: Name
    entry: Name
    name: str
    exact: str


class State(_Strict):
    """A state as the functions take it. in_place: they write it where it lies, in a layout of the kernels' own."""

    component: Name
    name: Name
    dtype: Literal["float32", "int64", "int32", "uint8"]
    shape: tuple[Count, ...]
    in_place: bool


class TvmRuntime(_Strict):
    """The `runtime` section of a TVM package's manifest.

    libraries: the best of a triple first. states: of each component in the order in which functions take them.
    tvm: the version whose runtime loads the libraries. payload: what an app ships on each platform.
    """

    params: str
    params_digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    libraries: tuple[Library, ...]
    functions: tuple[Function, ...] = Field(min_length=1)
    states: tuple[State, ...]
    tvm: str
    payload: dict[str, tuple[str, ...]]
