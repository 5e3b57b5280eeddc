"""Where the process meets the outside: stdout, stderr, and text that may say more to a terminal than it shows.

What lives here: standard streams that are closed, full or gone, and control characters made visible. What must not:
any wording of results (`render.py`). Loads the standard library only: the command line needs it before anything else.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import textwrap
from typing import Any

# Everything that moves a terminal's cursor, changes its state or reorders what is read: the control characters of
# ASCII and Latin-1, separators of lines that only some programs break, and the marks of Unicode's bidirectional text.
_CONTROLS = [*range(0x20), *range(0x7F, 0xA0), 0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A)]
_ONE_LINE = {code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in _CONTROLS}
_ONE_LINE |= {ord("\n"): "\\n", ord("\t"): "\\t", ord("\r"): "\\r"}
_LINES = {code: shown for code, shown in _ONE_LINE.items() if chr(code) not in "\n\t"}
_JSON = {code: f"\\u{code:04x}" for code in _CONTROLS if code >= 0x20}  # json itself escapes those below

COLUMNS = 80  # of a log, and of whatever else is no terminal


class OutputLost(Exception):
    """What was found could not be shown: stdout is full, or its device failed."""

    exit_code: int = 2


class ReaderGone(OutputLost):
    """Whoever read stdout closed it: `edgewright … | head`."""

    exit_code: int = 141


def plain(text: str, *, lines: bool = True) -> str:
    """Text with every control character spelled out; with `lines`, line ends and tabs stay."""
    return text.translate(_LINES if lines else _ONE_LINE)


def prepare() -> None:
    """Make the standard streams safe to use: closed ones go to the null device, and stderr never fails.

    A descriptor that is closed would be given to the first file that is opened, and what is printed would land there.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number that is free
    if sys.stdout is None:
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), "utf-8")
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        encoding = sys.stderr.encoding if sys.stderr else "utf-8"
        raw = io.BufferedWriter(_Lossy(2, "w", closefd=False))
        sys.stderr = io.TextIOWrapper(raw, encoding, "replace", line_buffering=True)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without ✓ shows ?


def write(text: str) -> None:
    """Write on stdout, at once. Raises OutputLost."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        discard()
        raise ReaderGone from None
    except OSError as error:
        discard()
        raise OutputLost(f"stdout: cannot be written ({error.strerror}); give the output another place") from None


def write_lines(text: str) -> None:
    """Write text with control characters spelled out; a line that is too long goes on below, indented, words whole.

    Raises OutputLost.
    """
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else COLUMNS
    write("".join(f"{part}\n" for line in plain(text).splitlines() for part in folded(line, width)))


def folded(line: str, width: int = COLUMNS) -> list[str]:
    """One line as lines of at most `width` columns where no word is longer; those below are indented by two more."""
    if len(line) <= width:
        return [line]
    below = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.wrap(line, width, subsequent_indent=below, break_long_words=False, break_on_hyphens=False)


def write_json(value: Any) -> None:
    """Write one JSON value on stdout, its control characters escaped. Raises OutputLost."""
    write(json.dumps(value, indent=2, ensure_ascii=False, default=str).translate(_JSON) + "\n")


def say_error(message: str) -> None:
    """One error on stderr."""
    print(f"error: {plain(message)}", file=sys.stderr)


def discard() -> None:
    """What stdout still holds goes nowhere, so that its end as a stream raises nothing more."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except io.UnsupportedOperation:  # not a file: somebody captures it
        return


class _Lossy(io.FileIO):
    """A file that takes everything: a message nobody can read must not end the work that it is about."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)
