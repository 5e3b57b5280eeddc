"""Core ML packages in the reference executor of ``runtime_tests.mil``, which runs anywhere.

What lives here: states, the functions of a package, and how a prompt is cut into calls of lengths that it takes. What
must not: what an operation computes.

"exact" runs the same package with its 16-bit floats widened to 32. The logits of all positions come from the same
program with its ``last_position`` slice passed over. Nothing here says anything of speed or memory on a phone: that is
modelled from the program (``runtime_tests.mil.memory``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from artifacts import MANIFEST, EdgewrightError, Figure
from artifacts.manifest import checked_path
from runtime_tests.mil.memory import account
from runtime_tests.mil.package import Package
from runtime_tests.mil.program import Function, State

from . import Ids, Logits

LAST_POSITION = "last_position"


class Settings(BaseModel):
    """What ``runtime`` of a Core ML package's manifest must hold; other keys are for other readers."""

    model_config = ConfigDict(frozen=True)

    model: str
    max_tokens: int = Field(gt=0)
    vocab_size: int = Field(gt=0)
    cache: Literal["state", "explicit"]
    functions: tuple[str, ...] = Field(min_length=1, max_length=2)
    prompt_lengths: tuple[int, ...]


class CoreMLRunner:
    """Both functions of one package over one cache. `stand_in`: Core ML itself runs on Apple's systems alone."""

    stand_in = "Core ML reference executor"

    def __init__(self, artifact: Path, runtime: Mapping[str, JsonValue]) -> None:
        try:
            self._settings = Settings.model_validate(dict(runtime))
            self._path = artifact.joinpath(*checked_path(self._settings.model).split("/"))
        except (ValidationError, ValueError) as error:
            raise EdgewrightError(f"{artifact / MANIFEST}: runtime: {error}") from error
        if self._path.is_symlink() or not self._path.is_dir():
            raise EdgewrightError(f"{artifact}: runtime names {self._settings.model!r}, no folder of the artifact")
        self._functions: dict[str, Function] = {}
        self._state: State = {}
        self._length = 0

    def load(self, *, exact: bool = False, threads: int = 2) -> None:
        """Open the package and decode its small weights; ``exact`` widens 16-bit floats."""
        torch.set_num_threads(threads)
        package = Package(self._path)
        self._functions = {name: Function(package, name, exact=exact) for name in self._settings.functions}
        self._empty()

    def logits(self, ids: Ids) -> Logits:
        """[S, V] of one prefill from an empty cache, with the slice of the last position passed over."""
        self._empty()
        out = np.empty((len(ids), self._settings.vocab_size), np.float32)
        for begin, stop in self._calls(len(ids)):
            out[begin:stop] = self._run(ids[begin:stop], begin, all_positions=True)
        return out

    def prefill(self, ids: Ids) -> Logits:
        """[V] of the last position, from an empty cache, as the package ships."""
        self._empty()
        row: Logits | None = None
        for begin, stop in self._calls(len(ids)):
            row = self._run(ids[begin:stop], begin)[-1]
        if row is None:
            raise EdgewrightError("a prompt needs at least one token")
        return row

    def decode(self, token: int) -> Logits:
        """[V] after one more token."""
        row: Logits = self._run(np.array([token], np.int64), self._length)[-1]
        return row

    def model_memory(self) -> list[Figure]:
        """What iOS would charge a call of each function for, with its band; and the clean, mapped weights.

        The longest prompt call is counted for prefill, one token for decode. The program's shapes are those of the
        whole context wherever in it a call begins, so either is that of a full one.
        """
        package = Package(self._path)
        settings = self._settings
        found: list[Figure] = []
        for name in settings.functions:
            longest = max(settings.prompt_lengths, default=settings.max_tokens)
            length = 1 if name == settings.functions[-1] and len(settings.functions) > 1 else longest
            memory = account(package, name, {"input_ids": torch.zeros(1, length), "position": torch.zeros(1)})
            figure = Figure(
                name=f"modelled_footprint_{name}_{length}",
                value=memory.dirty,
                unit="bytes",
                obtained="modelled",
                band=memory.band,
                at=f"{settings.max_tokens:,} tokens",
            )
            found += [figure] if found else [_declared("weights_clean_mapped", memory.weights), figure]
        return found

    def _empty(self) -> None:
        first = self._functions[self._settings.functions[0]]
        if self._settings.cache == "state":
            self._state = first.make_state()
        else:
            shapes = {n: s for n, (_, s) in first.inputs.items() if n not in ("input_ids", "position")}
            self._state = {name: torch.zeros([size or 0 for size in shape]) for name, shape in shapes.items()}
        self._length = 0

    def _calls(self, count: int) -> Iterator[tuple[int, int]]:
        """Ranges of the prompt, call by call: as in the Swift snippet, the last one may reach back.

        Without listed lengths one call takes it all.
        """
        if count > self._settings.max_tokens:
            raise EdgewrightError(f"{count} tokens do not fit the context of {self._settings.max_tokens}")
        lengths = self._settings.prompt_lengths
        if not lengths:
            yield 0, count
            return
        known = sorted({1, *lengths})
        done = 0
        while done < count:
            left = count - done
            covering = [n for n in known if left <= n <= count]
            length = covering[0] if covering else max(n for n in known if n <= left)
            done = count if covering else done + length
            yield done - length, done

    def _run(self, ids: Ids, begin: int, all_positions: bool = False) -> Logits:
        """[S, V] or [1, V] of tokens that enter the cache at ``begin``."""
        settings = self._settings
        if begin + len(ids) > settings.max_tokens:
            raise EdgewrightError(f"{len(ids)} tokens after {begin} do not fit the context of {settings.max_tokens}")
        name = settings.functions[-1] if len(ids) == 1 else settings.functions[0]
        inputs: dict[str, Any] = {"input_ids": torch.from_numpy(ids[None].astype(np.int32)), "position": [begin]}
        explicit = settings.cache == "explicit"
        bypass = (LAST_POSITION,) if all_positions and len(ids) > 1 else ()
        outputs = self._functions[name](
            inputs | self._state if explicit else inputs, None if explicit else self._state, bypass=bypass
        )
        if explicit:
            self._state = {name: outputs[f"new_{name}"].float() for name in self._state}
        self._length = begin + len(ids)
        logits: Logits = outputs["logits"][0].float().numpy()
        return logits


def _declared(name: str, value: int) -> Figure:
    """A size of files, which no run has to show."""
    return Figure(name=name, value=value, unit="bytes", obtained="declared")


RUNNER = CoreMLRunner
