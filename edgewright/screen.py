"""An answer on its way to whoever reads it: text as it comes, and below it, on a terminal, a line of figures.

What lives here: the terminal's control sequences, kept to a row that scrolling leaves alone. What must not: wording.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from edgewright import streams

_SAVE, _RESTORE, _CLEAR, _DIM, _PLAIN = "\x1b7", "\x1b8", "\x1b[2K", "\x1b[2m", "\x1b[0m"
_EVERY_S = 0.1  # at most so often; a terminal over a network need not keep up with every token


class Screen:
    """Stdout for answers, and a place for what is said about them: beside them on a terminal, else stderr.

    live: whether figures are shown while an answer comes.
    """

    def __init__(self, *, live: bool) -> None:
        self.terminal = sys.stdout.isatty()
        self._live = live and self.terminal and os.environ.get("TERM", "dumb") != "dumb"
        self._rows = 0
        self._drawn = 0.0
        self._line_open = False

    def words(self, text: str) -> None:
        """A piece of an answer. Raises OutputLost."""
        if text:
            streams.write(streams.plain(text) if self.terminal else text)
            self._line_open = not text.endswith("\n")

    def end(self) -> None:
        """The answer is over: what follows begins a line."""
        if self._line_open:
            streams.write("\n")
        self._line_open = False

    def note(self, text: str) -> None:
        """A line about what happens."""
        text = streams.plain(text, lines=False)
        if self._live:
            streams.write(f"{_DIM}{text}{_PLAIN}\n")
        else:
            print("\n".join(streams.folded(text)), file=sys.stderr, flush=True)

    @contextmanager
    def answering(self) -> Iterator[None]:
        """While an answer comes, the last row is that of `figures`."""
        try:
            yield
        finally:
            if self._rows:
                streams.write(f"{_SAVE}\x1b[r\x1b[{self._rows};1H{_CLEAR}{_RESTORE}")
                self._rows = 0

    def figures(self, text: str) -> None:
        """Show this line below the answer, where there is a terminal for it."""
        now = time.monotonic()
        if not self._live or now < self._drawn + _EVERY_S:
            return
        self._drawn = now
        columns, rows = shutil.get_terminal_size()
        if rows < 3:
            return
        if rows != self._rows:  # the row below is made free first, and the text scrolls above it from now on
            self._rows = rows
            streams.write(f"\n\x1b[A{_SAVE}\x1b[1;{rows - 1}r{_RESTORE}")
            if not self._line_open:
                streams.write("\r")
        shown = streams.plain(text, lines=False)[: columns - 1]
        streams.write(f"{_SAVE}\x1b[{rows};1H{_CLEAR}{_DIM}{shown}{_PLAIN}{_RESTORE}")
