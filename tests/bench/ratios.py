"""Rates of our packages beside llama.cpp's on one machine: `device_farm/ratios.yaml`.

python -m tests.bench.ratios [--work FOLDER] [--rounds N] [--write]

Each contender is loaded in a process of its own and asked in turn, by one request at a time, so that what else the
machine does falls on all of them within seconds. A prompt is timed on one thread, by the process's own processor time:
waiting for a busy core does not count. A step is timed on two threads by the wall clock, so nothing else may run
meanwhile. A ratio is of two times of one round; what is written is the least and the most of the rounds but for one at
each end. Needs llama-cpp-python and gguf, whose llama.cpp is compiled for this machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
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
PROMPT, STEPS, MAX_TOKENS = 512, 16, 576
THREADS = {"prefill": 1, "decode": 2}
GROUPS = {"onnx": (32, 64, 128, 256), "tvm": (32, 128)}
LLAMA = "llama.cpp Q4_0"
_HEADER = """\
# Rates of the runtimes of our packages beside those that the coefficients belong to, measured side by side on one
# machine: least and most of the rounds but for one at each end. Written by `python -m tests.bench.ratios --write`,
# which says how.
#
# by: bits and columns that share a scale, of a decoder's layers; where a group is not listed, the next smaller counts.
# prefill: of one thread by its processor time. decode: of two threads by the wall clock; ONNX Runtime's is kept from a
# machine whose memory bounds a step, as a phone's does: where arithmetic does it is flattered, at 4g32 by 1.6. TVM's is
# that times its rate beside ONNX Runtime's at the same group.
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

    def load(self, threads: int) -> None:
        self._session.load(threads=threads)

    def take(self, ids: NDArray[np.int64]) -> int:
        return int(self._decoder.go_on(ids).argmax())

    def reset(self) -> None:
        self._decoder.reset()


class Llama:
    """llama.cpp, which repacks weights at load as it does by default."""

    def __init__(self, file: Path) -> None:
        self._file, self._api = file, llamacpp.quiet()
        self._api.llama_backend_init()

    def load(self, threads: int) -> None:
        api, parameters = self._api, self._api.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self._model = api.llama_model_load_from_file(str(self._file).encode(), parameters)
        settings = api.llama_context_default_params()
        settings.n_ctx, settings.n_threads, settings.n_threads_batch = MAX_TOKENS, threads, threads
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


def serve(contender_kind: str, path: Path, timed: str) -> None:
    """Child: loads, then answers "round" with the time of a prompt or of a step; seconds."""
    contender = Llama(path) if contender_kind == "llama" else Package(path)
    contender.load(THREADS[timed])
    ids = np.random.default_rng(0).integers(16, 4000, PROMPT)
    contender.take(ids[:8])  # what is allocated at the first call is no part of a rate
    contender.take(ids[:1])
    print("ready", flush=True)
    for _ in sys.stdin:
        contender.reset()
        prompt = _seconds(lambda: contender.take(ids), time.process_time)
        steps = [_seconds(lambda: contender.take(ids[:1]), time.perf_counter) for _ in range(STEPS)]
        print(prompt if timed == "prefill" else statistics.median(steps), flush=True)


def _seconds(call: Any, clock: Callable[[], float]) -> float:
    started = clock()
    call()
    return clock() - started


class Child:
    """A contender in a process of its own."""

    def __init__(self, contender_kind: str, path: Path, timed: str) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "tests.bench.ratios", "--child", "serve"]
        command += [contender_kind, str(path), timed]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def round(self) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write("round\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a contender ended with {self._process.wait()}")
        return line


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
    """Seconds of each round by contender, by what is timed."""
    found: dict[str, dict[str, list[float]]] = {}
    for timed in THREADS:
        found[timed] = {name: [] for name in contenders}
        children = {name: Child(*contender, timed) for name, contender in contenders.items()}
        for turn in range(rounds):
            for name in list(children)[:: 1 if turn % 2 == 0 else -1]:
                found[timed][name].append(children[name].round())
        for child in children.values():
            child.close()
    return found


def ratios(found: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Least and most by what is timed, target and scheme; what the header says is kept is of the file."""
    kept = yaml.safe_load(FILE.read_text(encoding="utf-8"))["decode"]["onnx"]["by"]
    out: dict[str, dict[str, dict[str, list[float]]]] = {"decode": {"onnx": kept}, "prefill": {}}
    for name, ours in found["prefill"].items():
        target, _, scheme = name.partition(" ")
        if target in GROUPS:
            out["prefill"].setdefault(target, {})[scheme] = _ends(found["prefill"][LLAMA], ours)
    steps = found["decode"]
    out["decode"]["tvm"] = {}
    for scheme in (f"4g{group}" for group in GROUPS["tvm"]):
        beside = _ends(steps[f"onnx {scheme}"], steps[f"tvm {scheme}"])
        ends = [end * of for end, of in zip(beside, kept[scheme], strict=True)]
        out["decode"]["tvm"][scheme] = [float(f"{end:.3g}") for end in ends]
    return out


def _ends(theirs: Sequence[float], ours: Sequence[float]) -> list[float]:
    """Of ours over theirs, as rates."""
    each = sorted(one / other for one, other in zip(theirs, ours, strict=True))[1:-1]
    return [float(f"{end:.3g}") for end in (each[0], each[-1])]


def text(found: dict[str, dict[str, dict[str, list[float]]]], rounds: int) -> str:
    """The content of the file."""
    versions = {name: metadata.version(name) for name in ("llama-cpp-python", "onnxruntime", "apache-tvm")}
    lines = [
        _HEADER + f"date: {time.strftime('%Y-%m')}",
        f"machine: {_processor()}, {rounds} rounds",
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
        serve(sys.argv[3], Path(sys.argv[4]), sys.argv[5])
        return
    if sys.argv[1:3] == ["--child", "build"]:
        build(Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]), sys.argv[6])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", action="store_true", help="write the file; else its content is shown")
    arguments = parser.parse_args()
    if not llamacpp.available():
        print("llama.cpp is not installed, nothing is measured beside it: pip install llama-cpp-python gguf")
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    found = measure(packages(arguments.work), arguments.rounds)
    (arguments.work / "ratios.json").write_text(json.dumps(found), encoding="utf-8")
    rows: list[list[object]] = [
        [name, *(1e3 * statistics.median(found[timed][name]) for timed in THREADS)] for name in found["decode"]
    ]
    heads = ["600M, INT4", f"prompt of {PROMPT}, 1 thread, processor time", "step, 2 threads, wall"]
    table("Medians, ms", heads, rows)
    content = text(ratios(found), arguments.rounds)
    if arguments.write:
        FILE.write_text(content, encoding="utf-8")
    else:
        print(content)


if __name__ == "__main__":
    main()
