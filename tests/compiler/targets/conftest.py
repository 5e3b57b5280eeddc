"""What tests of several targets share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from compiler.targets.tvm import triples


def convert_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """No processes of their own for conversions: many starts less. Core ML's check captures what its build captures
    again: there is only the build's."""

    def directly(function: Callable[..., Any], *arguments: Any, progress: Any) -> Any:
        return function(*arguments, progress)

    monkeypatch.setattr("compiler.targets.tvm.workers.apart", directly)
    monkeypatch.setattr("compiler.targets.coreml.target.apart", directly)
    monkeypatch.setattr("compiler.targets.coreml.target.CoreMLTarget.check", lambda self, job: None)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """No processes of their own for conversions, and of TVM's libraries none but the one that runs."""
    convert_here(monkeypatch)
    machine = triples.host()
    monkeypatch.setattr(triples, "host", lambda: dataclasses.replace(machine, variants=machine.variants[-1:]))
