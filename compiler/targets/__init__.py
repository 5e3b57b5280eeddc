"""The targets: each a folder that declares its options and lowers captured graphs to one runtime's format.

A target `name` is the package `compiler.targets.name` with `options.OPTIONS`, its light options model, and `TARGET`,
which imports its code when it is first used; nothing else has to know of it. What targets share is in `base.py`.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from pydantic import BaseModel

if TYPE_CHECKING:
    from compiler.targets.base import Target


def target_options() -> dict[str, type[BaseModel]]:
    """The options model of every target, by its name in recipes."""
    names = [module.name for module in pkgutil.iter_modules(__path__) if module.ispkg]
    return {name: importlib.import_module(f"{__name__}.{name}.options").OPTIONS for name in names}


def load_target(name: str) -> Target:
    """Import a target by the name it has in recipes."""
    target: Target = importlib.import_module(f"{__name__}.{name}").TARGET
    return target


def calibrates(options: BaseModel) -> bool:
    """Whether a target looks at calibration data of its own, beside the methods: its options then say `calibrated`."""
    return bool(getattr(options, "calibrated", False))
