"""Questions asked of artifacts: text, images and clips through the whole job, and the gate over the answers."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from artifacts import EdgewrightError
from artifacts.formats.task import MAX_BYTES, TASK, Medium, Question, Questions, tensor
from artifacts.formats.tensor_file import write_tensors
from recipes.checkpoints.scenes import HELD_OUT_SEED
from recipes.checkpoints.write_questions import write_questions
from runtime_tests.task import TaskLimits, ask, judge, read_questions
from tests.edgewright.conftest import write_checkpoint

ROOT = Path(__file__).parents[2] / "recipes" / "checkpoints"


def questions(*answers: tuple[str, str]) -> Questions:
    """(right, original's) for each question."""
    return Questions(
        source="a file",
        max_answer_tokens=8,
        questions=tuple(
            Question(prompt="?", templated=True, answers=(right, right.upper()), original=original)
            for right, original in answers
        ),
    )


def test_what_is_lost_and_what_is_the_same() -> None:
    asked = questions(("a", "a"), ("b", "b"), ("c", "x"), ("d", "d"))
    figures, checks = judge(asked, ["a", "B", "c", "y"], TaskLimits(0.0, 0.5), None)
    found = {figure.name: figure for figure in figures}
    assert found["task_accuracy"].value == 0.75 and found["task_accuracy_original"].value == 0.75
    assert found["task_accuracy_drop"].value == 0.0  # one was lost, one was won
    assert found["task_agreement"].value == 0.25 and found["task_agreement"].at == "4 questions"
    interval = found["task_accuracy"].interval
    assert interval is not None and interval[0] == pytest.approx(0.3006, abs=1e-3)  # Wilson: 3 of 4
    assert interval[1] == pytest.approx(0.9544, abs=1e-3)
    assert [check.verdict for check in checks] == [None, "passed", "failed"]


def test_a_stand_in_is_asked_fewer_and_says_so() -> None:
    asked = questions(*[("a", "a")] * 5)
    figures, checks = judge(asked, ["a", "a"], TaskLimits(), "an executor")
    assert {figure.at for figure in figures} == {"2 questions of 5"}
    assert checks[1].obtained == "emulated" and checks[1].verdict is None


class Parrot:
    def answer(self, prompt: str, images: Any = (), clips: Any = (), *, leading: Any = (), most: int = 64) -> str:
        return f"{prompt} {len(images)} {tuple(leading)} {most}"


def written(folder: Path, found: dict[str, Any] | Questions, **files: bytes) -> Path:
    content = found.model_dump_json() if isinstance(found, Questions) else json.dumps(found)
    arrays = {name.replace("_", "."): np.frombuffer(raw, np.uint8) for name, raw in files.items()}
    write_tensors(folder / TASK, arrays, {"questions": content}, MAX_BYTES)
    return folder


def test_what_a_driver_is_given(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    image = Medium(kind="image", file=0)
    asked = Questions(
        source="s",
        leading=(1,),
        max_answer_tokens=5,
        questions=(
            Question(prompt="p", templated=False, media=(image, image), answers=("x",), original=""),
            Question(prompt="t", templated=True, answers=("x",), original=""),
        ),
    )
    folder = written(tmp_path, asked, media_0=(tmp_path / "a.png").read_bytes())
    assert ask(Parrot(), folder, False, lambda *_: None) == ["p 2 (1,) 5", "t 0 () 5"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"questions": []}, r"task\.safetensors: .*at least 1 item"),
        ({"version": "2"}, r"task\.safetensors: Input should be '1'"),
        ({"max_answer_tokens": 10**9}, r"less than or equal to 4096"),
        ({"more": 1}, r"Extra inputs"),
        ({"source": "a\u001b[31m"}, r"source is not printable"),
    ],
)
def test_a_file_that_is_not_one(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    content = questions(("a", "a")).model_dump(mode="json") | change
    with pytest.raises(EdgewrightError, match=message):
        read_questions(written(tmp_path, content))


def test_damaged_files_and_missing_media(tmp_path: Path) -> None:
    asked = questions(("a", "a"))
    spoken = asked.questions[0].model_copy(update={"media": (Medium(kind="image", file=3),)})
    written(tmp_path, asked.model_copy(update={"questions": (spoken,)}))
    with pytest.raises(EdgewrightError, match=r"has no media\.3, which a question speaks of"):
        ask(Parrot(), tmp_path, False, lambda *_: None)
    raw = (tmp_path / TASK).read_bytes()
    (tmp_path / TASK).write_bytes(raw[:20])
    with pytest.raises(EdgewrightError, match=r"task\.safetensors: cannot be read as safetensors"):
        read_questions(tmp_path)


RECIPE = """
name: asked
checkpoint: {{path: {checkpoint}}}
quantize:
  rules: [{{match: "*", bits: {bits}}}]
context: {{max_tokens: 256}}
targets: {{onnx: {{}}}}
validate: {{task: {{file: questions.jsonl, max_answer_tokens: 48, min_agreement: {agreement}}}}}
"""


def test_images_and_clips_from_file_to_answer(tmp_path: Path) -> None:
    """At half precision the artifact says what the unquantized model says, which is what training measured."""
    from edgewright.api import run, validate

    write_questions(tmp_path, 12, 4, first=HELD_OUT_SEED + 9000)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(RECIPE.format(checkpoint=ROOT / "tiny-smolvlm2", bits=16, agreement="100%"))
    report = run(recipe, out=tmp_path / "out")
    (target,) = report.targets
    assert target.verdict == "passed" and report.verdict == "passed"
    assert target.value("task_agreement") == 1.0
    accuracy = target.value("task_accuracy_original")
    assert accuracy is not None and accuracy >= 0.6 and target.value("task_accuracy") == accuracy
    artifact = tmp_path / "out" / "asked" / "onnx"
    with safe_open(artifact / TASK, "numpy") as file:
        assert tensor(15) in file.keys() and tensor(16) not in file.keys()  # noqa: SIM118  # not a mapping
    again = validate(artifact)
    assert again.value("task_accuracy") == accuracy and again.verdict == "passed"


def test_a_text_model_is_asked_and_can_fail(tmp_path: Path) -> None:
    """Its own most likely words are what is agreed on; the gate closes where too few are the same."""
    from edgewright.api import run

    write_checkpoint(tmp_path / "weights")
    lines = [
        {"prompt": text, "answer": "x"} for text in ("import os\n\n\ndef ", "class A(", "    return self.", "for i")
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for bits, agreement, verdict in ((16, "100%", "passed"), (4, "99%", "failed")):
        recipe = tmp_path / f"r{bits}.yaml"
        recipe.write_text(RECIPE.format(checkpoint="weights", bits=bits, agreement=agreement))
        report = run(recipe, out=tmp_path / "out")
        checks = {check.name: check for check in report.targets[0].checks}
        assert checks["task_agreement"].verdict == verdict and report.verdict == verdict
        assert checks["task_accuracy"].value == 0.0 and checks["task_accuracy"].verdict is None


def test_another_processor_makes_other_answers(tmp_path: Path) -> None:
    """Its numbers change what is seen, and neither a question nor a token."""
    from edgewright.api import run

    source = tmp_path / "source"
    shutil.copytree(ROOT / "tiny-smolvlm2", source)
    write_questions(tmp_path, 12, first=HELD_OUT_SEED + 9000)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(RECIPE.format(checkpoint=source, bits=16, agreement="50%"))
    answers, kept = [], []
    for std in (0.5, 50.0):  # the second: next to nothing is seen
        for name in ("processor_config.json", "preprocessor_config.json"):
            text = (source / name).read_text()
            (source / name).write_text(re.sub(r'("image_std": \[)[^]]*', rf"\g<1>{std}, {std}, {std}", text))
        run(recipe, out=tmp_path / "out", validate=False)
        answers.append([q.original for q in read_questions(tmp_path / "out" / "asked" / "onnx").questions])
        kept += [path.name for path in (tmp_path / "out" / "asked").glob(".task-*")]
    assert len(kept) == 2 and kept[0] != kept[1] and answers[0] != answers[1]
