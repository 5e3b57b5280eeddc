"""`edgewright compare` on small real artifacts of the quickstart's checkpoint, beside folders that other tools made."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts import MANIFEST, read_manifest
from edgewright import api
from edgewright.report import REPORT_JSON
from runtime_tests import foreign
from runtime_tests.golden import GOLDEN, read_golden
from tests.edgewright.conftest import write_checkpoint

CHECKPOINT = Path(__file__).parents[2] / "recipes" / "checkpoints" / "tiny-ministral3"
RECIPE = """\
name: {name}
checkpoint: {{path: {checkpoint}}}
quantize:
  rules:
    - {{match: "*", bits: {bits}, group: 32}}
context: {{max_tokens: 64}}
targets: {targets}
validate:
  quality: {{text: {text}}}
  profiles: {{android-4gb: {{}}}}
"""


@dataclass(frozen=True)
class Place:
    """Runs of INT4 and INT8 as ONNX packages, the former for MLX too (never validated), and what others made."""

    folder: Path

    @property
    def int4(self) -> Path:
        return self.folder / "int4"

    @property
    def int8(self) -> Path:
        return self.folder / "int8"

    @property
    def mlx(self) -> Path:
        return self.folder / "mlx" / "mlx"

    @property
    def genai(self) -> Path:
        return self.folder / "genai"

    @property
    def community(self) -> Path:
        return self.folder / "community"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("compared")
    (folder / "held.txt").write_text((Path(__file__).parents[2] / "edgewright" / "text.py").read_text()[:3300])
    for name, bits, target in (("int4", 4, "onnx"), ("int8", 8, "onnx"), ("mlx", 4, "mlx")):
        run(folder, name, bits, target, CHECKPOINT, validate=target == "onnx")
    package = folder / "int4" / "onnx"
    payload: Any = read_manifest(package).runtime["payload"]
    (folder / "genai").mkdir()
    for file in payload["android"]:
        shutil.copy(package / file, folder / "genai" / file)
    from mlx_lm import convert

    convert(str(CHECKPOINT), str(folder / "community"), quantize=True, q_bits=4, q_group_size=64)
    return Place(folder)


def run(folder: Path, name: str, bits: int, target: str, checkpoint: Path, *, validate: bool) -> None:
    recipe = folder / f"{name}.yaml"
    text = folder / "held.txt"
    recipe.write_text(
        RECIPE.format(name=name, bits=bits, targets=f"{{{target}: {{}}}}", checkpoint=checkpoint, text=text)
    )
    api.run(recipe, out=folder, validate=validate)


def compared(edgewright: Any, *arguments: str | Path) -> dict[str, Any]:
    code, out, err = edgewright("compare", *map(str, arguments), "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def row(found: dict[str, Any], group: str, label: str) -> dict[str, Any]:
    one: dict[str, Any] = next(row for row in found["rows"] if row["group"] == group and row["label"].startswith(label))
    return one


def test_runs_show_differences_first_and_what_explains_them(place: Place, edgewright: Any, tmp_path: Path) -> None:
    code, out, err = edgewright("compare", str(place.int4), str(place.int8), "--csv", str(tmp_path / "all.csv"))
    assert code == 0, err
    assert max(map(len, out.splitlines())) <= 80
    assert out.index("Differences to A") < out.index("The same in all:") < out.index("What else is different in B:")
    assert "rule: INT4 group 32 rtn → INT8 group 32 rtn" in " ".join(out.split())
    sizes = [int(read_manifest(folder / "onnx").total_bytes) for folder in (place.int4, place.int8)]
    assert sizes[0] < sizes[1]
    rows = list(csv.DictReader((tmp_path / "all.csv").open()))
    size = next(one for one in rows if one["figure"] == "in an app (android)" and one["side"] == "B")
    first = next(one for one in rows if one["figure"] == "in an app (android)" and one["side"] == "A")
    assert float(size["difference"]) == pytest.approx(float(size["value"]) / float(first["value"]) - 1)
    assert size["relative"] == "True"


def test_intervals_are_paired_where_golden_vectors_are_and_else_combined(place: Place, edgewright: Any) -> None:
    found = compared(edgewright, place.int4 / "onnx", place.int8 / REPORT_JSON)
    weights = row(found, "quality", "perplexity, change of the weights alone")
    as_run = row(found, "quality", "perplexity, change")
    paired, combined = weights["against"][0], as_run["against"][0]
    assert (paired["method"], combined["method"]) == ("paired", "combined")
    goldens = [read_golden(place.folder / name / "onnx" / GOLDEN) for name in ("int4", "int8")]
    own = [np.exp(-golden.reference.target_logprob.astype(np.float64).mean()) for golden in goldens]
    unquantized = np.exp(-goldens[0].original.target_logprob.astype(np.float64).mean())
    assert paired["value"] == pytest.approx((own[1] - own[0]) / unquantized, rel=1e-6)
    low, high = paired["interval"]
    assert low < paired["value"] < high
    assert high - low < combined["interval"][1] - combined["interval"][0]  # what is hard for both cancels
    halves = [(cell["interval"][1] - cell["interval"][0]) / 2 for cell in as_run["cells"]]
    assert (combined["interval"][1] - combined["interval"][0]) / 2 == pytest.approx(np.hypot(*halves))


def test_a_package_in_genai_is_the_package(place: Place, edgewright: Any) -> None:
    found = compared(edgewright, place.int4 / "onnx", place.genai)
    assert [side["what"] for side in found["sides"]] == ["onnx", "onnxruntime-genai"]
    kl = row(found, "quality", "mean KL to unquantized")
    ours, theirs = (cell["value"] for cell in kl["cells"])
    report = api_value(place.int4, "mean_kl")
    assert ours == pytest.approx(report, rel=1e-9)  # the same formula as in a validation
    assert theirs == pytest.approx(ours, rel=0.05)  # the same weights, activations in another order
    assert kl["against"][0]["method"] == "paired"
    memory = row(found, "android-4gb", "peak memory at 64 tokens")
    assert [cell["verdict"] for cell in memory["cells"]] == ["fits", "fits"]
    speed = row(found, "this host", "decode")["against"][0]
    assert speed["method"] == "rounds"
    assert speed["interval"][0] < speed["value"] < speed["interval"][1]
    size = row(found, "size", "in an app (android)")
    assert size["cells"][0]["value"] == size["cells"][1]["value"]
    assert not (place.genai / MANIFEST).exists()


@pytest.mark.nightly
def test_a_community_folder_is_scored_by_the_same_text(place: Place, edgewright: Any) -> None:
    code, out, err = edgewright("compare", str(place.int4), str(place.community), "--profile", "iphone-12", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [side["weights"] for side in found["sides"]][1] == "4 bits, group 64"
    same = row(found, "quality", "same token as unquantized")
    ours, theirs = (cell["value"] for cell in same["cells"])
    assert 0.5 < theirs < ours + 0.05  # INT4 in groups of 64, and of 32
    assert same["cells"][1]["stand_in"] == "MLX's CPU kernels in float32"
    perplexity = row(found, "quality", "perplexity, change")
    assert perplexity["cells"][1]["value"] == pytest.approx(community_change(place), abs=1e-4)
    memory = row(found, "iphone-12", "peak memory at 64 tokens")
    assert [cell["verdict"] for cell in memory["cells"]] == ["fits", "fits"]
    speed = row(found, "this host", "decode")
    assert speed["cells"][0] is not None and speed["cells"][1] is None
    assert any(note.startswith("B: no speed: MLX's CPU kernels") for note in found["notes"])
    assert any(note.startswith("B: does not say which checkpoint it is of") for note in found["notes"])


@pytest.mark.nightly
def test_onnx_and_mlx_of_the_same_weights(place: Place, edgewright: Any) -> None:
    found = compared(edgewright, place.int4, place.mlx, "--measure", "--profile", "android-4gb")
    perplexity = row(found, "quality", "perplexity, change")
    low, high = perplexity["against"][0]["interval"]
    assert low <= 0 <= high or abs(perplexity["against"][0]["value"]) < 1e-3
    memory = row(found, "android-4gb", "peak memory")
    assert [cell["verdict"] for cell in memory["cells"]] == ["fits", "not for this platform"]
    assert found["reasons"]["B"][0] == "runtime: onnx → mlx"
    assert not [line for line in found["reasons"]["B"] if line.startswith(("rule", "tensor"))]


def test_seven_sides_still_read(place: Place, edgewright: Any) -> None:
    code, out, _ = edgewright("compare", *[str(place.int4), str(place.int8)] * 3, str(place.int4))
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "G onnx" in out
    assert "What else is different in C: nothing" in out


def test_different_checkpoints_compare_no_quality(place: Place, edgewright: Any, tmp_path: Path) -> None:
    shutil.copy(place.folder / "held.txt", tmp_path)
    run(tmp_path, "other", 4, "onnx", write_checkpoint(tmp_path / "weights"), validate=True)
    found = compared(edgewright, place.int4, tmp_path / "other")
    assert {one["group"] for one in found["rows"]} == {"size", "android-4gb", "this host"}
    assert any("quality is not" in note for note in found["notes"])
    code, _, err = edgewright("compare", str(tmp_path / "other" / "onnx"), str(place.genai))
    assert code == 2
    assert "has another tokenizer" in err


def test_what_cannot_be_compared_says_so(place: Place, edgewright: Any, tmp_path: Path) -> None:
    def refused(*arguments: Path | str) -> str:
        code, out, err = edgewright("compare", *map(str, arguments))
        assert code == 2, (out, err)
        assert err.count("error:") == 1
        return str(err)

    assert "nothing to compare" in refused(tmp_path, place.int4)
    assert "no such file or folder" in refused(tmp_path / "gone", place.int4)
    assert "name two artifacts or more" in refused(place.int4)
    assert "was not validated" in refused(place.int4, place.mlx)
    assert "with golden vectors" in refused(place.genai, place.community)
    report = json.loads((place.int4 / REPORT_JSON).read_text())
    newer = tmp_path / "newer.json"
    newer.write_text(json.dumps({**report, "schema_version": 3, "more": []}))
    assert "schema version 3 is newer than this Edgewright reads (2); upgrade it" in refused(newer, place.int4)
    shutil.copytree(place.genai, tmp_path / "small")
    config = json.loads((tmp_path / "small" / "genai_config.json").read_text())
    config["model"]["context_length"] = 16
    (tmp_path / "small" / "genai_config.json").write_text(json.dumps(config))
    assert "its context is of 16 tokens" in refused(place.int4, tmp_path / "small")
    config["model"]["decoder"]["session_options"]["custom_ops_library"] = "evil.so"
    (tmp_path / "small" / "genai_config.json").write_text(json.dumps(config))
    assert "which is code; it is not run" in refused(place.int4, tmp_path / "small")
    shutil.copytree(place.community, tmp_path / "mode")
    config = json.loads((place.community / "config.json").read_text())
    config["quantization"]["mode"] = "mxfp4"
    (tmp_path / "mode" / "config.json").write_text(json.dumps(config))
    assert "'mxfp4' is not run here" in refused(place.int4, tmp_path / "mode")


def test_a_foreign_folder_is_told_from_others(place: Place, tmp_path: Path) -> None:
    assert foreign.kind_of(place.genai) == foreign.GENAI
    assert foreign.kind_of(place.community) == foreign.MLX
    assert foreign.kind_of(place.mlx) is None  # ours, though mlx-lm reads it
    assert foreign.kind_of(CHECKPOINT) is None
    assert foreign.kind_of(tmp_path) is None


def api_value(run: Path, name: str) -> float:
    report = json.loads((run / REPORT_JSON).read_text())
    figures = report["targets"][0]["figures"]
    return float(next(figure["value"] for figure in figures if figure["name"] == name))


def community_change(place: Place) -> float:
    """The perplexity's change, by mlx-lm alone and in float64."""
    import mlx.core as mx
    from mlx_lm.utils import load_model

    golden = read_golden(place.int4 / "onnx" / GOLDEN)
    model: Any = load_model(place.community)[0]
    model.set_dtype(mx.float32)
    logits = np.concatenate([np.array(model(mx.array(row[None]))) for row in golden.tokens]).astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    said = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    own = np.take_along_axis(said[:, :-1], golden.tokens[:, 1:, None].astype(np.int64), -1)
    return float(np.exp(golden.original.target_logprob.astype(np.float64).mean() - own.mean()) - 1)
