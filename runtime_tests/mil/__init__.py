"""A reference executor for Core ML ML Programs: runs a saved .mlpackage with torch, on any machine.

`package` opens and checks the folder, `blob` its weight file, `values` turns MIL's types and constants into tensors,
`ops` holds one function per MIL operation, `program` runs a function with states and control flow, `bisect` finds the
first operation that differs from a reference, `memory` counts bytes.

It is our reading of the MIL specification, not Apple's runtime: README.md says how each operation was checked. What
must not live here: anything that knows recipes, checkpoints or the compiler.
"""

from __future__ import annotations

from artifacts import EdgewrightError


class PackageError(EdgewrightError):
    """A package that is damaged or beyond this executor: what, where, and what to do."""
