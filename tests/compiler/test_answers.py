"""Greedy answers of many prompts in few passes are those of one token after another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from compiler.answers import Prompt, greedy
from compiler.models.base import Model
from compiler.slots import Weights
from tests.compiler.conftest import MINISTRAL3, original, random_tensors, reference_logits, save

CONTEXT, END = 40, 2


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Weights]:
    folder = tmp_path_factory.mktemp("answers") / "small"
    return original(save(folder, MINISTRAL3, random_tensors(MINISTRAL3, 3)), CONTEXT)


def one_by_one(model: Model, weights: Weights, prompt: list[int], most: int) -> list[int]:
    said: list[int] = []
    while len(said) < min(most, CONTEXT - len(prompt)):
        ids = np.array([[*prompt, *said]])
        token = int(reference_logits(model, weights, ids)[0, -1].argmax())
        if token == END:
            break
        said.append(token)
    return said


def answers(small: tuple[Model, Weights], prompts: list[list[int]], guesses: list[list[int]], most: int) -> Any:
    model, weights = small
    given = [Prompt(np.array(ids, np.int64)) for ids in prompts]
    return greedy(model, {}, weights, lambda: lambda ids, _: ids, given, guesses, most, lambda done, total: None)


def test_whatever_was_guessed(small: tuple[Model, Weights]) -> None:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 160, n).tolist() for n in (1, 5, 5, 12, 30, CONTEXT - 1)]
    expected = [one_by_one(*small, prompt, 12) for prompt in prompts]
    assert len(set(map(len, expected))) > 1  # the context ends some of them
    wrong = [rng.integers(3, 160, 20).tolist() for _ in prompts]
    nearly = [[*said[:2], 9, *said[3:]] for said in expected]
    for guesses in ([[] for _ in prompts], expected, wrong, nearly):
        assert answers(small, prompts, guesses, 12) == expected


def test_an_end_token_ends_an_answer(small: tuple[Model, Weights], monkeypatch: pytest.MonkeyPatch) -> None:
    model, weights = small
    prompt = [5, 6, 7, 8]
    whole = one_by_one(model, weights, prompt, 12)
    stop = whole[4]
    first = whole.index(stop)
    monkeypatch.setitem(model.constants, "eos", [stop])  # type: ignore[arg-type]  # a dict, behind a Mapping
    assert answers(small, [prompt, prompt], [[], whole], 12) == [whole[:first]] * 2


def test_a_right_guess_is_one_pass(small: tuple[Model, Weights], monkeypatch: pytest.MonkeyPatch) -> None:
    from compiler import answers as module

    passes = []
    check = module._check
    monkeypatch.setattr(module, "_check", lambda *a: (passes.append(1), check(*a))[1])
    prompts = [[5, 6, 7, 8], [9, 10, 11]]
    expected = [one_by_one(*small, prompt, 8) for prompt in prompts]
    assert answers(small, prompts, expected, 8) == expected and len(passes) == 1
    passes.clear()
    assert answers(small, prompts, [[], []], 8) == expected and len(passes) == 8
