"""Quantization: methods (one file each), the packed form they write, and the streaming of a checkpoint through them.

A method is a module here that names its options model `OPTIONS`; nothing else has to know of it. Importing one loads
no framework.
"""

from __future__ import annotations

import importlib
import pkgutil

from pydantic import BaseModel, ConfigDict


class NoOptions(BaseModel):
    """Options of a method that has none."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def method_options() -> dict[str, type[BaseModel]]:
    """The options model of every method, by its name in recipes."""
    names = [module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg]
    modules = {name: importlib.import_module(f"{__name__}.{name}") for name in names}
    return {name: module.OPTIONS for name, module in modules.items() if hasattr(module, "OPTIONS")}
