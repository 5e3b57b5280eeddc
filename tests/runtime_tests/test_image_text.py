"""Images and text through an artifact's entries: what transformers' own model says of the same pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from artifacts import EdgewrightError, Manifest
from artifacts.media.prepare import prepare
from artifacts.media.tiles import normalise
from compiler.processor import from_processor
from compiler.slots import HALF
from compiler.targets import target_options
from runtime_tests.drivers import driver_of, image_text
from runtime_tests.drivers.image_text import Asked, ImageText
from runtime_tests.jobs import Job
from runtime_tests.sessions import make_session
from tests.compiler.conftest import packed, quantized_job
from tests.compiler.smolvlm import SMALL, reference, write_smolvlm

CONTEXT, IMAGE, STEPS = 40, 7, 8


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """Half precision, so that nothing but the order of calls can make other tokens."""
    folder = tmp_path_factory.mktemp("smolvlm")
    source = write_smolvlm(folder / "source", SMALL, 3)
    job = quantized_job(folder / "quantized", source, target_options()["onnx"](), HALF, max_tokens=CONTEXT)
    return folder / "onnx", packed(job, "onnx", folder / "onnx")


def conversation(artifact: tuple[Path, Manifest]) -> ImageText:
    session = make_session(*artifact)
    session.load(exact=True)
    return ImageText(session, *artifact)


def prompt(tiles: int, seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Words, then each tile's image tokens between words, in a prompt with room for the answer."""
    words = np.random.default_rng(seed).integers(8, 160, CONTEXT)
    ids = [int(words[0])]
    for tile in range(tiles):
        ids += [int(words[1 + tile]), *[IMAGE] * SMALL.tokens]
    return np.array([*ids, *words[20:23]], np.int64)


