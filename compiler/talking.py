"""A talking head in PyTorch: what its components make of a clip, as an app would call them.

What lives here: tokens and frames of a whole clip. What must not: how sound becomes windows and pictures an input
(`artifacts/media/speech.py`, `faces.py`), and calling a runtime (`runtime_tests/drivers/talking_head.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from artifacts.formats.talking_head import Constants, read
from artifacts.media.clips import Clip
from artifacts.media.faces import covered, pasted
from artifacts.media.speech import Windows
from compiler import dialect
from compiler.models.base import Component, Model
from compiler.slots import Schemes, Weights

if TYPE_CHECKING:
    import torch

RENDERER = "renderer"
Floats = NDArray[np.float32]


def constants_of(model: Model) -> Constants:
    """The driver's constants, as an artifact will state them."""
    return read(model.constants, "config.json")


def hearing(model: Model) -> Component:
    """The component that hears."""
    return model.components[0]


def windows(clip: Clip, constants: Constants) -> Iterator[Floats]:
    """Of all of a clip's sound."""
    found = Windows(constants.audio)
    found.add(clip.sound, constants.audio.sample_rate)
    found.end()
    yield from found.ready(len(clip.mouth) * constants.frames.tokens)


def heard_inputs(model: Model, window: Floats, identity: int) -> tuple[torch.Tensor, ...]:
    """What the component that hears is given for a window."""
    import torch

    who = np.eye(1, max(1, constants_of(model).identities), identity, dtype=np.float32)
    return tuple(map(torch.from_numpy, (window[None], who)[: len(hearing(model).entries[0].inputs)]))


def tokens(model: Model, module: torch.nn.Module, clip: Clip) -> Floats:
    """[frames, tokens of a frame, …] of a clip. module: of the component that hears, its weights there."""
    constants = constants_of(model)
    audio = constants.audio
    kept = slice(audio.tokens - audio.ahead - audio.hop, audio.tokens - audio.ahead)
    parts = [module(*heard_inputs(model, w, clip.identity))[0][0, kept].numpy() for w in windows(clip, constants)]
    found = np.concatenate(parts)
    return found.reshape(-1, constants.frames.tokens, *found.shape[1:])[: len(clip.mouth)]


def drawn_inputs(model: Model, clip: Clip, heard: Floats, frames: Iterator[int]) -> Iterator[tuple[torch.Tensor, ...]]:
    """What the renderer is given for each of these frames. heard: as `tokens` gives it."""
    import torch

    constants = constants_of(model)
    assert constants.picture is not None and clip.video is not None
    near = (constants.frames.before, constants.frames.ahead)
    around = np.pad(heard, (near, *[(0, 0)] * (heard.ndim - 1)))
    ports = {port.name: port.sized({}) for port in model.component(RENDERER).entries[0].inputs}
    for at in frames:
        given = {
            "image": covered(clip.video[at], clip.video[at], constants.picture),
            "audio": around[at : at + sum(near) + 1].reshape(ports["audio"]),
        }
        yield tuple(torch.from_numpy(given[name]) for name in ports)


def frames(model: Model, schemes: Schemes, table: Weights, clip: Clip) -> NDArray[Any]:
    """All frames of a clip: float32 [frames, blendshapes], or crops uint8 [frames, crop, crop, 3]. table: the weights
    that are computed with."""
    import torch

    constants, component = constants_of(model), hearing(model)
    with torch.no_grad(), dialect.weights(table):
        heard = tokens(model, component.module(component.entries[0], schemes), clip)
        if constants.picture is None:
            return heard.reshape(len(heard), -1)
        drawing = model.component(RENDERER)
        module = drawing.module(drawing.entries[0], schemes)
        assert clip.video is not None
        given = drawn_inputs(model, clip, heard, iter(range(len(heard))))
        drawn = [module(*inputs)[0][0].numpy() for inputs in given]
    return np.stack([pasted(video, made, constants.picture) for video, made in zip(clip.video, drawn, strict=True)])
