"""How commands are declared: their parser, groups of them, and the arguments that several share.

What must not live here: what any command does. Standard library only, as `cli.py` is.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable
from typing import Any, NoReturn

from edgewright import streams


class Parser(argparse.ArgumentParser):
    """argparse's, whose errors are one message and the nearest valid choice."""

    def error(self, message: str) -> NoReturn:
        """argparse's message, with the nearest valid choice."""
        if "invalid choice: '" in message:
            word = message.split("'")[1]
            known = message.rpartition("(choose from ")[2].rstrip(")").replace("'", "").split(", ")
            if near := difflib.get_close_matches(word, known, n=1):
                message += f"; did you mean {near[0]!r}?"
        self.exit(2, f"error: {streams.plain(message)}\nSee {self.prog} --help\n")


def command(
    commands: Any, name: str, function: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    """A command that `function` runs."""
    made: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    made.set_defaults(function=function)
    return made


def group(commands: Any, name: str, text: str) -> Any:
    """A command that has commands of its own."""
    made = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    return made.add_subparsers(metavar="COMMAND", required=True)


def recipe_arguments(made: argparse.ArgumentParser, *, several: bool = False) -> None:
    """A recipe, or several, and what replaces parts of it."""
    nargs = "+" if several else None
    made.add_argument("recipe", nargs=nargs, metavar="NAME|PATH", help="a recipe that ships, or a recipe file")
    made.add_argument("--target", action="append", default=[], metavar="NAME", help="target instead of the recipe's")
    made.add_argument("--checkpoint", metavar="PATH", help="folder to use instead of the recipe's checkpoint")


def output(made: argparse.ArgumentParser, quiet: str | None = None) -> None:
    """The shape of what is printed; `quiet`: what that is good for, where a command knows it."""
    shape = made.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    if quiet:
        shape.add_argument("--quiet", action="store_true", help=quiet)
