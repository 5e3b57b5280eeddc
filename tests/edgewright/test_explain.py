"""`edgewright explain`: every word that the code can give has its screen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from artifacts import figures, manifest
from device_farm import profile, watch
from edgewright import explain, fit, report
from edgewright.hub import index
from runtime_tests import contributors, phones, validate

TYPES: dict[str, Any] = {
    "of a check": figures.Verdict,
    "how a figure was obtained": figures.Obtained,
    "of a package": manifest.Standing,
    "of a validation": get_type_hints(manifest.ValidationRecord)["verdict"],
    "of a run": report.RunVerdict,
    "of a phone": get_type_hints(report.PhoneReport)["verdict"],
    "of a phone's result": get_type_hints(phones.ProfileResult)["verdict"],
    "of a target": get_type_hints(validate.Validation)["verdict"],
    "of a variant": get_type_hints(index.Judged)["verdict"],
    "of a plan": fit.Word,
    "of a phone's figure": profile.Confidence,
    "of a memory run": watch.Outcome,
    "of a contributor": get_type_hints(contributors.Contributor)["known"],
}


def words(kind: Any) -> Iterator[str]:
    if get_origin(kind) is Literal:
        yield from get_args(kind)
    for part in get_args(kind):
        if get_origin(part) is not None:
            yield from words(part)


@pytest.mark.parametrize("kind", TYPES)
def test_every_word_that_the_code_can_give_is_explained(kind):
    found = list(words(TYPES[kind]))
    assert found and set(found) <= set(explain.WORDS)


def test_no_word_is_explained_that_nothing_gives():
    assert set(explain.WORDS) == {word for kind in TYPES.values() for word in words(kind)}


@pytest.mark.parametrize("word", explain.WORDS)
def test_each_is_one_screen(edgewright, word):
    code, out, error = edgewright("explain", *word.split())
    lines = out.splitlines()
    assert (code, error, lines[0]) == (0, "", word)
    assert len(lines) <= 24 and max(map(len, lines)) <= 80
    assert [line[:4] for line in lines if line[:1].isupper()] == ["What", "When", "Then"]
    found = json.loads(edgewright("explain", word.upper(), "--json")[1])
    assert found["word"] == word and found["meaning"]


def test_all_of_them_are_one_screen(edgewright):
    code, out, _ = edgewright("explain")
    assert code == 0 and [line[:22].strip() for line in out.splitlines()] == list(explain.WORDS)
    assert len(out.splitlines()) <= 24 and max(map(len, out.splitlines())) <= 80
    assert set(json.loads(edgewright("explain", "--json")[1])) == set(explain.WORDS)


@pytest.mark.parametrize(("word", "hint"), [("tigt", "did you mean tight?"), ("xyzzy", "known: passed, failed")])
def test_an_unknown_word_names_near_ones(edgewright, word, hint):
    code, out, error = edgewright("explain", word)
    assert (code, out) == (2, "") and f"{word!r} is no word of a verdict" in error and hint in error
