"""Edgewright: one recipe takes a checkpoint to packages for phones, and proves that they fit.

    from edgewright import Recipe, run

    report = run(Recipe.load("quickstart"), out="build")
    print(report.verdict)

Importing this package loads nothing heavy: each name is resolved when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgewright.api import plan, run, validate
    from recipes.schema import Recipe

__version__ = "0.1.0"
__all__ = ["Recipe", "__version__", "plan", "run", "validate"]


def __getattr__(name: str) -> Any:
    if name not in ("Recipe", "plan", "run", "validate"):
        raise AttributeError(f"module 'edgewright' has no attribute {name!r}")
    from edgewright import rooms

    rooms.check()
    from edgewright import api

    return api.recipe_type() if name == "Recipe" else getattr(api, name)


def __dir__() -> list[str]:
    return __all__
