"""Adopting what projects publish: pickles in, a checkpoint folder out that the compiler reads as any other.

What lives here: which files become which parts of one model.safetensors, and the checks of the whole. What must not:
names of any project (`published/`, one file each), arithmetic of norms (`folding.py`), pickles (`pickles.py`).
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from artifacts import EdgewrightError, Progress
from artifacts.store import new_folder
from compiler.adopt.shapes import Shapes
from compiler.checkpoint import listed
from compiler.licence import licence_in
from compiler.models.base import Model, read_model
from compiler.tensors import CheckpointError

if TYPE_CHECKING:
    import torch

    from compiler.adopt.pickles import StateDict


class Published(Protocol):
    """A file of `published/`, named as the family is.

    BATCH_NORMS: see `folding.Pairs`. UNUSED: patterns of tensors that the model never reads. PARTS: prefixes in
    model.safetensors with what stands behind them; REQUIRED: those that must be given. CONFIG: config.json where no
    part says otherwise.
    """

    BATCH_NORMS: tuple[tuple[str, str], ...]
    UNUSED: tuple[str, ...]
    PARTS: Mapping[str, str]
    REQUIRED: tuple[str, ...]
    CONFIG: Mapping[str, Any]

    def transformed(self, path: Path, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A state dict whose norms are folded, with what else of it is folded. path: for errors. Raises
        CheckpointError."""

    def recognized(self, shapes: Shapes) -> tuple[str, dict[str, Any]] | None:
        """The prefix of a folded state dict, and what its shapes say for config.json; None where it is no part.
        Raises CheckpointError for a variant that is not supported."""


@dataclass(frozen=True)
class Adopted:
    """What `adopt` wrote. files: sha256 by name of what was read; folded: norms by kind; unused: tensors that the model
    never reads, in few words, which stay in the checkpoint and get into no package; licence: as given, None where
    nobody said."""

    folder: Path
    family: str
    components: tuple[str, ...]
    parameters: int
    files: Mapping[str, str]
    folded: Mapping[str, int]
    unused: str
    licence: str | None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "folder": str(self.folder)}


def families() -> list[str]:
    """The families that can be adopted."""
    return [module.name for module in pkgutil.iter_modules(importlib.import_module(f"{__name__}.published").__path__)]


def adopt(files: Sequence[Path], family: str, out: Path, licence: str | None, progress: Progress) -> Adopted:
    """Write the state dicts of `files` as one checkpoint folder, norms folded, with what was read on record.

    licence: its SPDX identifier as the Hub spells it. Raises EdgewrightError: a file that is no pickle or holds code,
    tensors that are missing, of another shape or of no part of the family, a folder that is there already.
    """
    if licence is not None and licence_in({"license": licence}) is None:
        raise EdgewrightError(f"--license: {licence!r:.80} is no identifier, such as apache-2.0 or cc-by-nc-4.0")
    with new_folder(out) as folder:
        return _adopted(files, family, folder, out, licence, progress)


def _adopted(
    files: Sequence[Path], family: str, folder: Path, out: Path, licence: str | None, progress: Progress
) -> Adopted:
    """folder: the empty one that becomes `out`."""
    from compiler.adopt.folding import fold
    from compiler.adopt.pickles import read_pickle

    module: Any = importlib.import_module(f"{__name__}.published.{family}")
    published: Published = module
    config: dict[str, Any] = {"model_type": family, **published.CONFIG}
    tensors: dict[str, torch.Tensor] = {}
    read: dict[str, StateDict] = {}
    counted: Counter[str] = Counter()
    unused: dict[str, torch.Tensor] = {}
    for at, path in enumerate(files):
        progress("reading", at, len(files))
        given = read_pickle(path)
        beside = [name for name in given.tensors if any(fnmatchcase(name, pattern) for pattern in published.UNUSED)]
        used = {name: tensor for name, tensor in given.tensors.items() if name not in beside}
        folded, kinds = fold(path, used, published.BATCH_NORMS)
        folded = published.transformed(path, folded)
        shapes = Shapes(path, {name: tuple(tensor.shape) for name, tensor in folded.items()})
        found = published.recognized(shapes)
        if found is None:
            raise CheckpointError(
                f"{path}: holds none of {', '.join(published.PARTS.values())}, but {listed(folded)}; --family "
                f"{family} cannot take it"
            )
        prefix, said = found
        if prefix in read:
            raise CheckpointError(f"{path}: is {published.PARTS[prefix]}, and so is {read[prefix].path}; give one")
        read[prefix] = given
        config |= said
        counted += kinds
        unused |= {prefix + name: given.tensors[name] for name in beside}
        tensors |= {prefix + name: tensor for name, tensor in folded.items()}
    if missing := [published.PARTS[prefix] for prefix in published.REQUIRED if prefix not in read]:
        raise CheckpointError(f"--family {family} needs the file of {missing[0]} too")
    origin = {given.path.name: given.sha256 for given in read.values()}
    config |= {"license": licence, "adopted": [{"file": name, "sha256": digest} for name, digest in origin.items()]}
    model = read_model(config, tensors, 2)
    _check(model, tensors, read)
    progress("writing", 0, 1)
    _write(folder, config, {**tensors, **unused}, origin)
    progress("writing", 1, 1)
    return Adopted(
        folder=out,
        family=family,
        components=tuple(component.name for component in model.components),
        parameters=sum(slot.rows * slot.columns for slot in model.slots),
        files=origin,
        folded=dict(counted),
        unused=listed(unused),
        licence=licence,
    )


def _check(model: Model, tensors: Mapping[str, torch.Tensor], read: Mapping[str, StateDict]) -> None:
    """That the tensors are those which the model reads, in their shapes. Raises CheckpointError naming the first."""

    def published(name: str) -> tuple[Path | str, str]:
        prefix = next((prefix for prefix in read if name.startswith(prefix)), "")
        return (read[prefix].path if prefix in read else "the files"), name.removeprefix(prefix)

    for slot in model.slots:
        path, name = published(slot.tensor)
        if slot.tensor not in tensors:
            raise CheckpointError(f"{path}: tensor {name!r} is missing")
        shape = tuple(tensors[slot.tensor].shape)
        if shape != slot.shape:
            raise CheckpointError(
                f"{path}: tensor {name!r} has shape {list(shape)}; beside the others it must be {list(slot.shape)}"
            )
    known = {slot.tensor for slot in model.slots}
    for tensor in tensors:
        if tensor not in known:
            path, name = published(tensor)
            raise CheckpointError(f"{path}: tensor {name!r} is none of this family's; is it another variant?")


def _write(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], origin: Mapping[str, str]
) -> None:
    from safetensors.torch import save_file

    own: dict[int, str] = {}  # tensors may share their memory, which a safetensors file cannot
    apart = {
        name: tensor.contiguous()
        if own.setdefault(tensor.untyped_storage().data_ptr(), name) == name
        else tensor.clone()
        for name, tensor in tensors.items()
    }
    save_file(apart, folder / "model.safetensors")
    (folder / "model.safetensors").chmod(0o644)  # as all else; safetensors gives it to its owner alone
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    licence = config["license"]
    front = f"---\nlicense: {licence}\n---\n" if licence else ""
    rows = "".join(f"| `{' '.join(name.split())}` | `{digest}` |\n" for name, digest in origin.items())
    (folder / "README.md").write_text(
        f"{front}# {config['model_type']}\n\nAdopted by Edgewright, norms folded into the weights, from:\n\n"
        f"| file | sha256 |\n|---|---|\n{rows}\n"
        + ("" if licence else "The licence of these weights was not stated.\n"),
        encoding="utf-8",
    )
