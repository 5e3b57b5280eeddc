"""Quantization methods, one file each: a module here that names its options model `OPTIONS` is one.

Nothing else has to know of it (`interface.py` says what else it may have). Importing one loads no framework.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from pydantic import BaseModel, ConfigDict


class NoOptions(BaseModel):
    """Options of a method that has none."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def method_options() -> dict[str, type[BaseModel]]:
    """The options model of every method, by its name in recipes."""
    modules = {module.name: load_method(module.name) for module in pkgutil.iter_modules(__path__)}
    return {name: module.OPTIONS for name, module in modules.items() if hasattr(module, "OPTIONS")}


def load_method(name: str) -> ModuleType:
    """The module of a method by its name in recipes."""
    return importlib.import_module(f"{__name__}.{name}")
