"""`edgewright adopt`: what a user gives, checked, and what became of it, in words. Adopting is `compiler/adopt`."""

from __future__ import annotations

import argparse
import difflib

from artifacts import EdgewrightError, user_path
from edgewright import bars, streams


def run(args: argparse.Namespace) -> int:
    """The command line's `adopt`. Raises EdgewrightError."""
    from compiler.adopt import Adopted, adopt, families

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
    streams.write(streams.plain("\n".join(lines)) + "\n")
    return 0
