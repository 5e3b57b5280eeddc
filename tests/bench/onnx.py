"""The ONNX figures: compiling beside the usual routes, decoding beside them and llama.cpp, and the full size.

python -m tests.bench.onnx [--work FOLDER] [--rounds N] [full] [peers] [decode] [groups]
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from tests.bench import llamacpp
from tests.bench.measure import MB, python, size_of, table, warm
from tests.bench.synthetic import ROOT, make_checkpoint

BUILDER = "onnxruntime-genai builder, group 32"
LLAMA, LLAMA_PURE = "llama.cpp Q4_0", "llama.cpp Q4_0 pure"


def full(work: Path) -> None:
    """3.43B parameters, INT4 group 64: limits 600 MB, 120 s, 1.95 GB."""
    source = make_checkpoint(work / "ministral-3-3b", "ministral-3-3b")
    run = python("tests.bench.build", "edgewright", source, work / "full", 64)
    package = size_of(work / "full" / "onnx")
    rate = python("tests.bench.decode", "onnx", work / "full" / "onnx")
    table(
        "Ministral 3 3B geometry (3.43B parameters, bf16, two shards) to INT4 group 64 for ONNX Runtime",
        ["", "seconds", "of them quantizing", "peak RSS MB", "package GB", "load s", "decode tok/s"],
        [
            [
                "edgewright",
                run.seconds,
                run.result["quantize_s"],
                round(run.peak_bytes / MB),
                package / 1e9,
                rate.result["load_s"],
                rate.result["tokens_per_s"],
            ]
        ],
    )


def peers(work: Path) -> None:
    """600M to INT4 group 32 by three tools, one after another on the same machine, from a warm page cache."""
    source = make_checkpoint(work / "600m", "600m")
    rows: list[list[object]] = []
    base = None
    for name in ("edgewright", "genai", "mlx"):
        out = work / f"600m-{name}"
        warm(source)
        run = python("tests.bench.build", name, source, out, 32)
        base = base or run
        folder = out / "onnx" if name != "mlx" else out
        rows.append(
            [
                {"genai": "onnxruntime-genai builder", "mlx": "mlx_lm.convert"}.get(name, name),
                run.seconds,
                round(run.peak_bytes / MB),
                round(size_of(folder) / MB),
                f"{run.seconds / base.seconds:.2f}",
                f"{run.peak_bytes / base.peak_bytes:.2f}",
            ]
        )
    header = ["600M bf16 to INT4 group 32", "seconds", "peak RSS MB", "output MB", "× our time", "× our memory"]
    table("Compiling", header, rows)


def decode(work: Path, rounds: int) -> dict[str, float]:
    """Tokens/s in interleaved rounds, by name: every group of ours, the builder's graph, llama.cpp's Q4_0.

    Ratios are medians over rounds, so that a busy moment weighs on both sides.
    """
    source = make_checkpoint(work / "600m", "600m")
    packages: dict[str, tuple[str, Path]] = {}
    for group in (32, 64, 128, 256):
        out = work / f"600m-g{group}"
        if not (out / "onnx" / "model.onnx").exists():
            python("tests.bench.build", "edgewright", source, out, group)
        packages[f"edgewright, group {group}"] = ("onnx", out / "onnx")
    builder = work / "600m-genai" / "onnx"
    if not (builder / "model.onnx").exists():
        python("tests.bench.build", "genai", source, work / "600m-genai", 32)
    packages[BUILDER] = ("onnx", builder)
    if llamacpp.available():
        for name, pure in ((LLAMA, False), (LLAMA_PURE, True)):
            packages[name] = (
                "llama",
                llamacpp.quantized_copy(source, work / f"600m-q4_0{'-pure' * pure}.gguf", pure=pure),
            )
    else:
        print("llama.cpp is left out: pip install llama-cpp-python gguf")
    rates: dict[str, list[float]] = {name: [] for name in packages}
    for turn in range(rounds):
        for name in list(packages)[:: 1 if turn % 2 == 0 else -1]:
            rates[name].append(python("tests.bench.decode", *packages[name]).result["tokens_per_s"])
    beside = [name for name in (BUILDER, LLAMA, LLAMA_PURE) if name in packages]
    rows: list[list[object]] = []
    for name, (_, path) in packages.items():
        ratios = [statistics.median(a / b for a, b in zip(rates[name], rates[other], strict=True)) for other in beside]
        size = size_of(path) if path.is_dir() else path.stat().st_size
        rows.append([name, statistics.median(rates[name]), round(size / MB), *(f"{ratio:.2f}" for ratio in ratios)])
    header = [
        f"600M, 2 threads, medians of {rounds} interleaved rounds",
        "tok/s",
        "MB",
        *(f"× {name}" for name in beside),
    ]
    table("Decoding", header, rows)
    return {name: statistics.median(found) for name, found in rates.items()}


def groups(work: Path) -> None:
    """What larger groups cost in quality: the trained checkpoint, every group, by the artifact's own runtime test."""
    from edgewright import run
    from edgewright.api import recipe_type

    rows: list[list[object]] = []
    for method in ("rtn", "gptq"):
        for group in (32, 64, 128):
            recipe = recipe_type().model_validate(
                {
                    "name": f"groups-{method}-{group}",
                    "checkpoint": {"path": str(ROOT / "recipes" / "checkpoints" / "tiny-ministral3")},
                    "quantize": {"rules": [{"match": "*", "bits": 4, "group": group, "method": method}]},
                    "context": {"max_tokens": 2048},
                    "targets": {"onnx": {}},
                }
            )
            target = run(recipe, out=work / "groups").targets[0]
            figures = {f.name: f.value for f in target.figures}
            found = [figures[name] for name in ("perplexity", "perplexity_original", "mean_kl", "top1_agreement")]
            rows.append([f"INT4 group {group}, {method}", *found])
    header = ["tiny-ministral3, embedding included", "perplexity", "unquantized", "mean KL", "top-1"]
    table("Group size and quality", header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="checkpoints and packages are kept here")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("parts", nargs="*", help="full, peers, decode, groups; default all")
    args = parser.parse_args()
    parts = args.parts or ["full", "peers", "decode", "groups"]
    args.work.mkdir(parents=True, exist_ok=True)
    if "full" in parts:
        full(args.work)
    if "peers" in parts:
        peers(args.work)
    if "decode" in parts:
        decode(args.work, args.rounds)
    if "groups" in parts:
        groups(args.work)


if __name__ == "__main__":
    main()
