"""What tests of several targets share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from compiler.targets.tvm import triples


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """No processes of their own for conversions, and no library but the one that runs: many starts less."""

    def directly(function: Callable[..., Any], *arguments: Any, progress: Any) -> Any:
        return function(*arguments, progress)

    monkeypatch.setattr("compiler.targets.tvm.workers.apart", directly)
    monkeypatch.setattr("compiler.targets.coreml.target.apart", directly)
    machine = triples.host()
    monkeypatch.setattr(triples, "host", lambda: dataclasses.replace(machine, variants=machine.variants[-1:]))
