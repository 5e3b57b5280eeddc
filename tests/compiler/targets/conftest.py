"""What tests of several targets share."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from compiler.targets.tvm import triples
from tests.compiler.conftest import converting_here


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No processes of their own for conversions, and of TVM's libraries none but the one that runs."""
    machine = triples.host()
    monkeypatch.setattr(triples, "host", lambda: dataclasses.replace(machine, variants=machine.variants[-1:]))
    with converting_here():
        yield
