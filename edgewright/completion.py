"""`edgewright completion SHELL`: a script that completes commands, options, and names of phones, targets and recipes.

The script is shtab's, made of the parser itself; names are those of the package that printed it. What must not live
here: the command line (`cli.py`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from edgewright import streams
from edgewright.arguments import command

SHELLS = ("bash", "zsh", "fish")
_FILES = ("ARTIFACT", "CHECKPOINT", "FILE", "PATH")
_FOLDERS = ("DIR", "FOLDER")


def declare(commands: Any, parser: Callable[[], argparse.ArgumentParser]) -> None:
    """Add it to the command line."""
    made = command(
        commands,
        "completion",
        partial(run, parser),
        "print a script that completes commands, options and names in a shell",
    )
    made.description = (
        'Print a script for a shell. bash: put `eval "$(edgewright completion bash)"` into ~/.bashrc. zsh: save it as '
        "_edgewright in a folder of $fpath. fish: save it as ~/.config/fish/completions/edgewright.fish."
    )
    made.add_argument("shell", choices=SHELLS, help="whose script")


def run(parser: Callable[[], argparse.ArgumentParser], args: argparse.Namespace) -> int:
    """Run `edgewright completion`."""
    import shtab

    made = parser()
    functions = _name_choices(made, args.shell)
    streams.write(shtab.complete(made, args.shell, preamble=functions) + "\n")
    return 0


def _name_choices(made: argparse.ArgumentParser, shell: str) -> str:
    """Give every argument that takes a name of ours its names, and every one that takes a path shtab's own rule.

    Where it may be either, bash offers both, by functions that are returned; the others know one rule for an argument,
    and offer the names.
    """
    import shtab

    from compiler.targets import target_options
    from device_farm import list_profiles
    from edgewright.explain import WORDS
    from recipes.load import shipped

    phones = list_profiles()
    names = {
        "profile": phones,
        "phone": phones,
        "target": list(target_options()),
        "recipe": list(shipped()),
        "word": sorted({part for word in WORDS for part in word.split()}),
    }
    functions: dict[str, str] = {}
    for action in _actions(made):
        metavar = str(action.metavar)
        known = names.get(action.dest) if metavar.startswith(("NAME", "WORD")) else None
        if known is not None and metavar == "NAME|PATH" and shell == "bash":
            function = f"_edgewright_{action.dest}_file"  # by this end shtab knows that a folder is gone into
            functions[function] = f'{function}() {{ compgen -W "{" ".join(known)}" -- "$1"; compgen -f -- "$1"; }}\n'
            action.complete = {"bash": function}  # type: ignore[attr-defined]
        elif known is not None:
            action.choices = known
        elif metavar in _FOLDERS + _FILES:
            action.complete = shtab.DIRECTORY if metavar in _FOLDERS else shtab.FILE  # type: ignore[attr-defined]
    return "".join(functions.values())


def _actions(made: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in made._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in dict.fromkeys(action.choices.values()):
                yield from _actions(below)
        else:
            yield action
