"""From text: does a runtime that reads text itself make the same tokens of it as Hugging Face's tokenizer, and go on
with the same ones as the driver?

What lives here: the prompt's text and tokens, and the checks of what a runtime made of them. What must not: running
one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from artifacts import Check, checked, ran_here
from runtime_tests.golden import Golden
from runtime_tests.parity import decode_span
from runtime_tests.vectors import PARITY

TOKENIZER = "tokenizer.json"
_SHOWN = 4


@dataclass(frozen=True)
class Prompt:
    """Token ids, and the text that they are of; None where the artifact has no tokenizer."""

    text: str | None
    ids: list[int]

    def array(self) -> NDArray[np.int64]:
        """The ids [S]."""
        return np.asarray(self.ids, np.int64)


def read_prompt(artifact: Path, golden: Golden, room: int) -> Prompt:
    """The beginning of the first golden sequence as text and as Hugging Face's tokenizer encodes that, special tokens
    included, in at most ``room`` tokens; the tokens themselves without a tokenizer, or where not one would fit."""
    tokens = [int(token) for token in golden.tokens[0, : decode_span(golden)[0]]]
    path = artifact / TOKENIZER
    if not path.is_file():
        return Prompt(None, tokens[:room])
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    text = tokenizer.decode(tokens)
    ids: list[int] = tokenizer.encode(text).ids
    while text and len(ids) > room:
        text = text[: len(text) // 2]
        ids = tokenizer.encode(text).ids
    return Prompt(text, ids) if 0 < len(ids) <= room else Prompt(None, tokens[:room])


def tokens_checks(
    runtime: str, expected: Sequence[int], by_default: Sequence[int], as_asked: Sequence[int], how: str
) -> list[Check]:
    """One check where the runtime's tokens of the text are Hugging Face's, by default or as ``how`` asks it to.

    Where only asking helps, what it does by default is reported beside it, for whoever writes the app.
    """
    checks = []
    equal, default_equal = list(as_asked) == list(expected), list(by_default) == list(expected)
    if not default_equal and list(as_asked) != list(by_default):
        figure = ran_here(_name(runtime, "tokens_equal_by_default"), default_equal, "boolean")
        reason = f"{runtime} {_difference(by_default, expected)}" + (
            f": an app has to ask for it, {how}." if equal else "."
        )
        checks.append(checked(figure, PARITY, f"{runtime}: same tokens by default", None, "at least", reason=reason))
    figure = ran_here(_name(runtime, "tokens_equal"), equal, "boolean")
    reason = "" if equal else f"{runtime} {_difference(as_asked, expected)}."
    checks.append(checked(figure, PARITY, f"{runtime}: same tokens", 1.0, "at least", reason=reason))
    return checks


def no_tokens_check(runtime: str, problem: str) -> Check:
    """The check where the runtime cannot read the artifact's tokenizer."""
    return Check(
        group=PARITY,
        name=_name(runtime, "tokens_equal"),
        label=f"{runtime}: same tokens",
        value=None,
        limit=1.0,
        direction="at least",
        unit="boolean",
        obtained=None,
        verdict="not assessed",
        reason=f"{runtime} cannot read the package's tokenizer: {problem}",
    )


def text_check(
    runtime: str, found: Sequence[int], plain: Sequence[int], eos: object, stand_in: str | None = None
) -> Check:
    """Whether the runtime went on as the driver did; it may stop early, but only at an eos token."""
    ends = {eos} if isinstance(eos, int) else set(eos) if isinstance(eos, (list, tuple)) else set()
    ended = bool(found) and found[-1] in ends
    equal = list(found) == list(plain[: len(found)]) and (len(found) == len(plain) or ended)
    figure = ran_here(_name(runtime, "greedy_equal"), equal, "boolean", stand_in)
    return checked(figure, PARITY, f"{runtime}: same answer", 1.0, "at least")


def options_in_words(options: Mapping[str, object]) -> str:
    """How an app sets options of genai's tokenizer."""
    return f"tokenizer.update_options({', '.join(f'{key}={value!r}' for key, value in options.items())})"


def _name(runtime: str, what: str) -> str:
    return f"{runtime.replace('-', '_')}_{what}"


def _difference(found: Sequence[int], expected: Sequence[int]) -> str:
    first = next(
        (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), min(len(found), len(expected))
    )
    sides = [
        f"[{'…, ' if first else ''}{', '.join(map(str, side[first : first + _SHOWN]))}, …]"
        for side in (found, expected)
    ]
    return f"makes {sides[0]} of the text where Hugging Face's tokenizer makes {sides[1]}"
