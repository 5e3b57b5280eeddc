"""A PyTorch pickle as a plain state dict: the one place where a pickle is read, and only for its tensors.

`torch.load(weights_only=True)` runs nothing that a file names. What must not live here: what a state dict means.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts import EdgewrightError
from artifacts.documents import open_regular, read_bytes
from artifacts.manifest import sha256_file
from compiler.tensors import CheckpointError

if TYPE_CHECKING:
    import torch

_NESTS = ("model", "state_dict")
_WRAPPER = "module."  # of DataParallel
_REFUSED = re.compile(r"GLOBAL ([\w.]+)")
_MOST = 1 << 24  # bytes of instructions that are looked through
# what the reader of weights alone, which is Python, raises over bytes that are no pickle
_DAMAGED = (
    *(RuntimeError, EOFError, OSError, LookupError, ValueError, TypeError, AttributeError, AssertionError),
    *(struct.error, zipfile.BadZipFile, OverflowError, StopIteration, EdgewrightError),
)


@dataclass(frozen=True)
class StateDict:
    """What a file holds. tensors: dense and on the CPU, mapped from the file where its format allows."""

    path: Path
    sha256: str
    tensors: dict[str, torch.Tensor]


def read_pickle(path: Path) -> StateDict:
    """The state dict of a .pth file: alone, or under "model" or "state_dict" beside what training left there; of
    several under names of their own, all, each tensor's name behind that of its dict.

    Names lose the prefix "module." where all of a dict have it. Raises CheckpointError for a file that is no such
    pickle, or that names anything which had to be run: by its name.
    """
    with open_regular(path) as file:
        magic = file.read(2)
    if path.suffix == ".onnx":
        raise CheckpointError(
            f"{path}: is an ONNX file, and only PyTorch pickles are read. Networks that find a face or its landmarks "
            "are no part of any family, and InsightFace's are for non-commercial research alone; leave it out"
        )
    if magic == b"\x1f\x8b":
        raise CheckpointError(f"{path}: is a gzip archive; unpack it, and give the file in it")
    state = _state(path, _loaded(path))
    if not state:
        raise CheckpointError(f"{path}: holds no tensors")
    return StateDict(path, sha256_file(path), state)


def _loaded(path: Path) -> Any:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of pickles that others wrote
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, *_DAMAGED) as error:
        said = _REFUSED.search(str(error))
        if named := said[1] if said else _foreign(path):
            raise CheckpointError(
                f"{path}: this pickle asks to run {named}, which was not done: only tensors and plain values are "
                "read. Save its state dict alone: torch.save(model.state_dict(), file)"
            ) from error
        reason = " ".join(str(error).rpartition("WeightsUnpickler error:")[2].split())[:200]
        raise CheckpointError(
            f"{path}: not a PyTorch pickle, or a damaged one ({type(error).__name__}: {reason})"
        ) from error


def _foreign(path: Path) -> str | None:
    """The first global that a pickle names and no state dict needs, by reading its instructions; none is followed.

    PyTorch's reader stops at the instructions of newer pickles before it comes to what they name.
    """
    strings: list[str] = []
    try:
        for code, argument, _ in pickletools.genops(_instructions(path)):
            if isinstance(argument, str):
                strings.append(argument)
            if code.name in ("GLOBAL", "STACK_GLOBAL"):
                module, name = strings[-1].split(" ", 1) if code.name == "GLOBAL" else strings[-2:]
                if module.partition(".")[0] not in ("torch", "collections"):
                    return f"{module}.{name}"
    except _DAMAGED:  # what no pickle is ends somewhere
        return None
    return None


def _instructions(path: Path) -> bytes:
    if not zipfile.is_zipfile(path):
        return read_bytes(path, _MOST)
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        with archive.open(name) as file:
            return file.read(_MOST)


def _state(path: Path, found: Any) -> dict[str, torch.Tensor]:
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{path}: holds a {type(found).__name__}; a state dict is expected")
    nested = next((found[key] for key in _NESTS if isinstance(found.get(key), Mapping)), found)
    if nested and all(isinstance(name, str) and isinstance(part, Mapping) for name, part in nested.items()):
        return {f"{name}.{key}": tensor for name, part in nested.items() for key, tensor in _flat(path, part).items()}
    return _flat(path, nested)


def _flat(path: Path, found: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    import torch

    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"{path}: {name!r:.80} is no tensor; a state dict is expected, alone or under 'model' or 'state_dict'"
            )
        if value.layout != torch.strided or value.is_complex() or value.is_quantized or value.device.type != "cpu":
            raise CheckpointError(f"{path}: tensor {name!r} is sparse, complex, quantized or empty; none such is read")
    state = dict(found)
    while state and all(name.startswith(_WRAPPER) for name in state):
        state = {name.removeprefix(_WRAPPER): tensor for name, tensor in state.items()}
    return state
