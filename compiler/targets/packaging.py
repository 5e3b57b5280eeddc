"""Layouts that an ecosystem demands of a driver's models: `packaging/<driver>.py` of a target, found by its name.

A target asks for the packaging of a model; without one it writes its own layout, in which every entry of every
component is called by the names of its ports. A packaging whose ecosystem knows some families alone lists them as
`FAMILIES`; models of others get the target's own layout.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compiler.models.base import Model


def packaging_of(target: str, model: Model) -> Any | None:
    """The module of `target` for a model; None where it has none."""
    name = f"{target}.packaging.{model.driver}"
    if importlib.util.find_spec(name) is None:
        return None
    found = importlib.import_module(name)
    return found if model.family in getattr(found, "FAMILIES", (model.family,)) else None
