"""golden.safetensors is untrusted: every lie in it is named, nothing in it crashes the reader."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from artifacts import EdgewrightError
from runtime_tests.golden import read_golden

N, L, V = 2, 5, 70
Tensors = dict[str, Any]
METADATA = {
    "version": "1",
    "text": "held out",
    "original_positions": "3",
    "tolerances": json.dumps({"exact_max_abs_logit": 2e-4, "shipped_mean_kl": 2e-3, "shipped_min_top1": 0.97}),
}


def tensors() -> Tensors:
    logits = np.random.default_rng(0).standard_normal((N, L, V)).astype(np.float32)
    ids = np.argsort(-logits, axis=-1)[..., :64].astype(np.int32)
    found: Tensors = {"tokens": np.arange(N * L, dtype=np.int32).reshape(N, L)}
    for side in ("reference", "original"):
        found |= {
            f"{side}.target_logprob": np.full((N, L - 1), -4.0, np.float32),
            f"{side}.logsumexp": np.full((N, L), 4.7, np.float32),
            f"{side}.top_ids": ids,
            f"{side}.top_logits": np.take_along_axis(logits, ids, -1),
        }
    found["full.index"] = np.array([[0, 0], [0, 4], [1, 2], [1, 4]], np.int32)
    found["reference.full_logits"] = np.stack([logits[i, j] for i, j in found["full.index"]])
    return found


def written(folder: Path, content: Tensors, metadata: dict[str, str]) -> Path:
    save_file({name: np.ascontiguousarray(t) for name, t in content.items()}, folder / "golden.safetensors", metadata)
    return folder / "golden.safetensors"


def test_a_good_file(tmp_path: Path) -> None:
    golden = read_golden(written(tmp_path, tensors(), METADATA))
    assert (golden.sequences, golden.length, golden.vocabulary, golden.original_positions) == (N, L, V, 3)
    assert golden.tolerances.exact_max_abs_logit == 2e-4 and golden.text == "held out"
    assert golden.reference.top_ids.shape == (N, L, 64) and golden.full_logits.shape == (4, V)


def set_to(name: str, change: Callable[[Any], Any]) -> Callable[[Tensors], None]:
    def apply(content: Tensors) -> None:
        content[name] = change(content[name])

    return apply


def with_value(index: tuple[int, ...], value: float) -> Callable[[Any], Any]:
    def change(tensor: Any) -> Any:
        tensor = tensor.copy()
        tensor[index] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("original.logsumexp"), "original.logsumexp: missing"),
        (lambda c: c.update(extra=np.zeros(1, np.float32)), "unknown tensors extra"),
        (set_to("tokens", lambda t: t.astype(np.int64)), r"tokens: int64 \[2, 5\], expected int32"),
        (set_to("tokens", lambda t: t + V), "tokens: ids outside of 0…69"),
        (set_to("tokens", lambda t: t - 1), "tokens: ids outside"),
        (set_to("original.top_ids", with_value((0, 0, 0), V)), "original.top_ids: ids outside"),
        (set_to("reference.top_logits", lambda t: t[..., :63]), r"top_logits: float32 \[2, 5, 63\], expected .*64"),
        (set_to("reference.top_logits", lambda t: t[..., ::-1]), "reference.top_logits: not in descending order"),
        (set_to("reference.full_logits", with_value((1, 1), np.nan)), "reference.full_logits: holds NaN or infinity"),
        (set_to("original.logsumexp", with_value((0, 0), np.inf)), "original.logsumexp: holds NaN or infinity"),
        (set_to("original.target_logprob", with_value((0, 0), 0.5)), "a probability above 1"),
        (set_to("full.index", with_value((0, 1), L)), r"full\.index: outside of 2 × 5"),
        (set_to("full.index", with_value((0, 0), -1)), r"full\.index: outside"),
        (set_to("full.index", lambda t: t[:3]), r"full\.index: int32 \[3, 2\]"),
        (set_to("reference.full_logits", lambda t: t[:3]), r"full_logits: 3 positions are not what a vocabulary of 70"),
        (
            set_to("reference.full_logits", lambda t: t[:, :0]),
            r"full_logits: 4 positions are not what a vocabulary of 0",
        ),
    ],
)
def test_every_lie_in_a_tensor_is_named(tmp_path: Path, change: Callable[[Tensors], None], message: str) -> None:
    content = tensors()
    change(content)
    with pytest.raises(EdgewrightError, match=f"golden.safetensors: .*{message}"):
        read_golden(written(tmp_path, content, METADATA))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "2"}, "version '2', this Edgewright reads '1'"),
        ({"original_positions": "many"}, "invalid literal"),
        ({"original_positions": "0"}, "original_positions is 0"),
        ({"tolerances": "{"}, "build the artifact again"),
        ({"tolerances": "{}"}, "exact_max_abs_logit"),
        ({"tolerances": METADATA["tolerances"].replace("0.97", "NaN")}, "shipped_min_top1"),
        ({"text": "a\x1b[2Jb"}, r"text is 'a\\x1b\[2Jb'; one to 200 printable characters"),
        ({"text": ""}, "text is ''"),
        ({"text": "x" * 201}, "one to 200 printable characters"),
    ],
)
def test_every_lie_in_the_metadata_is_named(tmp_path: Path, change: dict[str, str], message: str) -> None:
    with pytest.raises(EdgewrightError, match=message):
        read_golden(written(tmp_path, tensors(), METADATA | change))


@pytest.mark.parametrize("missing", ["original_positions", "tolerances", "text"])
def test_a_missing_key_is_named(tmp_path: Path, missing: str) -> None:
    metadata = {key: value for key, value in METADATA.items() if key != missing}
    with pytest.raises(EdgewrightError, match=f"metadata lacks '{missing}'"):
        read_golden(written(tmp_path, tensors(), metadata))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(EdgewrightError, match="cannot be read as safetensors"):
        read_golden(tmp_path / "nowhere.safetensors")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, tensors(), METADATA)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(EdgewrightError, match="cannot be read as safetensors"):
        read_golden(path)


def test_a_file_beyond_5_mb_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "golden.safetensors"
    with path.open("wb") as file:
        file.truncate(5_000_001)
    with pytest.raises(EdgewrightError, match="5000001 bytes; golden vectors take 5000000 at most"):
        read_golden(path)


@given(st.binary(max_size=300))
def test_no_bytes_crash_the_reader(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "golden.safetensors"
    path.write_bytes(content)
    with pytest.raises(EdgewrightError):
        read_golden(path)
