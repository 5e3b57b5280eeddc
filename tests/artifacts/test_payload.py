"""What goes into an app, from a manifest that may lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from artifacts import EdgewrightError, Manifest, read_manifest
from artifacts.payload import app_bytes


def manifest(artifact: Path, payload: Any) -> Manifest:
    return read_manifest(artifact).model_copy(update={"runtime": {"payload": payload}})


def test_sizes_by_platform_are_those_of_the_listed_files(artifact: Path) -> None:
    sizes = {entry.path: entry.size for entry in read_manifest(artifact).files}
    both = ["model.onnx", "weights/model.onnx.data"]
    found = app_bytes(artifact, manifest(artifact, {"android": both, "ios": ["model.onnx", "model.onnx"]}))
    assert found == {"android": sizes["model.onnx"] + sizes["weights/model.onnx.data"], "ios": sizes["model.onnx"]}
    assert app_bytes(artifact, manifest(artifact, {})) == {}


def test_a_manifest_may_not_say(artifact: Path) -> None:
    assert app_bytes(artifact, read_manifest(artifact).model_copy(update={"runtime": {}})) is None


@pytest.mark.parametrize("payload", [["model.onnx"], {"ios": "model.onnx"}, {"ios": [1]}, "ios", 3])
def test_another_shape_is_named(artifact: Path, payload: Any) -> None:
    with pytest.raises(EdgewrightError, match=r"edgewright\.json: runtime\.payload must list files by platform"):
        app_bytes(artifact, manifest(artifact, payload))


def test_a_file_that_is_not_there_is_named(artifact: Path) -> None:
    with pytest.raises(EdgewrightError, match=r"runtime\.payload\.ios names '\.\./secret', which is no file"):
        app_bytes(artifact, manifest(artifact, {"ios": ["model.onnx", "../secret"]}))
