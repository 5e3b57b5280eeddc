"""A recipe schema over made-up targets and methods: `recipes/` knows none of the real ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from recipes.load import load
from recipes.schema import Recipe, recipe_model

MINIMAL = """\
name: small
checkpoint: {path: weights}
quantize:
  rules:
    - {match: "*", bits: 4}
context: {max_tokens: 512}
targets:
  phone: {}
"""


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PhoneOptions(_Options):
    kv_bits: int = 16


class RoundOptions(_Options):
    pass


class LearnedOptions(_Options):
    damping: float = 0.01


@pytest.fixture(scope="session")
def model() -> type[Recipe]:
    return recipe_model(
        {"phone": PhoneOptions, "watch": _Options},
        {"rtn": RoundOptions, "learned": LearnedOptions},
        ["android-4gb", "iphone-12"],
    )


@pytest.fixture
def read(model: type[Recipe], tmp_path: Path) -> Callable[[str | bytes], Recipe]:
    """Write the text to recipe.yaml and load it."""

    def read(text: str | bytes) -> Recipe:
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return load(path, model)

    return read
