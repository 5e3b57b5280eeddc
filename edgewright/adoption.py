"""`edgewright adopt`: what a user gives, checked, and what became of it, in words. Adopting is `compiler/adopt`.

Like `cli.py`, loads nothing but the standard library until the command runs.
"""

from __future__ import annotations

import argparse
import difflib

from edgewright import streams


def arguments(command: argparse.ArgumentParser) -> None:
    """What `edgewright adopt` takes."""
    command.add_argument("file", nargs="+", metavar="FILE", help="a pickle of a state dict; read for its tensors alone")
    command.add_argument("--family", required=True, metavar="NAME", help="what the files are of, such as feathertalk")
    command.add_argument("--out", required=True, metavar="FOLDER", help="a folder that is not there yet")
    command.add_argument("--license", metavar="ID", help="of the weights, for the cards of what is made from them")


def run(args: argparse.Namespace) -> int:
    """The command line's `adopt`. Raises EdgewrightError."""
    from artifacts import EdgewrightError, user_path
    from compiler.adopt import Adopted, adopt, families
    from edgewright import bars

    known = families()
    if args.family not in known:
        near = difflib.get_close_matches(args.family, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise EdgewrightError(f"--family: {args.family!r} cannot be adopted, only {', '.join(known)}{hint}")
    files = [user_path(file, "FILE") for file in args.file]
    with bars.progress(shown=not args.json) as progress:
        found: Adopted = adopt(files, args.family, user_path(args.out, "--out"), args.license, progress)
    if args.json:
        streams.write_json(found.to_json())
        return 0
    folded = ", ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in found.folded.items())
    lines = [
        f"{found.folder}: {found.family}, {found.parameters / 1e6:.2f} M parameters: {', '.join(found.components)}",
        f"  folded     {folded or 'nothing'}",
        *([f"  not read   {found.unused}"] if found.unused else []),
        f"  licence    {found.licence or 'not stated: give --license, or cards will say that nobody did'}",
        *(f"  from       {name}  sha256 {digest}" for name, digest in found.files.items()),
    ]
    streams.write_lines("\n".join(lines))
    return 0
