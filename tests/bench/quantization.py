"""The quantization figures: methods, embeddings, peers, llama.cpp, budgets, the Pareto front, the full size.

python -m tests.bench.quantization [--work FOLDER] [--tokens N] [methods] [outliers] [peers] [llamacpp] [budget]
    [cache] [rate] [plot] [full]

Divergence is KL(original || quantized) in nats over held-out tokens of tiny-ministral3. Figures are kept in
`figures.json` in the work folder, from which `plot` draws.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from artifacts import silent
from compiler.checkpoint import Checkpoint
from compiler.drivers import text
from compiler.models.base import read_model
from compiler.quantize import budget, knapsack, runner
from compiler.quantize.methods import method_options
from compiler.quantize.packed import PackedWeights
from compiler.quantize.rules import Assignment, assign
from compiler.targets import target_options
from recipes.schema import Calibration, Rule, recipe_model
from tests.bench import llamacpp, onnx, peers
from tests.bench.measure import MB, python, table
from tests.bench.quality import WINDOW, Bench, Quality, Table
from tests.bench.synthetic import ROOT, make_checkpoint

TINY = ROOT / "recipes" / "checkpoints" / "tiny-ministral3"
CALIBRATION = Calibration(tokens=32768)
TABLE = "model.embed_tokens"
KEEP = {"match": TABLE, "bits": 16}
HEADER = ["", "mean KL", "± ", "× rtn g32", "perplexity", "top-1", "bits/weight"]


def rules(entries: list[dict[str, Any]]) -> tuple[Rule, ...]:
    recipe = recipe_model(target_options(), method_options()).model_validate(
        {
            "name": "bench",
            "checkpoint": {"path": "x"},
            "quantize": {"rules": entries},
            "context": {"max_tokens": 256},
            "targets": {"onnx": {}},
        }
    )
    return tuple(recipe.quantize.rules)


def quantized(bench: Bench, out: Path, entries: list[dict[str, Any]]) -> tuple[Table, Assignment]:
    """Quantize by rules into `out`, unless it is there already."""
    assignment = assign(rules(entries), bench.slots)
    if not (out / "config.json").exists():
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        work = out.with_name(out.name + "-work")
        samples = None
        if runner.calibrates(assignment):
            seen = text.looked_at(CALIBRATION, None, bench.model, bench.source)
            samples = partial(text.samples, bench.model, looked_at=seen)
        runner.run(bench.checkpoint, bench.model, assignment, CALIBRATION, samples, out, work, silent)
        shutil.rmtree(work, ignore_errors=True)
    return Table(PackedWeights(out), bench.names), assignment


def show(title: str, found: Mapping[str, Quality], bits: Mapping[str, float], base: str | None = None) -> None:
    first = found[base or next(iter(found))].mean_kl
    rows: list[list[object]] = [
        [
            name,
            f"{q.mean_kl:.6f}",
            f"{q.error:.6f}",
            f"{q.mean_kl / first:.3f}",
            f"{q.perplexity:.3f}",
            f"{q.top1:.4f}",
            f"{bits[name]:.3f}" if name in bits else "",
        ]
        for name, q in found.items()
    ]
    header = list(HEADER)
    header[3] = f"× {base or next(iter(found))}"
    table(title, header, rows)


def entry(method: str, group: int, **more: Any) -> dict[str, Any]:
    return {"match": "*", "bits": 4, "group": group, "method": method, **more}


class Run:
    """One run of the benchmarks: where things lie, and the figures found so far."""

    def __init__(self, work: Path, tokens: int) -> None:
        self.work, self.tokens = work, tokens
        self.figures_file = work / "figures.json"

    def record(self, kind: str, found: Mapping[str, Quality], size: Mapping[str, float]) -> None:
        """kind: what `size` counts the bytes of, whole "files" or "weights" alone."""
        known = json.loads(self.figures_file.read_text()) if self.figures_file.exists() else {}
        known.setdefault(kind, {}).update({n: {"mean_kl": q.mean_kl, "bytes": size[n]} for n, q in found.items()})
        self.figures_file.write_text(json.dumps(known, indent=1))

    def compare(
        self, bench: Bench, title: str, recipes: Mapping[str, list[dict[str, Any]]], base: str | None = None
    ) -> dict[str, Quality]:
        tables, bits, sizes = {}, {}, {}
        for name, entries in recipes.items():
            folder = self.work / "weights" / bench.source.name / name.replace(" ", "_").replace(",", "")
            tables[name], assignment = quantized(bench, folder, entries)
            bits[name] = budget.bits_per_weight(bench.slots, assignment.schemes)
            sizes[name] = sum(
                assignment.schemes[s.name].packed_bytes(s.rows, s.columns)
                for s in bench.slots
                if s.name in assignment.schemes
            )
        found = bench.measure(tables)
        show(title, found, bits, base)
        self.record("weights", found, sizes)
        return found

    def bench(self) -> Bench:
        return Bench(TINY, self.tokens)

    # -- parts ----------------------------------------------------------------------------------------------------

    def methods(self) -> None:
        """Every method, embedding at 16 bits, then with the embedding at 8 and 4 bits."""
        bench = self.bench()
        names = {"rtn": "rtn", "mse": "mse", "hqq": "hqq", "awq": "awq", "gptq": "gptq"}
        for group in (32, 64, 128):
            linears = {f"{n} g{group}": [KEEP, entry(m, group)] for n, m in names.items()}
            if group != 32:
                linears = {"rtn g32": [KEEP, entry("rtn", 32)], **linears}
            self.compare(bench, f"INT4 group {group}, embedding at 16 bits", linears, "rtn g32")
        for bits in (8, 4):
            rows: dict[str, list[dict[str, Any]]] = {}
            for group in (32, 64, 128):
                for method in ("rtn", "gptq"):
                    name = f"{method} g{group} embedding int{bits}"
                    rows[name] = [entry(method, group, match=TABLE) | {"bits": bits}, entry(method, group)]
            self.compare(bench, f"INT4 with the embedding in INT{bits}", rows)

    def outliers(self) -> None:
        """A copy of the same function whose norms have 1 % of channels scaled by 16."""
        source = outlier_copy(TINY, self.work / "outliers")
        bench = Bench(source, self.tokens)
        recipes = {f"{m} g32 outliers": [KEEP, entry(m, 32)] for m in ("rtn", "mse", "awq", "gptq")}
        self.compare(bench, "Function-preserving copy with outlier channels, embedding at 16 bits", recipes)

    def peers(self) -> None:
        """onnxruntime's and MLX's own quantizers on the same matrices, embedding at 16 bits."""
        bench = self.bench()
        matrices = {s.name: bench.original.rows(s.name) for s in bench.slots if s.kind == "linear"}
        count = sum(m.size for m in matrices.values())
        for group in (32, 64, 128):
            tables: dict[str, Any] = {}
            bits: dict[str, float] = {}
            for method in ("rtn", "rtn-asymmetric", "hqq", "k_quant"):
                if method == "k_quant" and group != 32:
                    continue  # it knows one group size
                rows, size = peers.onnxruntime(matrices, method, group)
                tables[f"onnxruntime {method} g{group}"] = bench.original.changed(rows)
                bits[f"onnxruntime {method} g{group}"] = 8 * size / count
            rows, size = peers.mlx(matrices, group)
            tables[f"mlx-lm g{group}"] = bench.original.changed(rows)
            bits[f"mlx-lm g{group}"] = 8 * size / count
            for method in ("rtn", "gptq"):
                folder = self.work / "weights" / TINY.name / f"{method}_g{group}"
                name = f"edgewright {method} g{group}"
                tables[name], _ = quantized(bench, folder, [KEEP, entry(method, group)])
                bits[name] = 4 + 32 / group
            show(f"INT4 group {group}, linears only; bits as each stores them", bench.measure(tables), bits)

    def llamacpp(self) -> None:
        """Whole files and real runtimes: llama.cpp's Q4_0, default mix and pure, and ONNX packages."""
        bench = self.bench()
        runners: dict[str, Any] = {}
        size: dict[str, float] = {}
        if llamacpp.available():
            bf16 = llamacpp.write_gguf(TINY, self.work / "tiny-bf16.gguf")
            check = bench.windows[:2]
            expected = bench.logits(bench.original, check)
            wrong = float((llamacpp.runner(bf16, WINDOW)(check) - expected).abs().max())
            print(f"llama.cpp bf16 logits differ from the reference by at most {wrong:.4f}")
            for name, pure in ((onnx.LLAMA, False), (onnx.LLAMA_PURE, True)):
                file = llamacpp.quantize_q4_0(bf16, self.work / f"{name.replace(' ', '-')}.gguf", pure=pure)
                runners[name], size[name] = llamacpp.runner(file, WINDOW), file.stat().st_size
        else:
            print("llama.cpp is left out: pip install llama-cpp-python gguf")
        ours = {f"{m} g{g} embedding int4": [entry(m, g)] for g in (32, 64, 128, 256) for m in ("rtn", "gptq")}
        for name, entries in ours.items():
            folder = self.work / "weights" / TINY.name / name.replace(" ", "_")
            _, assignment = quantized(bench, folder, entries)
            package = onnx_package(bench, folder, assignment, self.work / "packages" / name.replace(" ", "_"))
            runners[name], size[name] = onnx_runner(package), size_of_model(package)
        found = bench.measure(runners)
        rows: list[list[object]] = [
            [name, f"{q.mean_kl:.6f}", f"{q.error:.6f}", f"{q.top1:.4f}", int(size[name])] for name, q in found.items()
        ]
        table("Whole model files in their own runtimes", ["", "mean KL", "± ", "top-1", "bytes of file"], rows)
        self.record("files", found, size)

    def budget(self) -> None:
        """The solver at 4.25 bits a weight against uniform group 32, which takes 4.5 (scales counted as fp16)."""
        bench = self.bench()
        tokens = text.looked_at(Calibration(tokens=4096, seed=1), None, bench.model, TINY)
        methods = {s.name: "gptq" for s in bench.slots}
        items = budget.sensitivities(
            bench.model, bench.slots, bench.original, tokens, True, silent, methods, scale_bytes=2
        )
        weights = sum(s.rows * s.columns for s in bench.slots if not s.is_vector)
        recipes: dict[str, list[dict[str, Any]]] = {}
        for method in ("rtn", "gptq"):
            recipes[f"{method} g32 uniform"] = [entry(method, 32)]
        for bits in (4.25, 4.5):
            choice = knapsack.solve(items, int(bits * weights / 8))
            print(f"{bits} bits: predicted divergence {choice.cost:.5f}, at most {choice.gap:.2%} from the optimum")
            schemes = {s: i.schemes[at] for i, at in zip(items, choice.picked, strict=True) for s in i.slots}
            chosen = [entry("gptq", s.group, match=name) | {"bits": s.bits} for name, s in schemes.items()]
            recipes[f"gptq chosen at {bits} bits"] = chosen
        self.compare(bench, "Mixed precision, embedding included", recipes)

    def cache(self) -> None:
        """INT8 KV caches in onnxruntime, on weights left at 8 bits so that little else differs."""
        bench = self.bench()
        folder = self.work / "weights" / TINY.name / "int8"
        tables: dict[str, Any] = {}
        _, assignment = quantized(bench, folder, [entry("rtn", 32) | {"bits": 8}])
        for name, options in (
            ("float32 cache", {}),
            ("INT8 cache, per channel", {"kv_bits": 8}),
            ("INT8 cache, per tensor", {"kv_bits": 8, "kv_scales": "tensor"}),
        ):
            out = self.work / "packages" / name.replace(" ", "_").replace(",", "")
            tables[name] = onnx_runner(onnx_package(bench, folder, assignment, out, **options))
        show("KV cache, INT8 weights, as onnxruntime runs them", bench.measure(tables), {})

    def rate(self) -> None:
        """Decode rates of the 600M geometry by group, beside llama.cpp's Q4_0."""
        rates = onnx.decode(self.work, 9)
        (self.work / "rates.json").write_text(json.dumps(rates))

    def plot(self) -> None:
        """The Pareto front of divergence, bytes and decode rate; pareto.png draws it, and the methods beside it."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        known, rates = json.loads(self.figures_file.read_text()), json.loads((self.work / "rates.json").read_text())
        points = {
            name: (found["mean_kl"], found["bytes"] / MB, -rates[rate_name(name)])
            for name, found in known["files"].items()
        }
        front = [
            name
            for name, mine in points.items()
            if not any(o != mine and all(a <= b for a, b in zip(o, mine, strict=True)) for o in points.values())
        ]
        figure, axes = pyplot.subplots(1, 3, figsize=(20, 7))
        for name, (kl, size, rate) in points.items():
            color = "tab:red" if "llama" in name else "tab:blue" if name in front else "tab:gray"
            for axis, x in ((axes[0], size), (axes[1], -rate)):
                axis.plot(x, kl, "o", color=color)
                axis.annotate(f" {name.removesuffix(' embedding int4')}", (x, kl), fontsize=7, color=color)
        for axis in axes[:2]:
            axis.margins(x=0.3)  # room for names
        axes[0].set(xlabel="MB of tiny-ministral3's model file", title="Whole files in their own runtimes, INT4")
        axes[1].set(xlabel="tokens/s of the 600M geometry, two threads", title="Blue: on the front of all three")
        for method in ("rtn", "mse", "hqq", "awq", "gptq"):
            found = [known["weights"].get(f"{method} g{group}") for group in (32, 64, 128)]
            bits = [4 + 16 / group for group in (32, 64, 128)]
            line = [(b, f["mean_kl"]) for b, f in zip(bits, found, strict=True) if f]
            axes[2].plot(*zip(*line, strict=True), "o-", label=method)
        axes[2].set(xlabel="bits a weight, scales as fp16", title="Methods at groups 128, 64, 32; embedding at 16 bits")
        axes[2].legend()
        for axis in axes:
            axis.set(yscale="log", ylabel="mean KL, nats")
        figure.tight_layout()
        figure.savefig(self.work / "pareto.png", dpi=120)
        print(f"On the Pareto front of divergence, bytes and rate: {', '.join(front)}")
        print(f"wrote {self.work / 'pareto.png'}")

    def full(self) -> None:
        """3.43B parameters with 16,384 calibration tokens: time, peak memory, progress with the time left."""
        source = make_checkpoint(self.work / "ministral-3-3b", "ministral-3-3b")
        rows: list[list[object]] = []
        for method in ("rtn", "awq", "gptq"):
            run = python("tests.bench.calibrate", source, self.work / f"3b-{method}", method, progress=True)
            rows.append([method, run.seconds, round(run.peak_bytes / MB)])
        table("3.43B, INT4 group 128, 16,384 calibration tokens", ["", "seconds", "peak RSS MB"], rows)


def rate_name(name: str) -> str:
    """The name under which `onnx.decode` measures model files of this kind."""
    group = name.split(" ")[1].removeprefix("g")
    return name if name in (onnx.LLAMA, onnx.LLAMA_PURE) else f"edgewright, group {group}"


def outlier_copy(source: Path, out: Path) -> Path:
    """The same function with 1 % of every norm's channels times 16 and the columns that follow over 16: exact."""
    from safetensors.torch import save_file

    checkpoint = Checkpoint(source)
    model = read_model(checkpoint.config, checkpoint.names(), WINDOW)
    tensors = {s.tensor: torch.from_numpy(checkpoint.rows(s.tensor)) for s in model.slots}
    layers, hidden = model.geometry["layers"], model.geometry["hidden"]
    rng = np.random.default_rng(0)
    for layer in range(layers):
        for norm, after in (
            ("input_layernorm", [f"self_attn.{m}_proj" for m in "qkv"]),
            ("post_attention_layernorm", ["mlp.gate_proj", "mlp.up_proj"]),
        ):
            channels = torch.from_numpy(rng.choice(hidden, max(1, round(hidden / 100)), replace=False))
            tensors[f"model.layers.{layer}.{norm}.weight"][channels] *= 16
            for name in after:
                tensors[f"model.layers.{layer}.{name}.weight"][:, channels] /= 16
    out.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            shutil.copyfile(file, out / file.name)
    save_file({k: v.bfloat16() for k, v in tensors.items()}, out / "model.safetensors", {"format": "pt"})
    return out


