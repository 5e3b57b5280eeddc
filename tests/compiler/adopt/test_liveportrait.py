"""Adopting LivePortrait: five files as they are published, three dicts in one of them; and files that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts import EdgewrightError, silent
from compiler import dialect
from compiler.adopt import adopt
from compiler.adopt.pickles import read_pickle
from compiler.models.base import read_model
from tests.compiler import portrait
from tests.compiler.conftest import original


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("published")
    return {path.stem: path for path in portrait.save(folder, portrait.small())}


def take(files: dict[str, Path], out: Path) -> Any:
    return adopt(list(files.values()), "liveportrait", out, "mit", silent)


# how far keypoints are from each other: a little, as they come, and beyond the volume on every side
FAR = {"warping.warp": (0.05, 1.0, 40.0)}


def test_the_folder_computes_what_the_trained_modules_do(files: dict[str, Path], tmp_path: Path) -> None:
    """With batch norms and spectral norms folded, each keypoint's volume and the last one sampled."""
    found = take(files, tmp_path / "adopted")
    assert found.components == ("appearance", "motion", "retargeting", "warping", "generator")
    assert found.folded == {"batch norm": 14, "spectral norm": 18} and found.unused == "" and found.licence == "mit"
    config = json.loads((found.folder / "config.json").read_text())
    assert config["license"] == "mit" and len(config["adopted"]) == 5
    (found.folder / "config.json").write_text(json.dumps(config | {"size": portrait.SMALL["size"]}))
    model, weights = original(found.folder)
    assert model.geometry == read_model({"model_type": "liveportrait", **portrait.SMALL}, None, 2).geometry
    modules, generator = portrait.small(), torch.Generator().manual_seed(7)
    for component in model.components:
        for entry in component.entries:
            for far in FAR.get(f"{component.name}.{entry.name}", (1.0,)):
                inputs = [
                    torch.randn(port.sized({}), generator=generator)
                    * (far if port.name in ("source", "driving") else 1)
                    for port in entry.inputs
                ]
                with torch.no_grad(), dialect.weights(weights):
                    results = component.module(entry, {})(*inputs)
                    expected = (modules.get(component.name) or modules[entry.name])(*inputs)
                expected = expected if isinstance(expected, tuple) else (expected,)
                for one, other in zip(results, expected, strict=True):
                    assert float((one - other).abs().max() / other.abs().max()) < 1e-5, (entry.name, far)


def _changed(files: dict[str, Path], name: str, folder: Path, **changes: Any) -> dict[str, Path]:
    """The files, one of them with other tensors; None: without it."""
    state = read_pickle(files[name]).tensors | {key.replace("__", "."): value for key, value in changes.items()}
    torch.save({key: tensor for key, tensor in state.items() if tensor is not None}, folder / files[name].name)
    return files | {name: folder / files[name].name}


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "missing": (
        "warping_module",
        {"dense_motion_network__mask__bias": None},
        r"warping_module\.pth: tensor 'dense_motion_network\.mask\.bias' is missing",
    ),
    "no map of occlusion": (
        "warping_module",
        {"dense_motion_network__occlusion__weight": None},
        r"warping_module\.pth: has no dense_motion_network\.occlusion; without a map of occlusion it is not supported",
    ),
    "another width": (
        "warping_module",
        {"fourth__weight": torch.ones(32, 31, 1, 1)},
        r"warping_module\.pth: tensor 'fourth\.weight' has shape \[32, 31, 1, 1\]; beside the others it must be",
    ),
    "half of a spectral norm": (
        "spade_generator",
        {"up_1__conv_0__weight_v": None},
        r"spade_generator\.pth: tensor 'up_1\.conv_0\.weight_v' is missing",
    ),
    "another variant": (
        "motion_extractor",
        {"detector__fc_jaw__weight": torch.ones(3, 32)},
        r"motion_extractor\.pth: tensor 'detector\.fc_jaw\.weight' is none of this family's; is it another variant",
    ),
    "other keypoints": (
        "motion_extractor",
        {"detector__fc_kp__weight": torch.ones(72, 32)},
        r"config\.json: warping_module_params\.num_kp must be a whole number from 24 to 24, not 5",
    ),
    "not finite": (
        "appearance_feature_extractor",
        {"second__bias": torch.full((16,), torch.nan)},
        r"appearance_feature_extractor\.pth: tensor 'second\.bias' has NaN or infinite values",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_by_name(files: dict[str, Path], tmp_path: Path, name: str) -> None:
    file, changes, message = REFUSED[name]
    with pytest.raises(EdgewrightError, match=message):
        take(_changed(files, file, tmp_path, **changes), tmp_path / "adopted")
    assert not (tmp_path / "adopted").exists()


def test_files_that_are_missing_or_none_of_it_are_named(files: dict[str, Path], tmp_path: Path) -> None:
    without = {name: path for name, path in files.items() if name != "stitching_retargeting_module"}
    with pytest.raises(EdgewrightError, match="needs the file of the stitching and retargeting modules too"):
        take(without, tmp_path / "adopted")
    (tmp_path / "landmark.onnx").write_bytes(b"\x08\x07")
    with pytest.raises(
        EdgewrightError, match=r"landmark\.onnx: is an ONNX file, .*InsightFace's are for non-commercial"
    ):
        take(files | {"landmark": tmp_path / "landmark.onnx"}, tmp_path / "adopted")


def test_dicts_of_one_file_keep_their_names_and_lose_their_wrapper(files: dict[str, Path], tmp_path: Path) -> None:
    found = read_pickle(files["stitching_retargeting_module"]).tensors
    assert {name.split(".")[0] for name in found} == {"retarget_shoulder", "retarget_mouth", "retarget_eye"}
    assert all(name.split(".")[1] == "mlp" for name in found)
    torch.save({"a": {"b": {"c": torch.ones(1)}}}, tmp_path / "deep.pth")
    with pytest.raises(EdgewrightError, match=r"deep\.pth: 'b' is no tensor"):
        read_pickle(tmp_path / "deep.pth")
