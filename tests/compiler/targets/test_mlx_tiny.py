"""The trained checkpoint that ships, in MLX: parity with PyTorch past its original positions, and greedy text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from artifacts import Manifest
from compiler.checkpoint import Checkpoint
from compiler.quantize.methods import mlx_affine, rtn
from compiler.slots import HALF, Scheme
from compiler.targets.base import BuildJob
from compiler.targets.mlx.options import MlxOptions
from recipes.corpus import stdlib_texts
from runtime_tests.drivers.text import Decoder
from runtime_tests.sessions.mlx import MlxSession
from tests.compiler.conftest import job_logits, packed, quantized_job

TINY = Path(__file__).parents[3] / "recipes" / "checkpoints" / "tiny-ministral3"
TOKENS, PROMPT = 320, 16
ANCHORED = Scheme(4, 32, symmetric=False)
CONTEXT = 1024
Package = tuple[Path, BuildJob, Manifest]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Scheme], Package]:
    """package(scheme): the folder, the job and the manifest; each scheme made once."""
    made: dict[Scheme, Package] = {}

    def make(scheme: Scheme) -> Package:
        if scheme not in made:
            folder = tmp_path_factory.mktemp("tiny")
            rule = mlx_affine.quantize if scheme == ANCHORED else rtn.quantize
            job = quantized_job(folder / "packed", TINY, MlxOptions(), scheme, max_tokens=CONTEXT, quantize=rule)
            made[scheme] = folder / "mlx", job, packed(job, "mlx", folder / "mlx")
        return made[scheme]

    return make


def decoder(package: Package, *, exact: bool) -> Decoder:
    folder, _, manifest = package
    session = MlxSession(folder, manifest)
    session.load(exact=exact)
    return Decoder(session, manifest.components[0], CONTEXT)


@pytest.fixture(scope="module")
def ids() -> np.ndarray[Any, Any]:
    """Held-out text, a quarter of it past the 256 original positions."""
    from tokenizers import Tokenizer

    text = next(t for t in stdlib_texts("held-out") if len(t) > 4 * TOKENS)
    found = Tokenizer.from_file(str(TINY / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    return np.asarray([[1, *found[: TOKENS - 1]]])


def test_16_bits_equal_transformers(package: Any, ids: np.ndarray[Any, Any]) -> None:
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)).logits[0].numpy()
    found = decoder(package(HALF), exact=True).logits(ids[0])
    assert np.abs(found - expected).max() <= 1e-5 * np.ptp(expected)


@pytest.mark.parametrize(
    "scheme",
    [Scheme(4, 32), Scheme(8, 32), pytest.param(Scheme(4, 64), marks=pytest.mark.nightly), ANCHORED],
    ids=str,
)
def test_quantized_weights_equal_the_reference_that_holds_them(
    package: Any, ids: np.ndarray[Any, Any], scheme: Scheme
) -> None:
    made = package(scheme)
    expected = job_logits(made[1], ids)[0]
    assert np.abs(decoder(made, exact=True).logits(ids[0]) - expected).max() <= 1e-5 * np.ptp(expected)
    shipped = np.abs(decoder(made, exact=False).logits(ids[0]) - expected).max() / np.ptp(expected)
    assert 1e-5 < shipped < 5e-3, "float16, and an asymmetric group's bias rounded to it"


@pytest.mark.parametrize(
    ("scheme", "continued"),
    [(Scheme(4, 32), 8), *(pytest.param(Scheme(bits, 32), 24, marks=pytest.mark.nightly) for bits in (4, 8))],
    ids=str,
)
def test_mlx_lm_generates_our_greedy_text(
    package: Any, ids: np.ndarray[Any, Any], scheme: Scheme, continued: int
) -> None:
    """mlx_lm.load and generate without arguments, against the session and against PyTorch, token for token."""
    folder, job, manifest = package(scheme)
    prompt = ids[0, :PROMPT]
    model, tokenizer = mlx_lm.load(str(folder))
    said = [r.token for r in mlx_lm.stream_generate(model, tokenizer, prompt.tolist(), max_tokens=continued)]
    ours = decoder((folder, job, manifest), exact=False).greedy(prompt, continued)
    eos: Any = job.model.constants["eos"]
    assert len(said) == continued or said[-1] in eos
    assert said == ours[: len(said)]
    whole = np.concatenate([prompt, said[:-1]])[None]
    expected = job_logits(job, whole)[0]
    assert said == expected[PROMPT - 1 :].argmax(-1).tolist()


def test_edge_anchored_weights_are_those_of_mlx_lm_convert(package: Any, tmp_path: Path) -> None:
    """The whole command, bit by bit, with the plain symmetric rounding's error beside its own."""
    folder, job, _ = package(ANCHORED)
    target = tmp_path / "convert"
    mlx_lm.convert(str(TINY), str(target), quantize=True, q_bits=4, q_group_size=32, dtype="float16")
    ours, theirs = (mx.load(str(f / "model.safetensors")) for f in (folder, target))
    assert ours.keys() == theirs.keys()
    assert all(
        np.array_equal(np.array(ours[n]), np.array(theirs[n])) and ours[n].dtype == theirs[n].dtype for n in ours
    )

    checkpoint, symmetric = Checkpoint(TINY), package(Scheme(4, 32))[1]
    errors = []
    for table in (job.weights, symmetric.weights):
        wrong = total = 0.0
        for name in table.schemes:
            original = checkpoint.rows(f"{name}.weight")
            wrong += float(((table.rows(name) - original) ** 2).sum())
            total += float((original**2).sum())
        errors.append((wrong / total) ** 0.5)
    print(f"relative error of the weights: mlx_affine {errors[0]:.4f}, symmetric rtn {errors[1]:.4f}")
    assert 0.03 < errors[0] < errors[1] * 1.2 < 0.2
