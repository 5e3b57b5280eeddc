"""ONNX packages of SmolVLM in the real transformers.js, in Node on a CPU, as `npm ci` installs it from a locked list.

Asked twice: with prompt and tiles of our own reader, where every answer must be that of our session; and with its own
processor, whose prompts and numbers of tiles must be ours, while its resized pixels are only near.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.slots import Scheme
from runtime_tests.drivers.image_text import Asked
from runtime_tests.sessions import make_session
from tests.compiler.conftest import packed
from tests.compiler.smolvlm import Question, questions, tiny_job

pytestmark = pytest.mark.nightly

HERE = Path(__file__).parents[3] / "node"
SCENES, MOST = 5, 64


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is missing: this test runs transformers.js; install Node 20 or newer, with npm")
    return found


@pytest.fixture(scope="module")
def node() -> Iterator[Path]:
    """A folder with the script and what it imports. Without install scripts: that of onnxruntime-node fetches what GPUs
    need; its CPU library, and sharp's, are in the packages."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in ("package.json", "package-lock.json", "answer.mjs"):
            shutil.copyfile(HERE / file, folder / file)
        done = subprocess.run(
            [tool("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=folder, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, f"npm ci failed: {done.stderr[-2000:]}"
        yield folder


def answers(node: Path, package: Path, asked: list[Question], folder: Path) -> Any:
    """See `answer.mjs`."""
    given = []
    for at, question in enumerate(asked):
        image, pixels = folder / f"{at}.png", folder / f"{at}.bin"
        question.example.image.convert("RGB").save(image)
        question.tiles.astype(np.float32).tofile(pixels)
        count, _, size, _ = question.tiles.shape
        given.append(
            {
                "text": question.example.question,
                "image": str(image),
                "ids": question.ids,
                "pixels": str(pixels),
                "tiles": count,
                "size": size,
            }
        )
    done = subprocess.run(
        [tool("node"), "answer.mjs", str(package.parent), package.name, str(MOST)],
        cwd=node, input=json.dumps(given), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, f"node failed: {done.stderr[-2000:]}"
    return json.loads(done.stdout)


@pytest.mark.parametrize("scheme", [Scheme(4, 32), Scheme(8, 32)], ids=str)
def test_five_scenes_have_the_answers_of_our_session(node: Path, tmp_path: Path, scheme: Scheme) -> None:
    job = tiny_job(tmp_path / "packed", "onnx", scheme)
    folder = tmp_path / "package"
    manifest = packed(job, "onnx", folder, companions=True)
    session = make_session(folder, manifest)
    session.load()
    ours, asked = Asked(session, folder, manifest), questions(SCENES)
    right = near = 0
    for question, found in zip(asked, answers(node, folder, asked, tmp_path), strict=True):
        said = ours.answer(question.prompt, [question.image], most=MOST)
        assert (found["prompt"], found["ids"], found["tiles"]) == (question.prompt, question.ids, len(question.tiles))
        assert found["given"] == said != ""
        near += found["own"] == said
        right += said == question.example.answer.strip()
    assert near >= 3
    assert right >= 2  # no model that guesses