def onnx_package(bench: Bench, weights: Path, assignment: Assignment, out: Path, **options: Any) -> Path:
    """An ONNX package of quantized weights, for windows of the benchmark's length."""
    from artifacts import ManifestDraft, write_manifest
    from artifacts.formats.interface import Driver
    from artifacts.manifest import CheckpointEntry, RecipeEntry
    from compiler.models.interface import described
    from compiler.targets import load_target
    from compiler.targets.base import BuildJob

    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    settings = target_options()["onnx"].model_validate({"logits": "all", **options})
    job = BuildJob("bench", bench.model, assignment.schemes, settings, PackedWeights(weights), bench.source)
    built = load_target("onnx").build(job, out, silent)
    draft = ManifestDraft(
        created_by={},
        recipe=RecipeEntry(name="bench", digest="0" * 64),
        target="onnx",
        family=bench.model.family,
        checkpoint=CheckpointEntry(source=str(bench.source)),
        components=tuple(described(bench.model, built.narrowed)),
        driver=Driver(name=bench.model.driver, constants=dict(bench.model.constants)),
        runtime=dict(built.runtime),
        weights_digest="0" * 64,
    )
    write_manifest(out, draft)
    return out


def onnx_runner(package: Path) -> Callable[[Any], torch.Tensor]:
    from artifacts import read_manifest
    from runtime_tests.sessions import make_session

    session = make_session(package, read_manifest(package))
    session.load()
    positions = np.arange(WINDOW)[None]

    def logits(ids: NDArray[np.int64]) -> torch.Tensor:
        session.reset()
        return torch.from_numpy(session.call("decoder", "score", input_ids=ids[None], positions=positions)["logits"][0])

    return lambda windows: torch.stack([logits(ids) for ids in windows])


def size_of_model(package: Path) -> int:
    return sum((package / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))


PARTS = ("methods", "outliers", "peers", "llamacpp", "budget", "cache", "rate", "plot", "full")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/bench/quantization"))
    parser.add_argument("--tokens", type=int, default=51200, help="held-out tokens")
    parser.add_argument("parts", nargs="*", help="default: all but full, which takes two hours")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no part named {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    run = Run(args.work, args.tokens)
    for part in args.parts or PARTS[:-1]:
        getattr(run, part)()


if __name__ == "__main__":
    main()
