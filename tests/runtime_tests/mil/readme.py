"""The table of operations in `runtime_tests/mil/README.md`, made from the cases that test them.

python -m tests.runtime_tests.mil.readme    # writes it anew
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from runtime_tests.mil import ops
from tests.runtime_tests.mil.cases import CASES, VALUE

README = Path(__file__).parents[3] / "runtime_tests" / "mil" / "README.md"
BEGIN, END = "<!-- operations: begin -->\n", "<!-- operations: end -->\n"
DECOMPRESSION = "coremltools' decompression, `test_weights.py`"
SAVED = "saved programs, `test_program.py`"
ELSEWHERE = {
    "constexpr_affine_dequantize": DECOMPRESSION,
    "constexpr_blockwise_shift_scale": DECOMPRESSION,
    "constexpr_lut_to_dense": DECOMPRESSION,
    "constexpr_sparse_to_dense": DECOMPRESSION,
    "constexpr_cast": "numpy, `test_weights.py`",
    "make_list": SAVED,
    "list_write": SAVED,
    "list_read": SAVED,
    "list_gather": SAVED,
    "list_scatter": SAVED,
    "list_length": SAVED,
    "cond": SAVED,
    "while_loop": SAVED,
    "read_state": SAVED,
    "write_state": SAVED,
}


def table() -> str:
    """One row for each operation: how many cases, and against what."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for case in CASES:
        counts[case.operation]["coremltools' value inference" if case.oracle == VALUE else "a definition in numpy"] += 1
    rows = []
    for name in sorted({*ops.table(), *ELSEWHERE}):
        how = ELSEWHERE.get(name) or ", ".join(f"{text} ({n})" for text, n in sorted(counts[name].items()))
        rows.append(f"| `{name}` | {how} |")
    head = f"{len(rows)} operations, {len(CASES)} cases.\n\n| operation | tested against (cases) |\n|---|---|\n"
    return head + "\n".join(rows) + "\n"


def with_table(text: str) -> str:
    """The page with its table as it should be."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}{table()}{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
