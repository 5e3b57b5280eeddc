"""A thousand damaged checkpoints: each is built or refused in a sentence, in time, and nothing else is touched."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random

import pytest
import torch

from compiler import golden
from edgewright import api
from tests.fuzz import checkpoints
from tests.fuzz.doors import Place, verdict

RECIPE = """\
name: small
checkpoint: {path: weights}
quantize:
  rules:
    - {match: "*", bits: 4}
context: {max_tokens: 64}
targets: {onnx: {}, mlx: {}}
"""
KEEPING = RECIPE.replace("- {match", "- {match: model.embed_tokens, bits: 8}\n    - {method: keep, match")
EVERYWHERE = RECIPE.replace("mlx: {}", "mlx: {}, coreml: {}, tvm: {}")
# one case in eight is sound, and must be built
_NEUTRAL_EVERY = 8

Case = Callable[[Path, Random], None]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound checkpoint of each kind."""
    folder = tmp_path_factory.mktemp("sound")
    for kind in checkpoints.KINDS:
        checkpoints.write(folder / kind, kind)
    return folder


@pytest.fixture(scope="module")
def place(bases: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Inputs and output; fewer golden positions and one thread, since what is tested is what is read."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("checkpoints")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(golden, "_MOST_PRODUCTS", 1.0)
        found = Place(folder / "in", folder / "out")
        lay(bases, "ministral3", found)
        yield found.timed(lambda: build(found))
    torch.set_num_threads(threads)


def lay(bases: Path, kind: str, place: Place, recipe: str = RECIPE) -> Path:
    """A fresh copy of a sound checkpoint with its recipes."""
    shutil.rmtree(place.inputs, ignore_errors=True)
    shutil.copytree(bases / kind, place.inputs / "weights")
    (place.inputs / "small.yaml").write_text(recipe)
    (place.inputs / "everywhere.yaml").write_text(EVERYWHERE)
    return place.inputs / "weights"


def build(place: Place) -> None:
    api.run(place.inputs / "small.yaml", out=place.out, validate=False)


def hold(seeds: Iterable[int], bases: Path, place: Place) -> None:
    """Damage, plan for every target, build for two; what fails is told by its seed."""
    problems: dict[str, str] = {}
    codes: Counter[tuple[str, int | None]] = Counter()
    for seed in seeds:
        random = Random(seed)
        kind = random.choice(checkpoints.KINDS)
        neutral = seed % _NEUTRAL_EVERY == 0
        damage = random.choice(checkpoints.NEUTRAL if neutral else checkpoints.DAMAGES)
        keeping = kind == "packed" and random.random() < 0.7
        damage(lay(bases, kind, place, KEEPING if keeping else RECIPE), random)
        planned = place.answer(lambda: api.plan(place.inputs / "everywhere.yaml"))
        built = place.answer(lambda: build(place))
        codes[damage.__name__, built.code] += 1
        problem = planned.problem or built.problem
        if problem is None and neutral and built.code != 0:
            problem = f"refused, and is sound: {built.message}"
        if problem is not None:
            problems[f"seed {seed}, {kind}, {damage.__name__}"] = problem
    assert not problems, verdict(problems, codes)
    # so that not everything is refused: what a mutation leaves sound is built
    assert sum(count for (_, code), count in codes.items() if code == 0) >= sum(codes.values()) / 6, codes


@pytest.mark.parametrize("kind", checkpoints.KINDS)
def test_the_checkpoints_that_are_damaged_are_sound(bases: Path, place: Place, kind: str) -> None:
    lay(bases, kind, place, KEEPING if kind == "packed" else RECIPE)
    assert place.answer(lambda: build(place)).code == 0


def test_a_few_damaged_checkpoints(bases: Path, place: Place) -> None:
    hold(range(12), bases, place)


@pytest.mark.nightly
def test_a_thousand_damaged_checkpoints(bases: Path, place: Place) -> None:
    hold(range(1000), bases, place)
