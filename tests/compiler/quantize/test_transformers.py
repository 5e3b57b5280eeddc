"""Whatever transformers loads from our own folders gives our reference's logits; what it cannot load, it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.compiler.conftest import original, reference_logits

from .conftest import Quantize

TABLE = "model.embed_tokens"
LOADED: dict[str, list[dict[str, Any]]] = {
    "uniform": [{"match": "*", "bits": 4, "group": 32, "method": "mse"}],
    "uniform, asymmetric gptq": [{"match": "*", "bits": 4, "group": 32, "method": "gptq", "symmetric": False}],
    "folded": [{"match": TABLE, "bits": 16}, {"match": "*", "bits": 8, "group": 32, "method": "awq"}],
    "mixed, embedding at 16 bits": [
        {"match": TABLE, "bits": 16},
        {"match": "*.down_proj", "bits": 8, "group": 16},
        {"match": "*", "bits": 4, "group": 32, "method": "gptq"},
    ],
}


def loaded_logits(folder: Path, ids: np.ndarray[Any, Any]) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        out: torch.Tensor = model(torch.from_numpy(ids)).logits
    return out


@pytest.mark.parametrize("name", LOADED)
def test_logits_are_those_of_the_reference(small: Path, quantize: Quantize, name: str) -> None:
    packed, _ = quantize(small, *LOADED[name])
    ids = np.random.default_rng(0).integers(16, 4000, (2, 24))
    expected = torch.from_numpy(reference_logits(original(small)[0], packed, ids))
    torch.testing.assert_close(loaded_logits(packed.path, ids), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("others", [{"bits": 4, "group": 16}, {"bits": 8, "group": 32}])
def test_a_quantized_embedding_among_other_schemes_is_refused_not_misread(
    small: Path, quantize: Quantize, others: dict[str, Any]
) -> None:
    packed, _ = quantize(small, {"match": TABLE, "bits": 4, "group": 32}, {"match": "*", **others})
    with pytest.raises((AttributeError, RuntimeError)):
        loaded_logits(packed.path, np.zeros((1, 4), np.int64))
