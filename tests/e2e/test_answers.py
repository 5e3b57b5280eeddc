"""What quantization costs in right answers, over thousands of held-out scenes, on every target."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from artifacts import passes
from artifacts.formats.task import STAND_IN_QUESTIONS
from edgewright.api import run
from recipes.checkpoints.scenes import HELD_OUT_SEED
from recipes.checkpoints.write_questions import write_questions
from runtime_tests.jobs import Job
from runtime_tests.process import run_child
from runtime_tests.task import TaskLimits, judge, read_questions

TINY = Path(__file__).parents[2] / "recipes" / "checkpoints" / "tiny-smolvlm2"
RECIPE = """
name: int{bits}
checkpoint: {{path: {tiny}}}
quantize:
  rules:
    - {{match: "*.patch_embedding", bits: 16}}
    - {{match: "model.vision_model.*", bits: 8, method: {method}}}
    - {{match: "*", bits: {bits}, method: {method}}}
  calibration: {{images: seen/questions.jsonl}}
context: {{max_tokens: 256}}
targets: {{onnx: {{}}, coreml: {{}}, mlx: {{}}, tvm: {{}}}}
validate: {{task: {{file: held-out/questions.jsonl, max_accuracy_drop: {drop}, min_agreement: 80%}}}}
"""


@pytest.mark.nightly
@pytest.mark.parametrize(("bits", "method", "drop"), [(8, "rtn", 0.01), (4, "gptq", 0.05)])
def test_right_answers_after_quantization(tmp_path: Path, bits: int, method: str, drop: float) -> None:
    """Each target loses no more than that, and two of them say the same at least 98 times in 100."""
    write_questions(tmp_path / "held-out", 2000, first=HELD_OUT_SEED)
    write_questions(tmp_path / "seen", 600)
    recipe = tmp_path / "r.yaml"
    calibration = "  calibration" if method == "gptq" else "# "
    recipe.write_text(
        RECIPE.format(bits=bits, method=method, drop=drop, tiny=TINY).replace("  calibration", calibration)
    )
    report = run(recipe, out=tmp_path / "out", validate=False)
    said: dict[str, list[str]] = {}
    for target in report.targets:
        artifact = tmp_path / "out" / f"int{bits}" / target.target
        ended = run_child(Job(kind="task", artifact=artifact), lambda event: None)
        assert ended.result is not None, ended.stderr_tail
        said[target.target] = ended.result["answers"]
        questions = read_questions(artifact)
        figures, checks = judge(questions, said[target.target], TaskLimits(drop, 0.8), ended.result["stand_in"])
        for figure in figures:
            print(bits, method, target.target, figure.name, figure.value, figure.interval, figure.at)
        assert len(said[target.target]) == (STAND_IN_QUESTIONS if target.target == "coreml" else 2000)
        assert passes(checks), checks
    for one, other in itertools.combinations(said, 2):
        pairs = list(zip(said[one], said[other], strict=False))  # Core ML is asked fewer
        agreement = sum(a == b for a, b in pairs) / len(pairs)
        print(bits, method, one, other, "agree on", agreement, "of", len(pairs))
        assert agreement >= 0.98
