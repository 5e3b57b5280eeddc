"""The .mlpackage around a bound program: one model of several functions, what it says of itself, and its folder.

Writes the two files and the manifest itself; coremltools' own route would copy the weights, and carry over an
`executorch_debug_handle_mapping.json` that describes another program.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_NAMESPACE = uuid.UUID("6f0c2a54-5d0e-5a57-9f5e-0d6d1f3f6a11")
MODEL = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


def merge_functions(specs: Mapping[str, Any], default: str) -> Any:
    """One spec with several functions, from specs with one function `main` each; a single one keeps that name.

    Source: `Model.proto` (ModelDescription.functions, defaultFunctionName; specification version 9, iOS 18).
    """
    from coremltools import proto

    if len(specs) == 1:
        return next(iter(specs.values()))
    merged = proto.Model_pb2.Model()
    merged.CopyFrom(specs[default])
    description = merged.description
    for name in ("input", "output", "state"):
        description.ClearField(name)
    description.defaultFunctionName = default
    del merged.mlProgram.functions["main"]
    for name, spec in specs.items():
        merged.mlProgram.functions[name].CopyFrom(spec.mlProgram.functions["main"])
        source = spec.description
        description.functions.add(name=name, input=source.input, output=source.output, state=source.state)
    return merged


def describe(spec: Any, features: Mapping[str, str], metadata: Mapping[str, str], user: Mapping[str, str]) -> None:
    """Set the descriptions of features by name (caches by their prefix) and the model's metadata.

    metadata: shortDescription, author, license, versionString. user: further key-value pairs.
    """
    owners = list(spec.description.functions) or [spec.description]
    for owner in owners:
        for feature in (*owner.input, *owner.output, *owner.state):
            known = features.get(feature.name) or features.get(feature.name.split("_cache_")[0] + "_cache", "")
            feature.shortDescription = known
    for key, value in metadata.items():
        setattr(spec.description.metadata, key, value)
    pairs = spec.description.metadata.userDefined
    for key in list(pairs):
        if key.endswith("conversion_date"):  # the same input gives the same bytes
            del pairs[key]
    for key, value in user.items():
        pairs[key] = value


def write_package(folder: Path, spec: Any) -> None:
    """Write the model and the manifest; the weight file is already in its place."""
    (folder / MODEL).write_bytes(spec.SerializeToString(deterministic=True))
    items = {
        "model": ("CoreML Model Specification", "model.mlmodel", "com.apple.CoreML/model.mlmodel"),
        "weights": ("CoreML Model Weights", "weights", "com.apple.CoreML/weights"),
    }
    ids = {name: str(uuid.uuid5(_NAMESPACE, name)).upper() for name in items}
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {
            ids[name]: {"author": "com.apple.CoreML", "description": text, "name": file, "path": path}
            for name, (text, file, path) in items.items()
        },
        "rootModelIdentifier": ids["model"],
    }
    # in the order of Apple's package library, which writes the file anew whenever coremltools opens a package
    text = json.dumps(manifest, indent=4, sort_keys=True) + "\n"
    (folder / "Manifest.json").write_text(text, encoding="utf-8")
