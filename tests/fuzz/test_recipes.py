"""Two thousand damaged recipes: each is built or refused in a sentence, in time, and nothing else is touched."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from random import Random

import pytest
import torch

from compiler import golden
from edgewright import api
from tests.fuzz import checkpoints, recipes
from tests.fuzz.doors import Place, verdict

PROFILE = Path(__file__).parents[2] / "device_farm" / "profiles" / "android-4gb.yaml"
_NEUTRAL_EVERY = 20


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A checkpoint, a phone, texts, and what no recipe should name: pipes, loops of links, a file of a terabyte."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("recipes")
    inputs = folder / "in"
    checkpoints.write(inputs / "weights", "ministral3")
    (inputs / "text.txt").write_text("def f(x):\n    return x + 1\n" * 200)
    (inputs / "chat.jsonl").write_text('{"text": "def f(x): return x"}\n' * 200)
    (inputs / "big.txt").touch()
    os.truncate(inputs / "big.txt", 1 << 40)
    for name in ("pipe", "pipe.yaml", "pipe.txt"):
        os.mkfifo(inputs / name)
    for name in ("loop.txt", "loop.yaml"):
        (inputs / name).symlink_to(name)
    shutil.copyfile(PROFILE, inputs / "phone.yaml")
    found = Place(inputs, folder / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(golden, "_MOST_PRODUCTS", 1.0)
        (inputs / "small.yaml").write_text(recipes.BUILT["calibrated"])
        yield found.timed(partial(go, found, "calibrated"))
    torch.set_num_threads(threads)


def go(place: Place, kind: str) -> None:
    """Build what can be built quickly; what names a Hub or asks for every target is planned."""
    if kind in recipes.BUILT:
        api.run(place.inputs / "small.yaml", out=place.out, validate=False)
    else:
        api.plan(place.inputs / "small.yaml")


def hold(seeds: Iterable[int], place: Place) -> None:
    """Damage a recipe and go through the door; what fails is told by its seed."""
    problems: dict[str, str] = {}
    codes: Counter[tuple[str, int | None]] = Counter()
    for seed in seeds:
        random = Random(seed)
        kind = random.choice(list(recipes.TEXTS))
        neutral = seed % _NEUTRAL_EVERY == 0
        change = recipes.neutral if neutral else recipes.damaged
        (place.inputs / "small.yaml").write_bytes(change(recipes.TEXTS[kind], random))
        answer = place.answer(partial(go, place, kind))
        codes[kind, answer.code] += 1
        problem = answer.problem
        if problem is None and neutral and answer.code != 0:
            problem = f"refused, and is sound: {answer.message}"
        if problem is not None:
            problems[f"seed {seed}, {kind}"] = problem
    assert not problems, verdict(problems, codes)
    assert sum(count for (_, code), count in codes.items() if code == 0) >= sum(codes.values()) / 10, codes


def test_a_few_damaged_recipes(place: Place) -> None:
    hold(range(60), place)


@pytest.mark.nightly
def test_two_thousand_damaged_recipes(place: Place) -> None:
    hold(range(2000), place)
