"""The TVM figures: decoding beside onnxruntime on the same packed bytes, memory at load, and compiling the full size.

python -m tests.bench.tvm [--work FOLDER] [--rounds N] [decode] [full]

Rates are medians over rounds in which both runtimes take turns, two threads each, each in a process of its own. A
second table says where a decode step of ours goes: how much of it the matmuls take, and how fast they read their
weights beside two threads that do nothing but read. `full` compiles 3.43B parameters and measures every process of it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tests.bench.measure import MB, python, table, warm
from tests.bench.synthetic import ROOT, make_checkpoint

PROMPT, STEPS = 32, 64
GROUPS = (32, 128)


def build(source: Path, out: Path, group: int, target: str | None) -> None:
    """Child: quantize a checkpoint (unless that is done) and write one target's package, without golden vectors."""
    from artifacts import silent, staged, write_manifest
    from compiler import pipeline
    from compiler.checkpoint import Checkpoint
    from edgewright.api import recipe_type

    content = {
        "name": "bench",
        "checkpoint": {"path": str(source)},
        "quantize": {"rules": [{"match": "*", "bits": 4, "group": group}]},
        "context": {"max_tokens": 256},
        "targets": {target or "tvm": {}},
    }
    recipe, checkpoint = recipe_type().model_validate(content), Checkpoint(source)
    done = pipeline.quantize(recipe, checkpoint, "bench", None, out / "quantized", silent)
    if target is None:
        return
    started = time.monotonic()
    with staged(out / target) as folder:
        write_manifest(folder, pipeline.build(recipe, target, done, checkpoint, folder, silent))
    print(json.dumps({"build_s": time.monotonic() - started}))


def decode(folder: Path) -> None:
    """Child: the rate of greedy steps after a prompt, and what loading adds to anonymous memory."""
    from artifacts import read_manifest
    from device_farm import read_split
    from runtime_tests.sessions import make_session

    manifest = read_manifest(folder)
    session = make_session(folder, manifest)
    before = read_split().anonymous
    session.load(threads=2)
    loaded = read_split().anonymous - before
    greedy = _Greedy(session)
    token = greedy.take(np.random.default_rng(0).integers(16, 4000, PROMPT))
    times = []
    for _ in range(STEPS):
        started = time.monotonic()
        token = greedy.take(np.asarray([token]))
        times.append(time.monotonic() - started)
    after = read_split().anonymous - before
    found = {"tokens_per_s": 1 / float(np.median(times)), "loaded_bytes": loaded, "steady_bytes": after}
    states = [state.shape for part in manifest.components for state in part.states]
    found["cache_bytes"] = 4 * sum(math.prod(cast(tuple[int, ...], shape)) for shape in states)
    print(json.dumps(found))


class _Greedy:
    """A decoder at work: the likeliest token after some more."""

    def __init__(self, session: Any) -> None:
        self._session, self._done = session, 0

    def take(self, ids: NDArray[Any]) -> int:
        positions = np.arange(self._done, self._done + len(ids))[None]
        entry = "decode" if len(ids) == 1 else "prefill"
        found = self._session.call("decoder", entry, input_ids=ids.astype(np.int64)[None], positions=positions)
        self._done += len(ids)
        return int(found["logits"][0, -1].argmax())