@pytest.mark.parametrize("tiles", [1, 3])
def test_the_same_logits_as_transformers(artifact: tuple[Path, Manifest], tiles: int) -> None:
    """A prompt with its tiles, then words one by one; with other pixels the logits are others."""
    model = reference(SMALL, 3)
    pixels = np.random.default_rng(tiles).uniform(-1, 1, (tiles, 3, SMALL.image, SMALL.image)).astype(np.float32)
    beginning = prompt(tiles, tiles)
    ids = np.concatenate([beginning, np.random.default_rng(5).integers(8, 160, STEPS)])
    with torch.no_grad():
        logits = model(
            input_ids=torch.from_numpy(ids[None]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
            pixel_values=torch.from_numpy(pixels[None]),
        ).logits[0, len(beginning) - 1 :]
    found = conversation(artifact)

    def said(shown: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, Any]:
        found.show(found.look(shown))
        return np.stack([found.prefill(beginning), *(found.decode(int(token)) for token in ids[len(beginning) :])])

    expected = logits.numpy()
    np.testing.assert_allclose(said(pixels), expected, atol=1e-4 * np.abs(expected).max(), rtol=0)
    assert np.abs(said(pixels[:, ::-1].copy()) - expected).max() > 1e-2 * np.abs(expected).max()


def test_image_tokens_and_features_must_be_as_many(artifact: tuple[Path, Manifest]) -> None:
    found = conversation(artifact)
    found.show(found.look(np.zeros((1, 3, SMALL.image, SMALL.image), np.float32)))
    with pytest.raises(EdgewrightError, match=r"holds 8 image tokens, and 4 features"):
        found.prefill(prompt(2, 0))


def test_an_image_token_that_the_model_says_shows_nothing(artifact: tuple[Path, Manifest]) -> None:
    found = conversation(artifact)
    found.show(found.look(np.ones((1, 3, SMALL.image, SMALL.image), np.float32)))
    beginning = prompt(1, 0)
    found.prefill(beginning)
    embedded = found.entered(np.array([IMAGE], np.int64), len(beginning))["embeddings"]
    table = found.session.call("embed", "embed", input_ids=np.array([[IMAGE]], np.int64))["embeddings"]
    np.testing.assert_array_equal(embedded, table)
    assert np.isfinite(found.decode(IMAGE)).all()


def test_memory_is_that_of_the_most_tiles_and_the_whole_context(artifact: tuple[Path, Manifest]) -> None:
    folder, manifest = artifact
    session, driver = make_session(folder, manifest), driver_of(folder, manifest)
    assert driver is image_text
    assert driver.load(folder, manifest) == f"{CONTEXT // SMALL.tokens} tiles and {CONTEXT} tokens"
    session.load()
    events: dict[str, dict[str, Any]] = {"load": {"stand_in": None}}
    driver.run(
        session,
        manifest,
        Job(kind="memory", artifact=folder, prompt_tokens=None, steps=4),
        lambda name, **payload: events.update({name: payload}),
    )
    assert (events["prefill"]["tokens"], events["steady"]["tokens"]) == (CONTEXT - 4, 4)
    figures = {figure.name: figure for figure in driver.speed(events)}
    assert figures["host_vision"].at == "10 tiles" and figures["host_decode"].value > 0


def test_memory_on_a_phone_where_the_app_makes_fewer_tiles(
    artifact: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, manifest = artifact
    session, seen = make_session(folder, manifest), []
    session.load()
    monkeypatch.setattr(ImageText, "look", lambda self, pixels: seen.append(len(pixels)) or np.zeros((8, SMALL.hidden)))
    job, events = Job(kind="memory", artifact=folder, prompt_tokens=None, steps=4, tiles=2), {}
    image_text.run(session, manifest, job, lambda name, **payload: events.update({name: payload}))
    assert seen == [2] and events["vision"]["at"] == "2 tiles" and events["prefill"]["tokens"] == CONTEXT - 4
    assert image_text.load(folder, manifest, 2) == f"2 tiles and {CONTEXT} tokens"


TINY = Path(__file__).parents[2] / "recipes" / "checkpoints" / "tiny-smolvlm2"


@pytest.mark.parametrize(
    ("target", "scenes"),
    [("onnx", 6), *(pytest.param(name, 50, marks=pytest.mark.nightly) for name in ("onnx", "coreml", "mlx", "tvm"))],
)
def test_whole_answers_are_those_of_transformers(target: str, scenes: int, tmp_path: Path) -> None:
    """From image and question to text, over the checkpoint that ships: tiles, prompt, tokens and answer."""
    from transformers import SmolVLMForConditionalGeneration

    from artifacts.media.images import Pixels
    from recipes.checkpoints.scenes import held_out_scenes

    job = quantized_job(tmp_path / "quantized", TINY, target_options()[target](), HALF, max_tokens=256)
    folder = tmp_path / target
    manifest = packed(job, target, folder, companions=True)
    session = make_session(folder, manifest)
    session.load(exact=True)
    asked = Asked(session, folder, manifest)
    model = SmolVLMForConditionalGeneration.from_pretrained(TINY, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    description = from_processor(TINY)
    right = 0
    for example in held_out_scenes(scenes, first=5000):
        image: Pixels = np.asarray(example.image.convert("RGB"))
        prompt = f"<|im_start|>User:<image>{example.question}<end_of_utterance>\nAssistant:"
        prepared = prepare(prompt, description, [image])
        ids = torch.tensor([tokenizer.encode(prepared.text, add_special_tokens=False).ids])
        pixels = torch.from_numpy(normalise(prepared.pixels[0], description.images.normalisation))
        with torch.no_grad():
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=pixels[None],
                max_new_tokens=64,
                do_sample=False,
            )[0, ids.shape[1] :]
        said = asked.answer(prompt, [image])
        assert said == tokenizer.decode(out.tolist(), skip_special_tokens=True).strip()
        right += said == example.answer.strip()
    assert right >= scenes // 3  # no model that guesses
