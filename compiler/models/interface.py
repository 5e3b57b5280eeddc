"""A model as a manifest states it: which components an artifact has, how their entries are called, what they keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from artifacts.formats import interface
from compiler.models.base import Component, Entry, Model, Port


def described(model: Model, narrowed: Mapping[tuple[str, str, str], interface.Dimension]) -> list[interface.Component]:
    """The components of a model as a manifest states them."""

    def port(found: Port) -> interface.Port:
        return interface.Port(**asdict(found))

    def entry(component: Component, found: Entry) -> interface.Entry:
        dimensions = {
            name: narrowed.get((component.name, found.name, name)) or interface.Dimension(low=low, high=high)
            for name, (low, high) in found.dimensions.items()
        }
        inputs, outputs = ([port(p) for p in ports] for ports in (found.inputs, found.outputs))
        return interface.Entry(name=found.name, inputs=tuple(inputs), outputs=tuple(outputs), dimensions=dimensions)

    return [
        interface.Component(
            name=component.name,
            entries=tuple(entry(component, found) for found in component.shipped),
            states=tuple(port(state) for state in component.states),
        )
        for component in model.components
    ]
