"""``python -m device_farm.calibration``: fit, leave out, write ``device_farm/coefficients.json``, say the errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from device_farm.calibration import apple, language, networks

FILE = Path(__file__).parents[1] / "coefficients.json"
_SOURCES = {
    language.POCKETPAL: "pocketpal-ai benchmarks (MIT), read 2026-11: calibration/data/pocketpal.csv",
    language.GENIEX: "qai-hub-models 0.65.0 (BSD-3), read 2026-11: calibration/data/geniex.csv",
    "networks": "AI Hub Models (BSD-3), ONNX Runtime on the CPU, snapshot of 2026-02-12: calibration/data/networks.csv",
    "mlx": "apple-silicon-llm-bench, read 2026-11: calibration/data/mlx.csv",
}


def calibrate() -> dict[str, Any]:
    """All coefficients, with where they come from and the errors on what was left out."""
    return {
        "written_by": "python -m device_farm.calibration",
        "sources": _SOURCES,
        "language": language.calibrate(),
        "networks": networks.calibrate(),
        "mlx": apple.calibrate(),
    }


def text(found: dict[str, Any]) -> str:
    """The content of the file."""
    return json.dumps(found, indent=1, sort_keys=True) + "\n"


def main() -> None:
    found = calibrate()
    FILE.write_text(text(found), encoding="utf-8")
    parts = {
        **{f"{app}, {kind}": of[kind] for app, of in found["language"].items() for kind in language.KINDS},
        **{f"networks, {precision}": found["networks"][precision] for precision in ("w8a8", "w8a16")},
        "mlx, decode": found["mlx"],
    }
    for name, part in parts.items():
        for what, reached in part["left_out"].items():
            inside = f", {reached['within']:.0%} within the widest band" if "within" in reached else ""
            found_errors = f"{reached['median']:.1%} / {reached['p90']:.1%} of {reached['rows']} rows"
            print(f"{name}, {what} left out: {found_errors}{inside}")


if __name__ == "__main__":
    main()
