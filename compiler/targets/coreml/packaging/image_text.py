"""SmolVLM: one tile a call, as an image where the checkpoint has a processor; table and decoder by their ports.

    forward(image [1, 3, tile_size, tile_size], RGB with values of 0 to 255) -> features

An app gives a tile as a CVPixelBuffer, and the program normalizes it in float32 as the checkpoint's processor does.
Shapes of the tower are fixed: Apple's compilers place flexible ones off the neural engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from artifacts.formats.coreml import CoreMLRuntime, Image
from artifacts.formats.preprocessing import SPECIFICATION
from compiler.models.base import Component, Entry, Port
from compiler.processor import from_processor, has_processor
from compiler.slots import Schemes
from compiler.targets.base import BuildJob, Job
from compiler.targets.card import About
from compiler.targets.coreml import generic
from compiler.targets.coreml.capture import Call
from compiler.targets.coreml.packaging import text
from compiler.targets.smolvlm import FAMILY, image_text_about, stored_twice

if TYPE_CHECKING:
    import torch

FAMILIES = (FAMILY,)
refusals, metadata = text.refusals, text.metadata
PURPOSE = ": a vision tower, a table of embeddings and a text decoder with a key-value cache"
_IMAGE = "image"
FEATURES = {
    _IMAGE: "A tile, RGB, as preprocessing.json describes it; the program normalizes it.",
    "pixels": "A tile, [1, 3, height, width], normalized as preprocessing.json says.",
    "features": "What the image tokens of a tile stand for, [1, tokens of a tile, hidden].",
    "input_ids": "Token ids, [1, length].",
    "embeddings": "Embeddings of tokens, [1, length, hidden]; features take the places of image tokens.",
    "positions": "Positions of these tokens, [1, length].",
    **{name: said for name, said in text.FEATURES.items() if name == "logits" or name.endswith("cache")},
}
_SWIFT = """## A tile in Swift

`vision.mlpackage` takes one tile a call, a `CVPixelBuffer` of {size} × {size} pixels; `{page}` says how an image
becomes tiles and in which order their tokens stand in the prompt. Each
gives {tokens} rows of features. No value of a pixel has to be touched by the app: the program normalizes them.

```swift
let vision = try MLModel(contentsOf: visionURL)  // compiled
func features(of tile: CVPixelBuffer) throws -> MLMultiArray {{
    let input = try MLDictionaryFeatureProvider(dictionary: ["image": MLFeatureValue(pixelBuffer: tile)])
    return try vision.prediction(from: input).featureValue(for: "features")!.multiArrayValue!
}}
```

The Swift above was not compiled."""


def packages(job: Job) -> dict[str, list[Call]]:
    """A package for each component."""
    found = generic.packages(job)
    vision = job.model.component("vision")
    (entry,) = vision.shipped
    return found | {f"{vision.name}.mlpackage": [_tile(vision, entry, _image(job, entry))]}


def _image(job: Job, entry: Entry) -> Image | None:
    if not (isinstance(job, BuildJob) and has_processor(job.source)):
        return None
    numbers = from_processor(job.source).images.normalisation
    mean, std = ([value / numbers.rescale for value in channels] for channels in (numbers.mean, numbers.std))
    return Image.model_validate({"feature": _IMAGE, "port": entry.inputs[0].name, "mean": mean, "std": std})


def _tile(vision: Component, entry: Entry, image: Image | None) -> Call:
    (pixels,) = entry.inputs
    given = Port(image.feature, pixels.dtype, pixels.shape) if image else pixels
    module = partial(vision.module, entry) if image is None else partial(_module, vision, entry, image)
    return Call("main", vision, entry, (given,), module, {"tiles": (1,)}, image=image)


def _module(vision: Component, entry: Entry, image: Image, schemes: Schemes) -> torch.nn.Module:
    import torch

    body = vision.module(entry, schemes)

    class FromImage(torch.nn.Module):
        mean: torch.Tensor
        std: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.tensor(image.mean).reshape(1, 3, 1, 1))
            self.register_buffer("std", torch.tensor(image.std).reshape(1, 3, 1, 1))

        def forward(self, values: torch.Tensor) -> Any:
            return body((values - self.mean) / self.std)

    return FromImage()


def about(job: Job) -> About:
    """How the README begins."""
    return image_text_about(job)


def sections(job: BuildJob, runtime: CoreMLRuntime, units: str) -> list[str]:
    """Of the README: functions, and how a tile is given."""
    constants = job.model.constants
    found = [generic.calling(runtime, units) + stored_twice(job)]
    if any(function.image for function in runtime.functions):
        found.append(
            _SWIFT.format(page=SPECIFICATION, size=constants["tile_size"], tokens=constants["tokens_per_tile"])
        )
    return found


def examples(job: Job) -> Iterator[tuple[Call, dict[str, Any]]]:
    """Entry vectors name the entry that differs."""
    return iter(())
