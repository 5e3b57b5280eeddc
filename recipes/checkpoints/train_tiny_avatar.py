"""Train `tiny-avatar`: small networks of three talking heads, on speech and a face that this script makes.

    OMP_NUM_THREADS=1 python -m recipes.checkpoints.train_tiny_avatar [feathertalk] [audio2expression] [gaussian]

From the root of a clone, on one thread: two of OpenMP take many times as long on a machine that does other things too.
Weights are stored in half precision; figures on held-out clips, from the stored weights in float32, are printed and
written to `training.json`. Beside each checkpoint lie clips of training's own seeds, which packages are calibrated on,
and below `recipes/avatar/clips/` held-out ones, by which recipes judge (`avatar_clips.py`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import transformers

from recipes.checkpoints import avatar_clips, avatar_expression, avatar_gaussians, avatar_measures, avatar_renderer
from recipes.checkpoints.avatar_training import LICENCE, OUT, fold

SIZES = {
    "feathertalk": {
        "clips": 240,
        "first": 500,
        "rounds": [(800, 3e-3), (900, 3e-3), (1400, 3e-3), (800, 1e-3)],
        "rows": 8,
    },
    "audio2expression": {"clips": 500, "steps": 1600, "rows": 16},
    "gaussian": {"steps": 1500, "rows": 8},
}
README = f"""---
license: {LICENCE}
---
# tiny-avatar

Small talking heads, trained on made speech and a drawn face by `train_tiny_avatar.py`, to test with.
"""


def trained(name: str, folder: Path, state: Path | None) -> float:
    """Train a network into a folder; the minutes that it took."""
    if name == "feathertalk":
        encoder, unet, minutes = avatar_renderer.train(**SIZES[name], state=state)
        avatar_renderer.write(folder, encoder, fold(unet.to(memory_format=torch.contiguous_format)))  # type: ignore[call-overload]
    elif name == "audio2expression":
        model, minutes = avatar_expression.train(**SIZES[name])
        avatar_expression.write(folder, model)
    else:
        tensors, minutes = avatar_gaussians.train(**SIZES[name])
        avatar_gaussians.write(folder, tensors)
    return minutes


def measured(name: str, folder: Path) -> dict[str, Any]:
    measure = {
        "feathertalk": lambda: avatar_measures.renderer(8, folder),
        "audio2expression": lambda: avatar_measures.expression(24, folder),
        "gaussian": lambda: avatar_measures.gaussian(100, folder),
    }
    return avatar_measures.rounded(measure[name]())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", choices=[*SIZES, []], default=list(SIZES))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--state", type=Path, help="of feathertalk: where to keep what a killed run goes on from")
    parser.add_argument("--measure", action="store_true", help="train nothing: measure what is there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    file = args.out / "training.json"
    report = json.loads(file.read_text()) if file.exists() else {}
    for name in args.networks:
        folder = args.out / name
        minutes = report.get(name, {}).get("minutes") if args.measure else trained(name, folder, args.state)
        (folder / "README.md").write_text(README.replace("tiny-avatar", f"tiny-avatar: {name}", 1))
        avatar_clips.write(name, folder)
        report[name] = {**SIZES[name], "minutes": minutes, "stored": "float16", **measured(name, folder)}
        print(json.dumps({k: v for k, v in report[name].items() if k != "each"}, indent=2), flush=True)
    report |= {"torch": torch.__version__, "transformers": transformers.__version__}
    (args.out / "README.md").write_text(README)
    file.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
