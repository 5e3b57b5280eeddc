"""Layouts that an ecosystem demands of a driver's models: `packaging/<driver>.py` of a target, found by its name.

A target asks for the packaging of a model's driver; without one it writes its own layout, in which every entry of
every component is called by the names of its ports.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any


def packaging_of(target: str, driver: str) -> Any | None:
    """The module of `target` for a driver; None where it has none."""
    name = f"{target}.packaging.{driver}"
    return importlib.import_module(name) if importlib.util.find_spec(name) else None
