"""All benchmarks, one after another: `make bench`, or `python -m tests.bench NAME…` for some.

Every module here that has `main` is one; each runs in a process of its own, with its own options at their defaults.
"""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

HELPERS = {"__main__", "build", "calibrate", "decode", "llamacpp", "measure", "peers", "quality", "synthetic"}


def main() -> int:
    known = sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]) if m.name not in HELPERS)
    names = sys.argv[1:] or known
    if unknown := set(names) - set(known):
        print(f"no benchmark named {', '.join(sorted(unknown))}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    failed = [name for name in names if subprocess.run([sys.executable, "-m", f"tests.bench.{name}"]).returncode]
    for name in failed:
        print(f"benchmark {name} failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