def limits(folder: Path) -> None:
    """Child: a decode step, the matmuls of one, and what reading the same bytes takes; milliseconds and bytes."""
    import tvm_ffi

    from artifacts import read_manifest
    from artifacts.formats import tvm as formats
    from compiler.targets.tvm import isa
    from compiler.targets.tvm.kernels import dot
    from runtime_tests.sessions.tvm import SESSION, aligned, best_library, cpu_features, map_parameters

    manifest = read_manifest(folder)
    runtime = formats.TvmRuntime.model_validate(manifest.runtime)
    session = SESSION(folder, manifest)
    session.load(threads=2)
    greedy = _Greedy(session)
    greedy.take(np.arange(16, 16 + PROMPT))
    found = {"step_ms": _median_ms(lambda: greedy.take(np.asarray([17])), STEPS)}

    library = best_library(runtime.libraries, cpu_features())
    kind = next(i for i in vars(isa).values() if isinstance(i, isa.Isa) and i.name == library.variant)
    kernels = tvm_ffi.load_module(str(folder / library.path)).imports[0]
    digest = _digest(folder / runtime.params, formats.DIGEST_AT)
    steps, size, arrays = [], 0, map_parameters(folder / runtime.params, digest)
    for codes, scales in itertools.pairwise(arrays):
        if codes.dtype != np.uint8 or scales.dtype != np.float16:
            continue
        rows, columns, groups = codes.shape[0], codes.shape[1] * 2, scales.shape[1]
        layout = dot.layout(columns, 4, columns // groups, kind)
        assert layout is not None
        given = [aligned(s, d) for s, d in (((1, columns), np.int8), ((1, groups), np.float32))]
        if layout.starts:
            given.append(aligned((1, layout.units, layout.starts), np.int32))
        for array in given:
            array.fill(1)
        tensors = [tvm_ffi.from_dlpack(a) for a in (codes, scales, *given, aligned((1, 1, rows), np.float32))]
        steps.append((kernels[f"dot_{rows}_{columns}_4_{columns // groups}_gemv"], tensors))
        size += codes.nbytes + scales.nbytes

    def matmuls() -> None:
        for kernel, tensors in steps:
            kernel(*tensors)

    words = np.fromfile(folder / runtime.params, np.uint64, size // 8)
    halves = np.array_split(words, 2)
    with ThreadPoolExecutor(2) as pool:
        found["read_ms"] = _median_ms(lambda: list(pool.map(np.bitwise_or.reduce, halves)), 8)
    found |= {"matmul_ms": _median_ms(matmuls, STEPS), "bytes": size}
    print(json.dumps(found))


def _digest(params: Path, at: int) -> str:
    with params.open("rb") as file:
        file.seek(at)
        return file.read(32).hex()


def _median_ms(call: Callable[[], object], times: int) -> float:
    found = []
    for _ in range(times):
        started = time.monotonic()
        call()
        found.append(1e3 * (time.monotonic() - started))
    return statistics.median(found)


def compare(work: Path, rounds: int) -> None:
    """Decode rates of the 600M geometry."""
    source = make_checkpoint(work / "600m", "600m")
    rows: list[list[object]] = []
    for group in GROUPS:
        out = work / f"tvm-600m-g{group}"
        rates: dict[str, list[float]] = {"onnx": [], "tvm": []}
        memory: dict[str, list[float]] = {"onnx": [], "tvm": []}
        for target in rates:
            if not (out / target / "edgewright.json").exists():
                python("tests.bench.tvm", "--child", "build", source, out, group, target)
        for _ in range(rounds):
            for target in rates:
                found = python("tests.bench.tvm", "--child", "decode", out / target).result
                rates[target].append(found["tokens_per_s"])
                memory[target] = [found["loaded_bytes"] / MB, found["steady_bytes"] / MB]
        base = statistics.median(rates["onnx"])
        for target, found in rates.items():
            rate = statistics.median(found)
            name = {"onnx": "onnxruntime", "tvm": "TVM"}[target]
            rows.append([f"{name}, group {group}", rate, f"{rate / base:.2f}", *map(round, memory[target])])
    header = ["600M, INT4, two threads", "tok/s", "x onnxruntime", "anonymous MB after load", "and after decoding"]
    table("Decoding beside onnxruntime", header, rows)
    rows = []
    for group in GROUPS:
        found = python("tests.bench.tvm", "--child", "limits", work / f"tvm-600m-g{group}" / "tvm").result
        step, matmuls, read = found["step_ms"], found["matmul_ms"], found["read_ms"]
        rate = found["bytes"] / 1e6
        rows.append([f"TVM, group {group}", step, matmuls, f"{matmuls / step:.2f}", rate / matmuls, read, rate / read])
    header = ["what limits a step", "step ms", "its matmuls ms", "share", "GB/s in them", "reading alone ms", "GB/s"]
    table(
        "Where a decode step goes: matmuls over packed weights, and two threads of NumPy that only read them",
        header,
        rows,
    )


class TreePeak(threading.Thread):
    """While running, the largest sums over this process's descendants, each at its own moment, sampled every 50 ms.

    resident: pages of files that several map are counted for each of them. shared_once: PSS, which divides such pages
    by the processes that map them (and so is too small while others here run the same libraries). anonymous: of it,
    what no file backs. Bytes.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.resident = self.shared_once = self.anonymous = 0
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.05):
            found = [sizes for pid in _descendants(os.getpid()) if (sizes := _rollup(pid))]
            self.resident, self.shared_once, self.anonymous = (
                max(largest, sum(sizes[i] for sizes in found))
                for i, largest in enumerate((self.resident, self.shared_once, self.anonymous))
            )

    def __enter__(self) -> TreePeak:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, path.read_text().split()):
                found += [child, *_descendants(child)]
    return found


def _rollup(pid: int) -> tuple[int, int, int] | None:
    """Resident, proportional and anonymous proportional bytes; None when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return None
    sizes = {key: int(value.split()[0]) * 1024 for key, _, value in (line.partition(":") for line in lines)}
    return sizes["Rss"], sizes["Pss"], sizes["Pss_Anon"]


def full(work: Path) -> None:
    """3.43B parameters, INT4 group 64: limits 600 MB in all processes together, 1.95 GB of parameters; then decoding.

    The weights are quantized in a run of their own, whose memory is not what is asked here.
    """
    source = make_checkpoint(work / "ministral-3-3b", "ministral-3-3b")
    out = work / "tvm-full"
    python("tests.bench.tvm", "--child", "quantize", source, out, 64)
    with TreePeak() as peak:
        run = python("tests.bench.tvm", "--child", "build", source, out, 64, "tvm")
    size = (out / "tvm" / "params.bin").stat().st_size
    warm(out / "tvm")
    decoding = python("tests.bench.tvm", "--child", "decode", out / "tvm").result
    header = ["Ministral 3 3B geometry, INT4 group 64", "", ""]
    rows: list[list[object]] = [
        ["building", run.result["build_s"], "s"],
        ["peak of all processes, resident", round(peak.resident / MB), "MB"],
        ["… shared pages counted once", round(peak.shared_once / MB), "MB"],
        ["… of them anonymous", round(peak.anonymous / MB), "MB"],
        ["parameters", size / 1e9, "GB"],
        ["anonymous after load", round(decoding["loaded_bytes"] / MB), "MB"],
        ["anonymous after decoding", round(decoding["steady_bytes"] / MB), "MB"],
        ["cache", round(decoding["cache_bytes"] / MB), "MB"],
        ["decoding, two threads", decoding["tokens_per_s"], "tok/s"],
    ]
    table("Compiling for TVM, every triple and variant", header, rows)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        if sys.argv[2] in ("decode", "limits"):
            (decode if sys.argv[2] == "decode" else limits)(Path(sys.argv[3]))
        else:
            target = sys.argv[6] if sys.argv[2] == "build" else None
            build(Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]), target)
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("parts", nargs="*", choices=["decode", "full", []])
    arguments = parser.parse_args()
    parts = arguments.parts or ["decode", "full"]
    if "decode" in parts:
        compare(arguments.work, arguments.rounds)
    if "full" in parts:
        full(arguments.work)


if __name__ == "__main__":
    main()
