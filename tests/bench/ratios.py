"""Rates of our packages beside llama.cpp's on one machine: `device_farm/ratios.yaml`.

python -m tests.bench.ratios [--work FOLDER] [--rounds N] [--write]

Each contender is loaded in a process of its own and asked in turn, by one request at a time, so that what else the
machine does falls on all of them within seconds. Times are of the process's own processor time on one thread: waiting
for a busy core does not count. A ratio is of two times of one round; what is written is the least and the most of the
rounds. Needs llama-cpp-python and gguf, whose llama.cpp is compiled for this machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml
from numpy.typing import NDArray

from tests.bench import llamacpp
from tests.bench.measure import python, table
from tests.bench.synthetic import ROOT, make_checkpoint

FILE = ROOT / "device_farm" / "ratios.yaml"
PROMPT, STEPS, LOADS, MAX_TOKENS = 512, 16, 3, 576
GROUPS = {"onnx": (32, 64, 128, 256), "tvm": (32, 128)}
LLAMA = "llama.cpp Q4_0"
_HEADER = """\
# Rates of the runtimes of our packages beside those that the coefficients belong to, measured side by side on one
# machine: least and most of the rounds. Written by `python -m tests.bench.ratios --write`, which says how.
#
# by: bits and columns that share a scale, of a decoder's layers; where a group is not listed, the next smaller counts.
# decode: of two threads by wall clock, and kept as it is: on one thread steps are bound by arithmetic more than by
# memory, which flatters ours (ONNX g32 by 1.8) beside what a phone's several cores do. The rest: of one thread.
# carried: how far a ratio may be off on a phone, as a logarithm to either side; policy, nobody has measured it there.
"""
# decode reads weights, which is the same work everywhere; a prompt's products depend on the instructions
_CARRIED = {"decode": 0.2, "prefill": 0.3}


class Contender(Protocol):
    """A loaded model that appends tokens and gives the likeliest next one."""

    def take(self, ids: NDArray[np.int64]) -> int: ...

    def reset(self) -> None: ...


class Package:
    """One of ours, by the session that tests it."""

    def __init__(self, folder: Path) -> None:
        from artifacts import read_manifest
        from runtime_tests.drivers.text import Decoder
        from runtime_tests.sessions import make_session

        manifest = read_manifest(folder)
        self._session = make_session(folder, manifest)
        self._decoder = Decoder(self._session, manifest.components[0], MAX_TOKENS)

    def load(self) -> None:
        self._session.load(threads=1)

    def take(self, ids: NDArray[np.int64]) -> int:
        return int(self._decoder.go_on(ids).argmax())

    def reset(self) -> None:
        self._decoder.reset()


class Llama:
    """llama.cpp, which repacks weights at load as it does by default."""

    def __init__(self, file: Path) -> None:
        self._file, self._api = file, llamacpp.quiet()
        self._api.llama_backend_init()

    def load(self) -> None:
        api, parameters = self._api, self._api.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self._model = api.llama_model_load_from_file(str(self._file).encode(), parameters)
        settings = api.llama_context_default_params()
        settings.n_ctx, settings.n_threads, settings.n_threads_batch = MAX_TOKENS, 1, 1
        self._context = api.llama_init_from_model(self._model, settings)
        self._vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))

    def take(self, ids: NDArray[np.int64]) -> int:
        tokens = (self._api.llama_token * len(ids))(*map(int, ids))
        if self._api.llama_decode(self._context, self._api.llama_batch_get_one(tokens, len(ids))):
            raise SystemExit("llama_decode failed")
        logits = self._api.llama_get_logits_ith(self._context, -1)
        return int(np.ctypeslib.as_array(logits, shape=(self._vocab,)).argmax())

    def reset(self) -> None:
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)


def build(source: Path, out: Path, group: int, target: str) -> None:
    """Child: one target's package of a checkpoint, without golden vectors; for TVM this machine's library alone."""
    from artifacts import silent, staged, write_manifest
    from compiler import pipeline
    from compiler.checkpoint import Checkpoint
    from edgewright.api import recipe_type

    content = {
        "name": "bench",
        "checkpoint": {"path": str(source)},
        "quantize": {"rules": [{"match": "*", "bits": 4, "group": group}]},
        "context": {"max_tokens": MAX_TOKENS},
        "targets": {target: {"triples": []} if target == "tvm" else {}},
    }
    recipe, checkpoint = recipe_type().model_validate(content), Checkpoint(source)
    done = pipeline.quantize(recipe, checkpoint, "bench", None, out / "quantized", silent)
    with staged(out / target) as folder:
        write_manifest(folder, pipeline.build(recipe, target, done, checkpoint, folder, silent))


def serve(kind: str, path: Path) -> None:
    """Child: says what loading took, then answers "round" with the times of a prompt and of a step; seconds."""
    contender = Llama(path) if kind == "llama" else Package(path)
    print(json.dumps({"load": _seconds(contender.load)}), flush=True)
    ids = np.random.default_rng(0).integers(16, 4000, PROMPT)
    contender.take(ids[:8])  # what is allocated at the first call is no part of a rate
    contender.take(ids[:1])
    for _ in sys.stdin:
        contender.reset()
        prefill = _seconds(lambda: contender.take(ids))
        steps = [_seconds(lambda: contender.take(ids[:1])) for _ in range(STEPS)]
        print(json.dumps({"prefill": prefill, "decode": statistics.median(steps)}), flush=True)


def _seconds(call: Any) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


class Child:
    """A contender in a process of its own."""

    def __init__(self, kind: str, path: Path) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "tests.bench.ratios", "--child", "serve", kind, str(path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.load: float = self._answer()["load"]

    def round(self) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write("round\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self._process.communicate()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a contender ended with {self._process.wait()}")
        found: dict[str, float] = json.loads(line)
        return found


def packages(work: Path) -> dict[str, tuple[str, Path]]:
    """Of every contender its kind and where it lies, built where it is not there yet."""
    source = make_checkpoint(work / "600m", "600m")
    found = {LLAMA: ("llama", llamacpp.quantized_copy(source, work / "600m-q4_0.gguf"))}
    for target, groups in GROUPS.items():
        for group in groups:
            out = work / f"ratios-600m-g{group}"
            if not (out / target / "edgewright.json").exists():
                python("tests.bench.ratios", "--child", "build", source, out, group, target)
            found[f"{target} 4g{group}"] = (target, out / target)
    return found


def measure(contenders: dict[str, tuple[str, Path]], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds by contender and kind, one of each round (of load: one of each start)."""
    found: dict[str, dict[str, list[float]]] = {name: {"load": [], "prefill": [], "decode": []} for name in contenders}
    for _ in range(LOADS - 1):
        for name, (kind, path) in contenders.items():
            child = Child(kind, path)
            found[name]["load"].append(child.load)
            child.close()
    children = {name: Child(kind, path) for name, (kind, path) in contenders.items()}
    for turn in range(rounds):
        for name in list(children)[:: 1 if turn % 2 == 0 else -1]:
            for kind, seconds in children[name].round().items():
                found[name][kind].append(seconds)
    for name, child in children.items():
        found[name]["load"].append(child.load)
        child.close()
    return found


