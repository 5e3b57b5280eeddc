"""The sandbox's acceptance: 5 % over a budget of 500 MB is killed and reported, 5 % under passes, every time.

``python -m tests.device_farm.sandbox_acceptance [repeats]`` prints the table (10 repeats by default, a few minutes);
the test suite runs the same attempts fewer times.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from device_farm import SandboxResult, available_mechanisms, run
from device_farm.sandbox import Mechanism
from device_farm.watch import Rule

BUDGET = 500_000_000
WEIGHTS = 300_000_000
WAYS = ("arrays", "pages", "memset", "weights")
CHILD = [sys.executable, str(Path(__file__).with_name("child.py"))]


def rules() -> list[tuple[Rule, Mechanism]]:
    """Every rule with every mechanism that works on this machine; the watchdog always does."""
    return [("ios", "watchdog"), *(("android", mechanism) for mechanism in available_mechanisms())]


def make_weights(folder: Path) -> Path:
    """A file of 300 MB that is not made of holes."""
    path = folder / "weights.bin"
    with path.open("wb") as file:
        for _ in range(WEIGHTS // 1_000_000):
            file.write(b"\x5a" * 1_000_000)
    return path


def attempt(rule: Rule, mechanism: Mechanism, way: str, share: float, weights: Path) -> SandboxResult:
    """Runs a child that holds ``share`` of the budget in anonymous memory, if that is its way beside mapped weights."""
    command = [*CHILD, way, str(int(BUDGET * share))] + ([str(weights)] if way == "weights" else [])
    return run(command, limit_bytes=BUDGET, rule=rule, mechanism=mechanism, cold_paths=[weights], timeout_s=120)


def main(repeats: int) -> int:
    wrong = 0
    print(f"budget {BUDGET / 1e6:.0f} MB, {repeats} times each; peaks are anonymous MB over the baseline")
    print("rule     mechanism way       5 % over: killed         peak   5 % under: passed         peak longest gap")
    with tempfile.TemporaryDirectory() as folder:
        weights = make_weights(Path(folder))
        for rule, mechanism in rules():
            for way in WAYS:
                over = [attempt(rule, mechanism, way, 1.05, weights) for _ in range(repeats)]
                under = [attempt(rule, mechanism, way, 0.95, weights) for _ in range(repeats)]
                killed = sum(result.outcome == "over_budget" for result in over)
                passed = sum(result.outcome == "ok" for result in under)
                wrong += 2 * repeats - killed - passed
                gap = max(result.longest_gap_ms for result in over + under)
                figures = f"{killed:>13}/{repeats:<2} {_range(over):>12} {passed:>16}/{repeats:<2} {_range(under):>12}"
                print(f"{rule:8} {mechanism:9} {way:8}{figures} {gap:8.0f} ms", flush=True)
                for result in [r for r in over if r.outcome != "over_budget"] + [r for r in under if r.outcome != "ok"]:
                    print(f"    wrong: {result.outcome}, {result.detail} {result.stderr_tail}")
    return 1 if wrong else 0


def _range(results: list[SandboxResult]) -> str:
    peaks = [result.peak_unreclaimable_bytes / 1e6 for result in results]
    return f"{min(peaks):.0f}-{max(peaks):.0f}"


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10))
