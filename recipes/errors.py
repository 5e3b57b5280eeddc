"""What is wrong with a recipe, and where: file, line, column, key path.

`recipes/` imports nothing of ours, so this error carries its exit code itself instead of deriving from the
house's base error.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

_SHOWN = 50


@dataclass(frozen=True)
class Problem:
    """One mistake. `line` and `column` count from 1; `key` is a path such as `quantize.rules[0].bits`."""

    line: int
    column: int
    key: str
    message: str


class RecipeError(Exception):
    """A recipe that cannot be used; the message lists every problem found, in the order of the file's lines."""

    exit_code: int = 2

    def __init__(self, source: str, problems: Sequence[Problem] | str) -> None:
        self.source = source
        if isinstance(problems, str):
            self.problems: tuple[Problem, ...] = ()
            super().__init__(f"{source}: {problems}")
            return
        self.problems = tuple(sorted(problems, key=lambda p: (p.line, p.column, p.key)))
        lines = [
            f"{source}:{p.line}:{p.column}: {p.key + ': ' if p.key else ''}{p.message}" for p in self.problems[:_SHOWN]
        ]
        if len(self.problems) > _SHOWN:
            lines.append(f"and {len(self.problems) - _SHOWN} more")
        if len(self.problems) > 1:
            lines.insert(0, f"{len(self.problems)} problems in {source}")
        super().__init__("\n  ".join(lines))


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error message: `; did you mean "bits"?`, or the list of what is known when nothing is near."""
    known = sorted(known)
    close = get_close_matches(word, known, n=1)
    if close:
        return f'; did you mean "{close[0]}"?'
    return f"; known: {', '.join(known)}" if known else ""
