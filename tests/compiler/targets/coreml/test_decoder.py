"""Packages of the shipped checkpoint against PyTorch with the same dequantized weights."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compiler.slots import Scheme
from tests.compiler.conftest import MINISTRAL3, random_tensors, save
from tests.compiler.targets.coreml.conftest import INT4, INT8, TINY, Builder, Built, reference
from tests.compiler.targets.coreml.payloads import open_package, verify

Ids = np.ndarray[Any, Any]
PROMPT = 100


def decoded(built: Built, ids: Ids, *, exact: bool, prompt: int = PROMPT) -> torch.Tensor:
    """Logits after the prompt and after every further token, through the cache."""
    runner = built.runner(exact=exact)
    rows = [runner.prefill(ids[:prompt]), *(runner.decode(int(token)) for token in ids[prompt:])]
    return torch.from_numpy(np.stack(rows))


def distance(found: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """Relative RMS and mean KL(expected || found) in nats."""
    p, q = expected.double().log_softmax(-1), found.double().log_softmax(-1)
    rms = ((found - expected).square().mean() / expected.square().mean()).sqrt()
    return float(rms), float((p.exp() * (p - q)).sum(-1).mean())


@pytest.fixture(params=[INT4, INT8], ids=["int4", "int8"])
def tiny(request: pytest.FixtureRequest, build: Builder) -> Built:
    return build(TINY, request.param, 512)


def test_64_decoded_steps_in_half_precision_agree(tiny: Built, text: Ids) -> None:
    rms, kl = distance(decoded(tiny, text, exact=False), reference(tiny.job, text)[PROMPT - 1 :])
    assert rms <= 2e-3
    assert kl <= 1e-4


def test_the_same_steps_in_single_precision_agree_to_1e_4(tiny: Built, text: Ids) -> None:
    found, expected = decoded(tiny, text, exact=True), reference(tiny.job, text)[PROMPT - 1 :]
    assert (found - expected).abs().max() <= 1e-4


def test_one_flipped_high_nibble_of_a_used_row_is_seen(tiny: Built, text: Ids, tmp_path: Path) -> None:
    """A row of the embedding that the prompt uses; the flip is found through the program's own offsets."""
    copy = replace(tiny, folder=tmp_path / "coreml")
    shutil.copytree(tiny.folder, copy.folder)
    package = open_package(copy.folder)
    function = package.spec.mlProgram.functions["decode"]
    operations = function.block_specializations[function.opset].operations
    gather = next(o for o in operations if o.type == "gather" and o.outputs[0].name.startswith("embedding"))
    name = gather.inputs["x"].arguments[0].name
    constant = next(o for o in operations if o.outputs and o.outputs[0].name == name)
    offset = constant.inputs["data"].arguments[0].value.blobFileValue.offset
    row_bytes = tiny.job.spec.hidden * tiny.job.schemes["model.embed_tokens"].bits // 8
    with (copy.folder / "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin").open("r+b") as file:
        at = offset + 64 + int(text[PROMPT]) * row_bytes
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x80]))
    expected = reference(tiny.job, text)[PROMPT - 1 :]
    rms, kl = distance(decoded(copy, text, exact=False), expected)
    worst = (decoded(copy, text, exact=True) - expected).abs().max()
    assert rms > 2e-3 or kl > 1e-4
    assert worst > 1e-4


def test_all_positions_of_a_prompt_at_once(tiny: Built, text: Ids) -> None:
    found = torch.from_numpy(tiny.runner(exact=True).logits(text))
    assert (found - reference(tiny.job, text)).abs().max() <= 1e-4


def test_every_payload_is_the_packed_one_and_the_size_is_theirs(tiny: Built) -> None:
    job = tiny.job
    assert verify(open_package(tiny.folder), job.spec, job.schemes, job.weights, job.max_tokens) == 2 * (
        4 * job.spec.layers + 1
    )
    matrices = [s for s in job.slots if s.kind != "norm"]
    packed = sum(job.schemes[s.name].packed_bytes(s.rows, s.columns, scale_bytes=2) for s in matrices)
    size = (tiny.folder / "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin").stat().st_size
    assert packed < size <= 1.02 * packed


VARIANTS: dict[str, tuple[Scheme, dict[str, Scheme], dict[str, Any]]] = {
    "range": (INT4, {}, {"prompt": "range"}),
    "one length": (INT4, {}, {"prompt_lengths": (8,)}),
    "explicit caches": (INT4, {}, {"cache": "explicit"}),
    "explicit caches in float32": (INT8, {}, {"cache": "explicit", "compute": "fp32", "prompt": "range"}),
    "iOS 17": (
        Scheme(8, 0),
        {"model.layers.0.self_attn.o_proj": Scheme(8, 0, symmetric=False), "model.layers.1.mlp.down_proj": Scheme(16)},
        {"minimum": "iOS17", "cache": "explicit"},
    ),
    "zero points": (Scheme(4, 32, symmetric=False), {"model.embed_tokens": Scheme(8, 32, symmetric=False)}, {}),
    "per row": (Scheme(4, 0), {}, {}),
    "half precision": (Scheme(16), {}, {}),
    "a projection apart": (INT4, {"model.layers.1.self_attn.k_proj": INT8}, {}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_way_to_build_computes_the_same(variant: str, ministral: Path, build: Builder) -> None:
    """A random two-layer Ministral 3, past its original positions, where queries are scaled."""
    scheme, others, options = VARIANTS[variant]
    built = build(ministral, scheme, 80, others, **{"prompt_lengths": (4, 16), **options})
    ids = np.random.default_rng(3).integers(0, MINISTRAL3["vocab_size"], 60)
    expected = reference(built.job, ids)
    found = decoded(built, ids, exact=True, prompt=37)
    assert (found - expected[36:]).abs().max() <= 1e-4
    rms, _ = distance(decoded(built, ids, exact=False, prompt=37), expected[36:])
    assert rms <= (1e-5 if options.get("compute") == "fp32" else 4e-3)


def test_an_untied_head_is_its_own_weight(tmp_path: Path, build: Builder) -> None:
    config = MINISTRAL3 | {"tie_word_embeddings": False}
    built = build(save(tmp_path / "untied", config, random_tensors(config)), INT4, 32, prompt_lengths=(4, 16))
    ids = np.arange(20)
    assert (decoded(built, ids, exact=True, prompt=17) - reference(built.job, ids)[16:]).abs().max() <= 1e-4


def test_the_same_input_gives_the_same_bytes(ministral: Path, tmp_path: Path, build: Builder) -> None:
    copy = tmp_path / "again" / ministral.name
    shutil.copytree(ministral, copy)
    first, second = (build(path, INT4, 32, prompt_lengths=(4,)) for path in (ministral, copy))
    files = [p.relative_to(first.folder) for p in first.folder.rglob("*") if p.is_file()]
    assert len(files) >= 4
    for file in files:
        assert (first.folder / file).read_bytes() == (second.folder / file).read_bytes(), file
    assert not list(first.folder.rglob("executorch_debug_handle_mapping.json"))
