"""A small checkpoint with a tokenizer, a recipe for it, and one finished run that tests look at."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgewright import api, cli
from edgewright.report import Report
from recipes.schema import Recipe

RECIPE = """\
name: small
checkpoint: {path: weights}
quantize:
  rules:
    - {match: model.embed_tokens, bits: 8}
    - {match: "*", bits: 4}
context: {max_tokens: 64}
targets:
  onnx: {}
validate:
  profiles:
    android-4gb: {peak_memory: 300MB}
    iphone-12:
"""


def write_checkpoint(folder: Path) -> Path:
    """Two layers of Ministral 3 with random weights, and a byte-level tokenizer."""
    from tests.compiler.conftest import MINISTRAL3, random_tensors, save

    config = {**MINISTRAL3, "vocab_size": 320}
    save(folder, config, random_tensors(config))
    write_tokenizer(folder, 320)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return folder


def write_tokenizer(folder: Path, vocabulary: int) -> None:
    """A tokenizer in the files of today's checkpoints, which puts <s> before every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["def f(self, value):\n    return self.value + value\n"], trainer)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "TokenizersBackend", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@dataclass(frozen=True)
class Workplace:
    """A folder with `small.yaml` and its checkpoint `weights/`."""

    folder: Path

    @property
    def recipe_file(self) -> Path:
        return self.folder / "small.yaml"

    def recipe(self, change: Callable[[str], str] = str) -> Recipe:
        path = self.folder / "changed.yaml"
        path.write_text(change(RECIPE))
        return api.load_recipe(path)


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    folder = tmp_path_factory.mktemp("workplace")
    write_checkpoint(folder / "weights")
    (folder / "small.yaml").write_text(RECIPE)
    return Workplace(folder)


@dataclass(frozen=True)
class Finished:
    """A run's report, the folder it wrote to, and the stages that it reported."""

    report: Report
    folder: Path
    stages: list[str]


@pytest.fixture(scope="session")
def finished(workplace: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One full run; tests only read it."""
    out = tmp_path_factory.mktemp("out")
    stages: dict[str, None] = {}
    report = api.run(workplace.recipe_file, out=out, progress=lambda stage, done, total: stages.update({stage: None}))
    return Finished(report, out / "small", list(stages))


HELD = """
import sys, time
from compiler import pipeline
from edgewright import cli

build = pipeline.build

def held(*arguments):
    build(*arguments)
    print("half-written", flush=True)
    while True:  # a signal that another thread takes wakes nobody who sleeps
        time.sleep(0.05)

pipeline.build = held
cli.main(sys.argv[1:])
"""


def half_written(recipe: Path, out: Path) -> subprocess.Popen[str]:
    """A run that stands still where an artifact is half-written, however busy the machine is; its stderr is piped."""
    command = [sys.executable, "-c", HELD, "run", str(recipe), "--target", "mlx", "--out", str(out)]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.readline()
    assert said == "half-written\n", process.communicate()
    assert list(out.glob("small/.*.partial-*"))
    return process


@pytest.fixture
def edgewright(capsys, monkeypatch):
    """Run the command in this process: exit code, stdout, stderr."""

    def edgewright(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return edgewright


@pytest.fixture
def ran(monkeypatch, finished):
    """`api.run` answers with a finished report, whose verdict can be chosen."""

    def ran(verdict: str = "passed") -> Report:
        report = finished.report.model_copy(update={"verdict": verdict})
        monkeypatch.setattr(api, "run", lambda *_, **__: report)
        return report

    return ran
