"""Images at their own size and text through an artifact's entries: what transformers' own model says of the same."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from artifacts import EdgewrightError, Manifest
from artifacts.formats.interface import Dimension
from artifacts.media.errors import MediaError
from artifacts.media.pixtral import cut
from artifacts.media.prepare import prepare
from compiler.slots import HALF
from compiler.targets import target_options
from recipes.schema import Vision
from runtime_tests.drivers import driver_of, native_image_text
from runtime_tests.drivers.native_image_text import Asked, NativeImageText, filled
from runtime_tests.jobs import Job
from runtime_tests.sessions import make_session
from tests.artifacts.media import reference as ref
from tests.compiler.conftest import packed, quantized_job
from tests.compiler.pixtral import GEOMETRIES, SMALL, cells_of, image, reference, write_pixtral
from tests.compiler.test_processor import pixtral, written

CONTEXT, STEPS = 48, 8
ENCODER = ref.tokenizer()
IMAGE_TOKEN = ENCODER.convert_tokens_to_ids("[IMG]")
GEOMETRY = dataclasses.replace(SMALL, tied=False, image=112, vocab=len(ENCODER), image_token=IMAGE_TOKEN)
SIZES = [[(1, 2)], [(4, 2), (1, 1), (3, 3)]]


@pytest.fixture(scope="module", params=["onnx", "mlx"])
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """Half precision, so that nothing but the order of calls can make other tokens. MLX takes two sizes of images."""
    folder = tmp_path_factory.mktemp("pixtral")
    source = write_pixtral(folder / "source", GEOMETRY, 3)
    documents = pixtral()
    written(source, {name: documents[name] for name in documents if name != "config.json"})
    options = target_options()[request.param]()
    # a processor that makes images of 112 pixels, a recipe that plans for fewer
    bound = Vision(max_image=100)
    job = quantized_job(folder / "quantized", source, options, HALF, max_tokens=CONTEXT, vision=bound)
    return folder / "package", packed(job, request.param, folder / "package", companions=True)


def session(artifact: tuple[Path, Manifest]) -> Any:
    found = make_session(*artifact)
    found.load(exact=True)
    return found


def padded(pictures: list[NDArray[np.float32]]) -> dict[str, torch.Tensor]:
    """As transformers takes images of several sizes."""
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (1, 2))
    pixels = torch.zeros((len(pictures), 3, height, width))
    for at, picture in enumerate(pictures):
        pixels[at, :, : picture.shape[1], : picture.shape[2]] = torch.from_numpy(picture)
    return {"pixel_values": pixels, "image_sizes": torch.tensor([picture.shape[1:] for picture in pictures])}


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_an_image_is_cut_as_the_vision_entry_takes_it(geometry: Any) -> None:
    for size in ((1, 1), (2, 5), (4, 3)):
        picture = image(geometry, *size)
        found, wanted = cut(picture, geometry.patch, geometry.merge), cells_of(picture, geometry.patch, geometry.merge)
        for port in ("pixels", "rows", "columns"):
            np.testing.assert_array_equal(getattr(found, port), wanted[port])
            assert getattr(found, port).dtype == wanted[port].dtype


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_same_logits_as_transformers(artifact: tuple[Path, Manifest], sizes: list[tuple[int, int]]) -> None:
    """A prompt with its images, then words one by one; with other pixels the logits are others."""
    pictures = [image(GEOMETRY, *size) for size in sizes]
    words = np.random.default_rng(len(sizes)).integers(3, 250, 8 + STEPS)
    beginning = [int(words[0])]
    for at, (rows, columns) in enumerate(sizes):
        beginning += [*[GEOMETRY.image_token] * (rows * columns), int(words[1 + at])]
    beginning += [int(word) for word in words[4:8]]
    ids = np.array([*beginning, *words[8:]], np.int64)
    with torch.no_grad():
        logits = reference(GEOMETRY, 3)(input_ids=torch.from_numpy(ids[None]), **padded(pictures)).logits
    found = NativeImageText(session(artifact), *artifact)

    def said(shown: list[NDArray[np.float32]]) -> NDArray[Any]:
        found.show(found.see([picture[None] for picture in shown]))
        rows = [found.prefill(np.array(beginning, np.int64))]
        return np.stack([*rows, *(found.decode(int(token)) for token in ids[len(beginning) :])])

    expected = logits[0, len(beginning) - 1 :].numpy()
    np.testing.assert_allclose(said(pictures), expected, atol=1e-4 * np.abs(expected).max(), rtol=0)
    other = [picture[:, ::-1].copy() for picture in pictures]
    assert np.abs(said(other) - expected).max() > 1e-2 * np.abs(expected).max()


def test_whole_answers_are_those_of_transformers(artifact: tuple[Path, Manifest]) -> None:
    """From images of awkward sizes and a question to text: cells, prompt, tokens and answer."""
    asked = Asked(session(artifact), *artifact)
    model = reference(GEOMETRY, 3)
    processor = ref.pixtral_images(100)
    answers = set()
    for sizes in ([(33, 90)], [(1, 1), (57, 40)], [(300, 211)], []):
        images = [ref.picture(*size) for size in sizes]
        prompt = "What? " + "[IMG]:" * len(images) + "er"
        prepared = prepare(prompt, ref.pixtral(100), images)
        ids = ENCODER(prepared.text, return_tensors="pt")["input_ids"]
        given: dict[str, Any] = {}
        if images:
            made = [processor(Image.fromarray(picture)) for picture in images]
            given = padded([np.asarray(one["pixel_values"][0]) for one in made])
        with torch.no_grad():
            out = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, **given
            )[0, ids.shape[1] :]
        said = asked.answer(prompt, images, most=6)
        assert said == ENCODER.decode(out.tolist(), skip_special_tokens=True).strip()
        answers.add(said)
    assert len(answers) > 2


def test_the_bound_travels_along(artifact: tuple[Path, Manifest]) -> None:
    folder, _ = artifact
    assert json.loads((folder / "preprocessing.json").read_text())["images"]["longest_edge"] == 100
    asked = Asked(session(artifact), *artifact)
    with pytest.raises(MediaError, match="too narrow"):
        asked.answer("[IMG]", [ref.picture(3000, 1)])
    found = NativeImageText(session(artifact), *artifact)
    with pytest.raises(EdgewrightError, match=r"an image makes 20 tokens, and the package takes 16 at the most"):
        found.see([image(GEOMETRY, 4, 5)[None]])


def test_memory_is_that_of_the_largest_image_and_the_whole_context(artifact: tuple[Path, Manifest]) -> None:
    folder, manifest = artifact
    driver, running = driver_of(folder, manifest), session(artifact)
    assert driver is native_image_text
    largest = "an image of 100 pixels along an edge (16 tokens)"
    assert driver.load(folder, manifest) == f"{largest} and {CONTEXT} tokens"
    events: dict[str, dict[str, Any]] = {"load": {"stand_in": None}}
    job = Job(kind="memory", artifact=folder, prompt_tokens=None, steps=4)
    driver.run(running, manifest, job, lambda name, **payload: events.update({name: payload}))
    assert (events["prefill"]["tokens"], events["steady"]["tokens"]) == (CONTEXT - 4, 4)
    figures = {figure.name: figure for figure in driver.speed(events)}
    assert figures["host_vision"].at == largest and figures["host_decode"].value > 0


def test_a_call_is_filled_up_to_a_size_that_is_taken() -> None:
    free, listed = Dimension(low=1, high=9), Dimension(low=1, high=9, sizes=(1, 9))
    assert [filled(count, free) for count in (1, 5, 9, 10)] == [1, 5, 9, None]
    assert [filled(count, listed) for count in (1, 2, 9, 10)] == [1, 9, 9, None]
