"""What quantization costs in right answers, over thousands of held-out scenes, on every target."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts.formats.task import STAND_IN_QUESTIONS
from edgewright.api import run
from recipes.checkpoints.scenes import HELD_OUT_SEED
from recipes.checkpoints.write_questions import write_questions

TINY = Path(__file__).parents[2] / "recipes" / "checkpoints" / "tiny-smolvlm2"
RECIPE = """
name: int{bits}
checkpoint: {{path: {tiny}}}
quantize:
  rules:
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
    write_questions(tmp_path / "held-out", 2000, first=HELD_OUT_SEED)
    write_questions(tmp_path / "seen", 600)
    recipe = tmp_path / "r.yaml"
    calibration = "  calibration" if method == "gptq" else "# "
    recipe.write_text(
        RECIPE.format(bits=bits, method=method, drop=drop, tiny=TINY).replace("  calibration", calibration)
    )
    report = run(recipe, out=tmp_path / "out")
    for target in report.targets:
        figures = {figure.name: figure for figure in target.figures}
        for name in ("task_accuracy_original", "task_accuracy", "task_accuracy_drop", "task_agreement"):
            print(bits, method, target.target, name, figures[name].value, figures[name].interval, figures[name].at)
        asked = f"{STAND_IN_QUESTIONS} questions of 2,000" if target.target == "coreml" else "2,000 questions"
        assert figures["task_accuracy"].at == asked
        assert target.verdict == "passed", target.checks
