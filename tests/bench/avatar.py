"""Talking avatars at their published geometries: INT8 packages beside float32 ones, and Gaussians folded and not.

    python -m tests.bench.avatar [--work FOLDER] [--rounds N]

Our recipes for ONNX Runtime over random weights, each entry called with the same inputs as the same package in float32;
ratios are medians over interleaved rounds, so what else the machine does counts on both sides. The Gaussians are held
against LAM's own computation, who the avatar is not folded, exported here from PyTorch, after both have given the same
points. The same packages for TVM are timed beside onnxruntime's float32. MLX is not: its kernels for a CPU stand in for
Metal's and take seconds a frame, which says nothing of an iPhone. Which convolutions cost a picture too much is
nothing that random weights know: those of the U-Net's tail that a trained one was measured to need in float stay there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.bench.measure import python, size_of, table
from tests.bench.synthetic import ROOT

RECIPES = ("feathertalk", "feathertalk-mobileone", "audio2expression", "gaussian")
THREADS, POINTS, VERTICES, SHAPES = 1, 20018, 5023, 300
LIMITS = {
    ("feathertalk", "audio.encode"): 0.5,
    ("feathertalk", "renderer.frame"): 0.5,
    ("feathertalk-mobileone", "renderer.frame"): 0.9,
    ("audio2expression", "expression.express"): 0.75,
    ("gaussian", "folded"): 0.2,
}
TAIL = ("unet.outc.*", "unet.up4.conv.double_conv.1.*")
Call = Callable[[], Any]


def checkpoint(folder: Path, name: str) -> Path:
    """Random weights of a recipe's geometry, at the scale that keeps activations as large as they come."""
    from safetensors.numpy import save_file

    from compiler.models.base import read_model

    if name == "gaussian":
        return _adopted(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((ROOT / "recipes" / "avatar" / f"{name}.config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    random, tensors = np.random.default_rng(0), {}
    for slot in read_model(config, None, 2).slots:
        made = random.standard_normal(slot.shape, np.float32) * np.float32((2 / slot.columns) ** 0.5)
        tensors[slot.tensor] = made if not slot.is_vector else np.full(slot.shape, slot.kind == "norm", np.float32)
    save_file(tensors, folder / "model.safetensors")
    return folder


def _adopted(folder: Path) -> Path:
    import torch

    from artifacts import silent
    from compiler.adopt import adopt

    folder.parent.mkdir(parents=True, exist_ok=True)
    torch.save(_head(), file := folder.parent / "avatar.pth")
    return adopt([file], "gaussian", folder, "cc-by-nc-4.0", silent).folder


def _head() -> dict[str, Any]:
    from tests.compiler.avatars import flame

    return flame(POINTS, VERTICES, SHAPES)


def package(work: Path, name: str, bits: int, target: str = "onnx") -> Path:
    """The package of a shipped recipe, or of the same with all weights in float32."""
    recipe = yaml.safe_load((ROOT / "recipes" / "avatar" / f"{name}-int8.yaml").read_text())
    recipe |= {"name": f"{name}-{bits}", "targets": {target: {"triples": []} if target == "tvm" else {}}}
    for rule in recipe["quantize"]["rules"]:
        rule.pop("min_snr", None)
    if name.startswith("feathertalk"):
        recipe["quantize"]["rules"][:0] = [{"match": match, "bits": 16} for match in TAIL]
    if bits == 32:
        recipe["quantize"] = {
            "rules": [{"match": "*", "bits": 16}]
        }  # half precision, which ONNX packages hold in float32
    source = work / name
    if not source.exists():
        checkpoint(source, name)
    del recipe["validate"], recipe["checkpoint"]["config"]
    recipe["checkpoint"]["path"] = str(source)
    found = work / recipe["name"] / target
    if not found.exists():
        (file := work / f"{recipe['name']}.yaml").write_text(yaml.safe_dump(recipe))
        python("edgewright.cli", "run", file, "--out", work, "--no-validate", "--quiet")
    return found


def entries(folder: Path) -> dict[str, Call]:
    """A call of every entry of a package that an app makes again and again, in its own session."""
    from artifacts import read_manifest
    from artifacts.formats import vectors
    from runtime_tests.sessions import make_session

    manifest = read_manifest(folder)
    session = make_session(folder, manifest)
    session.load(threads=THREADS)
    found: dict[str, Call] = {}
    for component in manifest.components:
        for entry in component.entries:
            if entry.name == "attributes":  # read once
                continue
            plan = vectors.planned((component,), 0, 1.0, 1.0, rounds=1)
            given = {call.entry: arrays for call, arrays in vectors.inputs(plan, (component,))}[entry.name]

            def call(component: str = component.name, entry: str = entry.name, given: Any = given) -> Any:
                return session.call(component, entry, **given)

            found[f"{component.name}.{entry.name}"] = call
    return found


def unfolded(work: Path) -> tuple[Call, dict[str, Any]]:
    """LAM's own computation in onnxruntime, and the pose that it is called with."""
    import onnxruntime as ort
    import torch

    from tests.compiler.avatars import animated

    head = _head()
    sizes = {"expression": 52, "rotation": 3, "neck": 3, "jaw": 3, "eyes": 6, "translation": 3}
    random = np.random.default_rng(1)
    pose = {name: random.uniform(0.1, 0.4, (1, size)).astype(np.float32) for name, size in sizes.items()}
    given = {name: torch.from_numpy(values) for name, values in pose.items()}

    class Unfolded(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, tensor in head.items():
                self.register_buffer(f"_{name}", tensor)

        def forward(self, *values: torch.Tensor) -> torch.Tensor:
            held = {name: getattr(self, f"_{name}") for name in head} | {"parents": head["parents"]}
            return animated(held, dict(zip(sizes, values, strict=True)), turns)

    file = work / "unfolded.onnx"
    program: Any = torch.onnx.export(
        Unfolded().eval(), tuple(given.values()), dynamo=True, input_names=list(sizes), output_names=["points"]
    )
    program.save(file, external_data=True)
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, pose)[0], animated(head, given).numpy(), atol=1e-5)
    return lambda: session.run(None, pose)[0], pose


def turns(vectors: Any) -> Any:
    """Rotations [count, 3, 3] of axes times angles by Rodrigues' formula, as upstream computes them."""
    import torch

    angles = torch.linalg.vector_norm(vectors + 1e-8, dim=1, keepdim=True)
    x, y, z = (vectors / angles).split(1, 1)
    none = torch.zeros_like(x)
    skew = torch.cat([none, -z, y, z, none, -x, -y, x, none], 1).reshape(-1, 3, 3)
    sin, cos = torch.sin(angles)[..., None], torch.cos(angles)[..., None]
    return torch.eye(3) + sin * skew + (1 - cos) * torch.bmm(skew, skew)


def times(calls: dict[str, Call], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every call, in interleaved rounds; the first is warm-up."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if turn:
                found[name].append(1e3 * (time.perf_counter() - begin))
    return found


def ratio(taken: list[float], base: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(taken, base, strict=True))


def rows(work: Path, name: str, rounds: int) -> Iterator[list[object]]:
    folders = {bits: package(work, name, bits) for bits in (32, 8)}
    sides = {bits: entries(folder) for bits, folder in folders.items()}
    sizes = " → ".join(f"{size_of(folder) / 1e6:.1f}" for folder in folders.values())
    for entry in sides[32]:
        taken = times({str(bits): calls[entry] for bits, calls in sides.items()}, rounds)
        yield _row((name, entry), taken["8"], taken["32"], sizes)
    beside = entries(folder := package(work, name, 8, "tvm"))  # where weights alone have 8 bits
    for entry, call in beside.items():
        taken = times({"tvm": call, "32": sides[32][entry]}, rounds)
        yield _row((name, f"{entry} TVM"), taken["tvm"], taken["32"], f"{size_of(folder) / 1e6:.1f}")
    if name == "gaussian":
        from artifacts import read_manifest
        from runtime_tests.sessions import make_session

        whole, pose = unfolded(work)
        for bits, folder in folders.items():
            session = make_session(folder, read_manifest(folder))
            session.load(threads=THREADS)

            def folded(session: Any = session) -> Any:
                return session.call("gaussians", "animate", **pose)["positions"]

            if bits == 32:  # the same points but for weights in half precision; those that fill up groups come last
                np.testing.assert_allclose(folded()[:, :POINTS], whole(), atol=1e-3)
            taken = times({"folded": folded, "unfolded": whole}, rounds)
            yield _row((name, "folded" if bits == 8 else "folded, float32"), taken["folded"], taken["unfolded"], "")


def _row(what: tuple[str, str], taken: list[float], base: list[float], sizes: str) -> list[object]:
    found, limit = ratio(taken, base), LIMITS.get(what)
    verdict = "" if limit is None else f"≤ {limit} " + ("passed" if found <= limit else "FAILED")
    return [
        " ".join(what),
        f"{statistics.median(base):.1f}",
        f"{statistics.median(taken):.1f}",
        f"{found:.2f}",
        verdict,
        sizes,
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("bench-work"))
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    work: Path = options.work.resolve() / "avatar"
    found = [row for name in RECIPES for row in rows(work, name, options.rounds)]
    table(
        f"Avatars, {THREADS} thread, milliseconds a call: float32 in onnxruntime (or unfolded) and INT8",
        ["", "float32", "INT8", "ratio", "limit", "MB"],
        found,
    )
    return 1 if any("FAILED" in str(row[4]) for row in found) else 0


if __name__ == "__main__":
    raise SystemExit(main())
