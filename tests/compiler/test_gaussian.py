"""The family gaussian: its sizes beside what it is made of, what its config may say, and what an app is told."""

from __future__ import annotations

import math
from typing import Any

import pytest

from compiler.models.base import Model, read_model
from compiler.tensors import CheckpointError


def model_of(**config: Any) -> Model:
    return read_model({"model_type": "gaussian", **config}, None, 2)


def test_a_published_avatar_is_small_without_who_it_is() -> None:
    """20,018 points, filled up to 20,032. With all the shapes that a head can have they are 106.7 MB of float32."""
    (component,) = model_of().components
    animate = component.entries[0]
    assert [(port.name, port.shape) for port in animate.inputs] == [
        ("expression", (1, 52)),
        *((name, (1, 3)) for name in ("rotation", "neck", "jaw")),
        ("eyes", (1, 6)),
        ("translation", (1, 3)),
    ]
    assert animate.outputs[0].shape == (1, 20032, 3)
    frame = sum(math.prod(slot.shape) for slot in component.slots if slot.name != "attributes")
    assert frame == 20032 * (3 * 64 + 3 + 5) + 15 * 64 + 15 < 106.7e6 / 4 / 6


def test_an_app_is_told_what_weights_and_attributes_are() -> None:
    constants = model_of(points=64).constants
    names, attributes = constants["blendshapes"], constants["attributes"]
    assert isinstance(names, list) and isinstance(attributes, list)
    assert (len(names), names[24], attributes[7], constants["points"]) == (52, "jawOpen", "opacity", 64)


@pytest.mark.parametrize("points", [70, 0, "many"])
def test_points_that_fill_no_groups_are_refused(points: Any) -> None:
    with pytest.raises(CheckpointError, match=r"^config\.json: points must be a (multiple of 32|whole number from 32)"):
        model_of(points=points)
