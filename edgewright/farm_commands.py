"""The command `farm setup`: what brings the ARM64 tier to this machine.

Like `cli.py`, loads nothing but the standard library until a command runs.
"""

from __future__ import annotations

import argparse
from typing import Any

from edgewright import streams
from edgewright.arguments import command, group, output


def declare(commands: Any) -> None:
    """Add it to the command line."""
    farm = group(commands, "farm", "setup: what phones are emulated with")
    text = "download a Python and the runtimes for ARM64 (150 MB), for `validate --arm64`; nothing if all is there"
    output(command(farm, "setup", setup, text))


def setup(args: argparse.Namespace) -> int:
    """Run `edgewright farm setup`."""
    from device_farm import arm64_tier
    from edgewright import bars

    with bars.progress(shown=not args.json) as progress:
        fetched = arm64_tier.install(progress)
    if args.json:
        uncounted = arm64_tier.uncounted()
        streams.write_json({"folder": str(arm64_tier.place()), "fetched": fetched, "uncounted": uncounted})
    else:
        done = "installed" if fetched else "whole, nothing to do"
        streams.write(streams.plain(f"ARM64 tier: {done}; {arm64_tier.place()}\n"))
        problem = arm64_tier.uncounted()
        streams.write_lines(f"instruction counts: {f'not available: {problem}' if problem else 'available'}")
    return 0
