"""Opening a saved .mlpackage: its manifest, its model file, its weight files. Every path stays inside the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runtime_tests.mil import PackageError
from runtime_tests.mil.blob import BlobFile

_WEIGHTS = "@model_path/"
_REBUILD = "build or fetch it again"


class Package:
    """A package's model specification (`spec`, an ML Program) and its weight files, opened when first used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model_file = _model_file(path)
        self.spec = _parse(self.model_file)
        self._blobs: dict[str, BlobFile] = {}
        if self.spec.WhichOneof("Type") != "mlProgram":
            raise PackageError(f"{path}: a {self.spec.WhichOneof('Type') or 'model without type'}, not an ML Program")

    @property
    def functions(self) -> list[str]:
        return list(self.spec.mlProgram.functions)

    def description(self, function: str) -> Any:
        """Inputs, outputs and states of a function, as the package describes them to an app.

        Raises PackageError when description and program name different functions.
        """
        described = self.spec.description
        if not described.functions:
            return described
        for item in described.functions:
            if item.name == function:
                return item
        raise PackageError(f"{self.path}: the program has a function {function!r} that its description lacks")

    def blob(self, name: str) -> BlobFile:
        """A weight file by its name in the program (`@model_path/weights/weight.bin`)."""
        if name not in self._blobs:
            parts = name.removeprefix(_WEIGHTS).split("/")
            file = self.model_file.parent.joinpath(*parts)
            if not name.startswith(_WEIGHTS) or any(part in ("", ".", "..") for part in parts) or not file.is_file():
                raise PackageError(f"{self.path}: the program refers to {name!r}, no file of the package; {_REBUILD}")
            self._blobs[name] = BlobFile(file)
        return self._blobs[name]


def _model_file(path: Path) -> Path:
    manifest = path / "Manifest.json"
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        item = content["itemInfoEntries"][content["rootModelIdentifier"]]
        parts = str(item["path"]).split("/")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise PackageError(f"{manifest}: not the manifest of an .mlpackage ({error!r}); {_REBUILD}") from error
    file = path.joinpath("Data", *parts)
    if any(part in ("", ".", "..") for part in parts) or not file.is_file():
        raise PackageError(f"{manifest}: names {'/'.join(parts)!r} as the model, no file of the package; {_REBUILD}")
    return file


def _parse(file: Path) -> Any:
    from coremltools.proto import Model_pb2
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # publishes no types

    spec = Model_pb2.Model()
    try:
        spec.ParseFromString(file.read_bytes())
    except DecodeError as error:
        raise PackageError(f"{file}: not a Core ML model ({error}); {_REBUILD}") from error
    return spec
