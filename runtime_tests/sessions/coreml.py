"""Core ML packages in the reference executor of ``runtime_tests.mil``, which runs anywhere.

What lives here: states, and which function of which package serves an entry. What must not: what an operation
computes.

"exact" runs the same packages with their 16-bit floats widened to 32. The "score" of a decoder's prompt comes from the
same program with its ``last_position`` slice passed over. Nothing here says anything of speed or memory on a phone:
that is modelled from the program (``runtime_tests.mil.memory``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from artifacts import MANIFEST, EdgewrightError, Figure, Manifest
from artifacts.formats import coreml
from artifacts.formats.coreml import LAST_POSITION, NEW_STATE, CoreMLRuntime
from artifacts.manifest import checked_path
from runtime_tests.mil.bisect import compare
from runtime_tests.mil.memory import account
from runtime_tests.mil.package import Package
from runtime_tests.mil.program import Function, State

from . import Arrays, call_sizes, runtime_section

_SCORE, _PREFILL, _DECODE = "score", "prefill", "decode"


class CoreMLSession:
    """See `Session`. `stand_in`: Core ML itself runs on Apple's systems alone."""

    warnings: tuple[str, ...] = ()
    stand_in: str | None = "Core ML reference executor"
    exact_stand_in: str | None = None

    def __init__(self, artifact: Path, manifest: Manifest) -> None:
        self.artifact = artifact
        self._runtime = runtime_section(CoreMLRuntime, artifact, manifest)
        try:
            names = {function.package for function in self._runtime.functions}
            self._paths = {name: artifact.joinpath(*checked_path(name).split("/")) for name in names}
        except ValueError as error:
            raise EdgewrightError(f"{artifact / MANIFEST}: runtime: {error}") from error
        for name, path in self._paths.items():
            if path.is_symlink() or not path.is_dir():
                raise EdgewrightError(f"{artifact}: runtime names {name!r}, no folder of the artifact")
        self._components = {component.name: component for component in manifest.components}
        self._calls: dict[tuple[str, str], coreml.Function] = {
            (function.component, function.entry): function for function in self._runtime.functions
        }
        context = manifest.driver.constants.get("max_tokens") if manifest.driver else None
        self._context = f"{context:,} tokens" if isinstance(context, int) else None
        self._functions: dict[tuple[str, str], Function] = {}
        self._states: dict[str, State] = {}

    def load(self, *, exact: bool = False, threads: int = 2) -> None:
        """Open the packages and decode their small weights; ``exact`` widens 16-bit floats."""
        torch.set_num_threads(threads)
        packages = {name: Package(path) for name, path in self._paths.items()}
        self._functions = {
            (call.package, call.function): Function(packages[call.package], call.function, exact=exact)
            for call in {(c.package, c.function): c for c in self._runtime.functions}.values()
        }
        self.reset()

    def reset(self) -> None:
        """Every state to zeros."""
        for component in self._components.values():
            call = self._calls[component.name, component.entries[0].name]
            function = self._functions[call.package, call.function]
            if self._runtime.cache == "state":
                self._states[component.name] = function.make_state()
            else:
                self._states[component.name] = {s.name: torch.zeros(s.sized({})) for s in component.states}

    def call(self, component: str, entry: str, **arrays: NDArray[Any]) -> Arrays:
        """The entry's outputs by name, float32 where the package computes in float16."""
        scoring = entry == _SCORE and (component, entry) not in self._calls
        if scoring:  # of one token both functions keep the only position, and a package may take it by decoding alone
            entry = _DECODE if all(array.size == 1 for array in arrays.values()) else _PREFILL
        if (component, entry) not in self._calls:
            raise EdgewrightError(f"{self.artifact}: the package has no {component}.{entry}")
        call = self._calls[component, entry]
        wanted = self._components[component].entry(entry)
        call_sizes(f"{component}.{entry}", wanted, arrays)
        inputs: dict[str, Any] = {
            _feature(call, port.name): torch.from_numpy(_given(call, port.name, arrays[port.name]))
            for port in wanted.inputs
            if port.name not in call.firsts.values()
        }
        inputs |= {feature: arrays[port].reshape(-1)[:1].astype("int32") for feature, port in call.firsts.items()}
        state = self._states[component]
        explicit = self._runtime.cache == "explicit"
        outputs = self._functions[call.package, call.function](
            inputs | state if explicit else inputs,
            None if explicit else state,
            bypass=(LAST_POSITION,) if scoring and entry == _PREFILL else (),
        )
        if explicit:
            self._states[component] = {name: outputs[NEW_STATE + name].float() for name in state}
        return {port.name: outputs[port.name].float().numpy() for port in wanted.outputs}

    def divergence(self, function: str, inputs: dict[str, Any], values: dict[str, Any], tolerance: float) -> str | None:
        """The first operation of a function, in its most precise mode, whose value is not the one of its name."""
        package = next(call.package for call in self._runtime.functions if call.function == function)
        program = Function(Package(self._paths[package]), function, exact=True)
        found = compare(program, inputs, values, tolerance).divergence
        return None if found is None else str(found)

    def footprint(self) -> list[Figure]:
        """What iOS would charge the largest call of each function for, with its band; and the clean, mapped weights.

        A program's shapes are those of whole states wherever in them a call begins, so each is that of a full context.
        """
        found: list[Figure] = []
        weights: dict[str, int] = {}
        seen: set[tuple[str, str]] = set()
        for (name, entry), call in self._calls.items():
            if (call.package, call.function) in seen:
                continue
            seen.add((call.package, call.function))
            package = Package(self._paths[call.package])
            wanted = self._components[name].entry(entry)
            sizes = {dimension: bound.high for dimension, bound in wanted.dimensions.items()}
            given = {
                _feature(call, port.name): torch.zeros(port.sized(sizes))
                for port in wanted.inputs
                if port.name not in call.firsts.values()
            }
            memory = account(package, call.function, given | {feature: torch.zeros(1) for feature in call.firsts})
            weights[call.package] = memory.weights
            at = "_".join([name, entry, *(str(size) for size in sizes.values() if size > 1)])
            found.append(
                Figure(
                    name=f"modelled_footprint_{at}",
                    value=memory.dirty,
                    unit="bytes",
                    obtained="modelled",
                    band=memory.band,
                    at=self._context,
                )
            )
        # a size of files, which no run has to show
        clean = Figure(name="weights_clean_mapped", value=sum(weights.values()), unit="bytes", obtained="declared")
        return [clean, *found]


def _feature(call: coreml.Function, port: str) -> str:
    return call.image.feature if call.image is not None and call.image.port == port else port


def _given(call: coreml.Function, port: str, array: NDArray[Any]) -> NDArray[Any]:
    """A port's values as its feature's: whole numbers have 32 bits, an image is one before it was normalized."""
    if call.image is not None and call.image.port == port:
        mean, std = (np.reshape(channels, (1, 3, 1, 1)) for channels in (call.image.mean, call.image.std))
        values: NDArray[np.float32] = (array * std + mean).astype(np.float32)
        return values
    return array.astype("int32") if array.dtype.kind in "iu" else array


SESSION = CoreMLSession