def ratios(found: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Least and most by kind, target and scheme; of decoding what the file has."""
    before = yaml.safe_load(FILE.read_text(encoding="utf-8"))["decode"]
    out: dict[str, dict[str, dict[str, list[float]]]] = {kind: {} for kind in _CARRIED}
    out["decode"] = {target: item["by"] for target, item in before.items()}
    for name, times in found.items():
        if name == LLAMA:
            continue
        target, scheme = name.split()
        each = [theirs / ours for ours, theirs in zip(times["prefill"], found[LLAMA]["prefill"], strict=True)]
        out["prefill"].setdefault(target, {})[scheme] = _ends(each)
    return out


def _ends(values: Sequence[float]) -> list[float]:
    return [float(f"{end:.3g}") for end in (min(values), max(values))]


def text(found: dict[str, dict[str, dict[str, list[float]]]], rounds: int) -> str:
    """The content of the file."""
    versions = {name: metadata.version(name) for name in ("llama-cpp-python", "onnxruntime", "apache-tvm")}
    lines = [
        _HEADER + f"date: {time.strftime('%Y-%m')}",
        f"machine: {_processor()}, one thread, processor time, {rounds} rounds",
        f"measured: 600M parameters of random weights (hidden 1536), a prompt of {PROMPT} tokens and {STEPS} steps",
        "versions: {" + ", ".join(f"{name}: {version}" for name, version in versions.items()) + "}",
    ]
    for kind, targets in found.items():
        lines.append(f"{kind}:")
        for target, schemes in targets.items():
            lines += [f"  {target}:", f"    beside: {LLAMA}", f"    carried: {_CARRIED[kind]}", "    by:"]
            lines += [f'      "{scheme}": [{low}, {high}]' for scheme, (low, high) in schemes.items()]
    return "\n".join(lines) + "\n"


def _processor() -> str:
    about = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.partition(":")[2].strip() for line in about if line.startswith("model name")), "unknown")
    flags = next((line.split() for line in about if line.startswith("flags")), [])
    return " with ".join([name, *(["AVX-512 VNNI"] if "avx512_vnni" in flags else [])])


def main() -> None:
    if sys.argv[1:3] == ["--child", "serve"]:
        serve(sys.argv[3], Path(sys.argv[4]))
        return
    if sys.argv[1:3] == ["--child", "build"]:
        build(Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]), sys.argv[6])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write the file; else its content is shown")
    arguments = parser.parse_args()
    if not llamacpp.available():
        print("llama.cpp is not installed, nothing is measured beside it: pip install llama-cpp-python gguf")
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    found = measure(packages(arguments.work), arguments.rounds)
    (arguments.work / "ratios.json").write_text(json.dumps(found), encoding="utf-8")
    rows: list[list[object]] = [[name, *(1e3 * statistics.median(of[k]) for k in of)] for name, of in found.items()]
    table("Medians of processor time, ms", ["600M, INT4, one thread", "load", f"prompt of {PROMPT}", "step"], rows)
    content = text(ratios(found), arguments.rounds)
    if arguments.write:
        FILE.write_text(content, encoding="utf-8")
    else:
        print(content)


if __name__ == "__main__":
    main()
