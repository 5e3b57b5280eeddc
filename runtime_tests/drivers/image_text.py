"""Images and text: tiles through the tower, token ids through the table, both in their order through the decoder.

What lives here: whose output goes where. What must not: a runtime, how an image becomes tiles and a prompt
(`artifacts/media/`), and how tokens follow each other (`text.py`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from artifacts import EdgewrightError, Figure, Manifest, Progress, ran_here
from artifacts.formats import preprocessing
from artifacts.formats.interface import Dimension
from artifacts.manifest import payload_file
from artifacts.media.images import Pixels
from artifacts.media.prepare import prepare
from artifacts.media.tiles import normalise
from artifacts.media.video import Clip
from runtime_tests.drivers import Asker, Judged, Phase, positive, text
from runtime_tests.drivers.text import Ids, component_of
from runtime_tests.sessions import Session

if TYPE_CHECKING:
    from runtime_tests.jobs import Job
    from runtime_tests.process import Ended, Failure

Floats = NDArray[np.float32]

VISION, EMBED = "vision", "embed"


def load(artifact: Path, manifest: Manifest, tiles: int | None = None) -> str:
    """See `Driver`: an image of the most tiles, in a prompt that fills the context beside the answer."""
    return f"{ImageText.most(artifact, manifest, tiles)} and {positive(artifact, manifest, 'max_tokens', 1):,} tokens"


def judge(session: Session, manifest: Manifest, job: Job, progress: Progress) -> Judged:
    """See `Driver`: entry vectors judge every entry."""
    return Judged()


def run(session: Session, manifest: Manifest, job: Job, phase: Phase, kind: type[ImageText] | None = None) -> None:
    """The phases "vision" (the largest image), "prefill" and "steady" (tokens decoded after it).

    Any pixels and tokens do, their number is what counts. The job's prompt, or one as long as the context has room for
    beside what is decoded, and then the phase "long conversation" about the same image; the prompt holds as many image
    tokens as it has room for.
    """
    artifact = job.artifact
    context, vocabulary = (positive(artifact, manifest, key) for key in ("max_tokens", "vocab_size"))
    image = positive(artifact, manifest, "image_token_id", 0)
    kind = kind or ImageText
    decoder = kind(session, artifact, manifest)
    steps = min(job.steps, context - 1)
    room = context - steps

    begin = time.perf_counter()
    features = decoder.largest(job.tiles)
    phase("vision", at=kind.most(artifact, manifest, job.tiles), seconds=time.perf_counter() - begin)
    prompt = np.arange(min(job.prompt_tokens or room, room), dtype=np.int64) % vocabulary
    seen = min(len(features), len(prompt) - 1)
    prompt[prompt == image] = (image + 1) % vocabulary
    prompt[:seen] = image
    begin = time.perf_counter()
    decoder.show(features[:seen])
    token = int(decoder.prefill(prompt).argmax())
    phase("prefill", tokens=len(prompt), seconds=time.perf_counter() - begin)
    seconds = []
    for _ in range(steps):
        begin = time.perf_counter()
        token = int(decoder.decode(token).argmax())
        seconds.append(time.perf_counter() - begin)
    phase("steady", tokens=steps, seconds=sum(seconds), median_seconds=statistics.median(seconds))
    if job.prompt_tokens is None:
        text.converse(decoder, prompt, context, steps, phase, seen + 1)


def speed(events: Mapping[str, Mapping[str, Any]]) -> Sequence[Figure]:
    """Seconds that the tower takes, to the first token after it, and tokens a second."""
    stand_in, seen = events["load"]["stand_in"], events["vision"]
    vision = ran_here("host_vision", seen["seconds"], "s", stand_in, at=seen["at"])
    return [vision, *text.speed(events)]


def asker(session: Session, artifact: Path, manifest: Manifest) -> Asker:
    """See `Driver`."""
    return Asked(session, artifact, manifest)


def conclude(manifest: Manifest, judged: Judged, ask: Callable[..., Ended]) -> Sequence[Failure]:
    """See `Driver`: no runtime reads images itself."""
    return ()


class Asked(text.Asked):
    """See `Asker`: images and clips become tiles by preprocessing.json."""

    def __init__(
        self, session: Session, artifact: Path, manifest: Manifest, kind: type[ImageText] | None = None
    ) -> None:
        self._images = (kind or ImageText)(session, artifact, manifest)
        super().__init__(self._images, artifact, manifest)
        self.description = preprocessing.read(payload_file(artifact, preprocessing.PREPROCESSING), links=False)
        self._seen: tuple[Pixels, ...] = ()

    def shown(self, prompt: str, images: Sequence[Pixels], clips: Sequence[Clip]) -> str:
        """The prompt with what stands for each image and clip, whose features the decoder is shown."""
        found = prepare(prompt, self.description, images, clips)
        if len(found.pixels) != len(self._seen) or not all(map(np.array_equal, found.pixels, self._seen)):
            pictures = [normalise(pixels, self.description.images.normalisation) for pixels in found.pixels]
            self._images.show(self._images.see(pictures) if pictures else np.empty((0, 0), np.float32))
            self._seen = found.pixels  # which every turn of a conversation speaks of again
        return found.text


class ImageText(text.Decoder):
    """One conversation about images; image tokens stand for the features that were shown, in their order."""

    def __init__(self, session: Session, artifact: Path, manifest: Manifest) -> None:
        super().__init__(session, component_of(artifact, manifest), positive(artifact, manifest, "max_tokens"))
        self._vision = component_of(artifact, manifest, VISION)
        self._constant = partial(positive, artifact, manifest)
        self._ids = component_of(artifact, manifest, EMBED).entry("embed").dimensions["tokens"]
        self._image = positive(artifact, manifest, "image_token_id", 0)
        self._features: Floats = np.empty((0, 0), np.float32)
        self._at: Ids = np.empty(0, np.int64)

    @staticmethod
    def most(artifact: Path, manifest: Manifest, tiles: int | None = None) -> str:
        """The largest image that an artifact promises, or one of so many tiles, in a few words."""
        tiles = tiles or positive(artifact, manifest, "max_tiles", 1)
        return f"{tiles:,} {'tile' if tiles == 1 else 'tiles'}"

    def largest(self, tiles: int | None = None) -> Floats:
        """[image tokens, hidden] of such an image; any pixels do."""
        size = self._constant("tile_size")
        return self.look(np.zeros((tiles or self._constant("max_tiles", 1), 3, size, size), np.float32))

    def see(self, pictures: Sequence[Floats]) -> Floats:
        """[image tokens, hidden] of every image and clip, as `media.prepare` orders and `normalise` leaves them."""
        return self.look(np.concatenate(pictures))

    def look(self, pixels: Floats) -> Floats:
        """[tiles * tokens of a tile, hidden] of normalized pixels [tiles, 3, size, size]."""
        found = self._whole(VISION, "tile", "pixels", pixels, self._vision.entry("tile").dimensions["tiles"])
        return found.reshape(-1, found.shape[-1])

    def show(self, features: Floats) -> None:
        """What the image tokens of the prompts to come stand for, [image tokens, hidden]."""
        self._features = features

    def prefill(self, ids: Ids) -> text.Logits:
        """See `Decoder`. Raises EdgewrightError where the image tokens are not as many as the features shown."""
        self._place(ids)
        return super().prefill(ids)

    def extend(self, ids: Ids) -> text.Logits:
        """See `Decoder`: the features shown are those of the whole conversation. Raises EdgewrightError as `prefill`
        does."""
        self._place(ids)
        return super().extend(ids)

    def _place(self, ids: Ids) -> None:
        marks = ids == self._image
        count = len(self._features)
        if marks.sum() != count:
            raise EdgewrightError(f"the prompt holds {marks.sum()} image tokens, and {count} features were shown")
        self._at = np.cumsum(marks) - 1

    def entered(self, ids: Ids, start: int) -> dict[str, NDArray[Any]]:
        """See `Decoder`: embeddings [1, S, hidden], features in the places of image tokens."""
        embeddings = self._whole(EMBED, "embed", "input_ids", ids[None], self._ids, axis=1)[0]
        places = np.flatnonzero(ids == self._image)
        places = places[start + places < len(self._at)]  # one that the model itself says shows nothing
        if len(places):
            embeddings[places] = self._features[self._at[start + places]]
        return {"embeddings": embeddings[None]}

    def _whole(self, component: str, entry: str, port: str, given: Any, sizes: Dimension, axis: int = 0) -> Floats:
        """The only output for `given`, cut along an axis into calls of sizes that the entry takes."""
        rows: list[Floats] = []
        done = 0
        for start, stop in text.calls(given.shape[axis], sizes):
            part = given[start:stop] if axis == 0 else given[:, start:stop]
            (found,) = self.session.call(component, entry, **{port: part}).values()
            rows.append(found[done - start :] if axis == 0 else found[:, done - start :])
            done = stop
        return np.concatenate(rows, axis)
