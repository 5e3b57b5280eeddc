"""`.mlxfn` files, called in Python and C++, against PyTorch; no class of mlx-lm takes part."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch

from artifacts import EdgewrightError
from compiler.slots import Scheme
from compiler.targets.base import BuildJob
from compiler.targets.mlx.functions import GraphFunction, export_component
from compiler.targets.mlx.options import MlxOptions
from tests.compiler.conftest import Jobs, job_logits, packed
from tests.compiler.targets.mlx_probes import probe

TABLE = "model.embed_tokens"
CACHE, PREFILL = 48, 16
PADDING = 3


def exported(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.export.ExportedProgram:
    with torch.no_grad():
        return torch.export.export(module, inputs).run_decompositions({})


@pytest.mark.parametrize("name", ["vision", "renderer", "expression"])
def test_components_without_a_model_class_equal_pytorch(tmp_path: Path, name: str) -> None:
    """Inputs other than those traced: a constant folded from an example would show."""
    module, inputs = probe(name)
    export_component(exported(module, inputs), tmp_path, name, mx.float32)
    others = tuple(x.flip(-1) * 0.5 + 0.1 if x.is_floating_point() else x.flip(0) for x in inputs)
    weights = mx.load(str(tmp_path / f"{name}.safetensors"))
    with torch.no_grad():
        expected = module(*others).numpy()
    found = mx.import_function(str(tmp_path / f"{name}.mlxfn"))(*(mx.array(x.numpy()) for x in others), **weights)
    np.testing.assert_allclose(np.array(found[0]), expected, atol=1e-4 * np.ptp(expected))
    assert (tmp_path / f"{name}.mlxfn").stat().st_size < 60_000, "weights belong in the safetensors file"


def test_float16_components_stay_float16(tmp_path: Path) -> None:
    module, inputs = probe("vision")
    export_component(exported(module, inputs), tmp_path, "vision")
    weights = mx.load(str(tmp_path / "vision.safetensors"))
    assert {w.dtype for w in weights.values()} <= {mx.float16, mx.int64}
    pixels = mx.array(inputs[0].numpy()).astype(mx.float16)
    (found,) = mx.import_function(str(tmp_path / "vision.mlxfn"))(pixels, **weights)
    with torch.no_grad():
        expected = module(*inputs).numpy()
    assert found.dtype == mx.float16
    np.testing.assert_allclose(np.array(found.astype(mx.float32)), expected, atol=3e-3 * np.ptp(expected))


def test_an_operator_without_a_lowering_is_refused_by_name() -> None:
    class Sorts(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sort().values.cumsum(0)

    with pytest.raises(EdgewrightError, match=r"no lowering for aten\.cumsum\.default, aten\.sort\.default"):
        GraphFunction(exported(Sorts(), (torch.rand(4),)))


@pytest.fixture
def package(ministral: Path, jobs: Jobs, tmp_path: Path) -> tuple[Path, BuildJob]:
    """Mixed bits, so that q, k and v are multiplied apart in one layer and fused in the other."""
    others = {TABLE: Scheme(8, 64), "model.layers.1.self_attn.v_proj": Scheme(8, 32)}
    job = jobs(ministral, MlxOptions(mlxfn_prefill=PREFILL), Scheme(4, 32), others, max_tokens=CACHE)
    runtime: Any = packed(job, "mlx", tmp_path / "mlx").runtime
    assert runtime["exported"] == {"file": "decoder.mlxfn", "prefill_tokens": 16}
    assert "decoder.mlxfn" in runtime["payload"]["ios"]
    return tmp_path / "mlx", job


def layers(job: BuildJob) -> int:
    return len(job.model.component("decoder").states) // 2


def run(folder: Path, ids: np.ndarray[Any, Any], layers: int, weights: dict[str, mx.array]) -> np.ndarray[Any, Any]:
    """Prefill of two pieces, the second padded, then token by token: logits [n, vocab]."""
    step = mx.import_function(str(folder / "decoder.mlxfn"))
    caches = [mx.zeros((1, 2, CACHE, 32), mx.float16) for _ in range(2 * layers)]
    pieces = [(0, PREFILL), (PREFILL, 2 * PREFILL - PADDING), *((i, i + 1) for i in range(2 * PREFILL - PADDING, 40))]
    rows = []
    for start, stop in pieces:
        length = PREFILL if stop - start > 1 else 1
        tokens = np.zeros((1, length), np.int32)
        tokens[0, : stop - start] = ids[start:stop]
        positions = np.arange(start, start + length, dtype=np.int32)[None]
        logits, *caches = step(mx.array(tokens), mx.array(positions), *caches, **weights)
        rows.append(np.array(logits.astype(mx.float32))[0, : stop - start])
    return np.concatenate(rows)


def test_prefill_and_decode_over_one_cache_equal_the_reference(package: tuple[Path, BuildJob]) -> None:
    folder, job = package
    weights = mx.load(str(folder / "model.safetensors"))
    ids = np.random.default_rng(3).integers(0, 160, 40)
    expected = job_logits(job, ids[None])[0]
    found = run(folder, ids, layers(job), weights)
    np.testing.assert_allclose(found, expected, atol=5e-3 * np.ptp(expected))  # float16 kernels
    assert (found.argmax(-1) == expected.argmax(-1)).mean() > 0.9
    words = np.array(weights["model.layers.0.mlp.down_proj.weight"])
    words[3, 5] ^= 0x80000000
    weights["model.layers.0.mlp.down_proj.weight"] = mx.array(words)
    assert np.abs(run(folder, ids, layers(job), weights) - found).max() > 2e-2, "weights are arguments, not constants"


CPP = r"""
#include <iostream>
#include "mlx/mlx.h"
namespace mx = mlx::core;
int main(int, char** argv) {
  auto step = mx::import_function(argv[1]);
  auto loaded = mx::load_safetensors(argv[2]).first;
  mx::Kwargs weights(loaded.begin(), loaded.end());
  int length = std::stoi(argv[3]), layers = std::stoi(argv[4]);
  mx::Args arguments = {mx::reshape(mx::arange(length, mx::int32), {1, length}),
                        mx::reshape(mx::arange(length, mx::int32), {1, length})};
  for (int i = 0; i < 2 * layers; i++) arguments.push_back(mx::zeros({1, 2, 48, 32}, mx::float16));
  auto logits = mx::astype(mx::reshape(step(arguments, weights)[0], {length, -1}), mx::float32);
  auto top = mx::argmax(logits, -1);
  mx::eval(logits, top);
  for (int i = 0; i < length; i++) std::cout << top.data<uint32_t>()[i] << " ";
  std::cout << mx::max(logits).item<float>() << "\n";
}
"""


def test_a_cpp_program_loads_the_same_file(package: tuple[Path, BuildJob], tmp_path: Path) -> None:
    """Headers and library come with MLX's own wheel."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    assert compiler, "this test compiles a C++ program: install g++ or clang++"
    folder, job = package
    root = Path(mx.__file__).parent
    (tmp_path / "main.cpp").write_text(CPP)
    binary = tmp_path / "main"
    command = [compiler, "-std=c++20", "-O0", f"-I{root / 'include'}", str(tmp_path / "main.cpp"), "-o", str(binary)]
    command += [f"-L{root / 'lib'}", "-lmlx", f"-Wl,-rpath,{root / 'lib'}", "-D_GLIBCXX_USE_CXX11_ABI=1"]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-2000:]
    command = [str(binary), str(folder / "decoder.mlxfn"), str(folder / "model.safetensors"), "16", str(layers(job))]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    *top, largest = ran.stdout.split()
    step = mx.import_function(str(folder / "decoder.mlxfn"))
    ids = mx.arange(16, dtype=mx.int32)[None]
    caches = [mx.zeros((1, 2, CACHE, 32), mx.float16) for _ in range(2 * layers(job))]
    logits = step(ids, ids, *caches, **mx.load(str(folder / "model.safetensors")))[0][0].astype(mx.float32)
    assert [int(t) for t in top] == mx.argmax(logits, -1).tolist()
    assert float(largest) == pytest.approx(float(logits.max()), rel=1e-4)
