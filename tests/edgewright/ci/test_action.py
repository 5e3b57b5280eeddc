"""The composite action, step by step: what its scripts do in a project that has nothing but a recipe."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ..conftest import RECIPE, write_checkpoint
from ..hub.identity import JOB, READER
from ..hub.sigstore import IDENTITY, ISSUER, Sigstore
from ..hub.writable import WritableHub

ROOT = Path(__file__).parents[3]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
WORKFLOW = yaml.safe_load((ROOT / "edgewright" / "ci" / "workflow.yml").read_text())
REPO, TRUST = "acme/small-edge", "sigstore.json"
INPUTS = {"recipe": "recipe.yaml", "baseline": "baseline.json", "publish": REPO, "sign_keyless": TRUST}


class Runner:
    """Runs the `run` steps of the action as GitHub's runner does: conditions, environment, files of outputs."""

    def __init__(self, project: Path, path: str, **inputs: str) -> None:
        self.project, self.env = project, {"PATH": path, "HOME": str(project / "home")}
        self.values = {f"inputs.{name}": str(found.get("default", "")) for name, found in ACTION["inputs"].items()}
        self.values |= {f"inputs.{name.replace('_', '-')}": value for name, value in inputs.items()}
        self.values["github.action_path"] = str(ROOT)
        self.failed = False
        (project / "home").mkdir(exist_ok=True)

    def value(self, text: Any) -> str:
        return re.sub(r"\$\{\{\s*([\w.-]+)\s*\}\}", lambda found: self.values[found[1]], str(text))

    def wanted(self, step: dict[str, Any]) -> bool:
        condition = step.get("if", "")
        if condition == "always()":
            return True
        name = re.fullmatch(r"(inputs\.[\w-]+) != ''", condition)
        return not self.failed and (not condition or bool(self.values[name[1]]))

    def step(self, name: str) -> subprocess.CompletedProcess[str]:
        step = next(step for step in ACTION["runs"]["steps"] if step.get("name") == name)
        assert step["shell"] == "bash" and self.wanted(step)
        output = self.project / "output"
        output.write_text("")
        files = {"GITHUB_OUTPUT": str(output), "GITHUB_STEP_SUMMARY": str(self.project / "summary.md")}
        env = {key: self.value(value) for key, value in step["env"].items()}
        shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        done = subprocess.run(
            shell, cwd=self.project, env=self.env | files | env, capture_output=True, text=True, check=False
        )
        self.failed |= done.returncode != 0
        for line in output.read_text().splitlines():
            key, _, found = line.partition("=")
            self.values[f"steps.{step['id']}.outputs.{key}"] = found
        return done

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """What a developer runs, who may read."""
        command, env = ["edgewright", *arguments], self.env | {"HF_TOKEN": READER}
        return subprocess.run(command, cwd=self.project, env=env, capture_output=True, text=True, check=False)


def project(folder: Path) -> Path:
    write_checkpoint(folder / "weights")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture
def hub():
    with WritableHub() as server, Sigstore() as server.sigstore:
        yield server


def whole(runner: Runner, hub: WritableHub) -> None:
    """Built, gated against a baseline, published and signed by the job's identity, pulled by a phone's name, verified;
    then a baseline that it falls behind."""
    github = {"GITHUB_ACTIONS": "true", "ACTIONS_ID_TOKEN_REQUEST_URL": f"{hub.url}/github/identity"}
    runner.env |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "ACTIONS_ID_TOKEN_REQUEST_TOKEN": JOB, **github}
    hub.make(REPO)
    hub.publishers.add(REPO)
    (runner.project / TRUST).write_text(hub.sigstore.trust())
    signed = ("--signed-by", IDENTITY, "--issuer", ISSUER, "--sigstore", TRUST)
    built = runner.step("Build and prove")
    assert built.returncode == 0, built.stderr
    assert runner.values["steps.build.outputs.folder"] == "build/small"
    assert (runner.project / "build/small/junit.xml").is_file()
    assert runner.command("baseline", "update", "build/small").returncode == 0
    for name in ("Summary", "Baseline", "Publish"):
        done = runner.step(name)
        assert done.returncode == 0, done.stderr
    summary = (runner.project / "summary.md").read_text()
    assert "## ✅ small: passed" in summary and "Every figure is what it was." in summary
    pulled = runner.command("pull", REPO, "--profile", "android-4gb", "--out", "pulled", *signed)
    assert pulled.returncode == 0, pulled.stderr
    (package,) = (path.parent for path in (runner.project / "pulled").glob("*/edgewright.json"))
    assert runner.command("verify", str(package), *signed).returncode == 0
    validated = runner.command("validate", str(package), "--profile", "android-4gb")
    assert validated.returncode == 0, validated.stdout + validated.stderr
    baseline = runner.project / "baseline.json"
    baseline.write_text(re.sub(r'("size/android":\s*\{[^}]*?"value":\s*)[\d.]+', r"\g<1>1000", baseline.read_text()))
    fallen = runner.step("Baseline")
    assert fallen.returncode == 1 and "✗ onnx  size in an app (android)" in fallen.stdout
    assert not runner.wanted({"if": "inputs.publish != ''"}) and runner.wanted({"if": "always()"})


def test_a_project_with_a_recipe_is_built_gated_published_pulled_and_verified(tmp_path, hub):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    whole(Runner(project(tmp_path), path, **INPUTS), hub)


@pytest.mark.nightly
def test_the_same_in_a_fresh_environment_with_an_empty_home(tmp_path, hub):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    path = f"{tmp_path / 'venv' / 'bin'}:/usr/local/bin:/usr/bin:/bin"
    runner = Runner(project(tmp_path), path, **INPUTS, extras="coreml,sign")
    runner.env |= {key: value for key, value in os.environ.items() if key.startswith("PIP_")}
    installed = runner.step("Install")
    assert installed.returncode == 0, installed.stderr
    whole(runner, hub)


@pytest.mark.nightly
def test_a_build_that_fails_its_gate_still_leaves_its_report(tmp_path):
    folder = project(tmp_path)
    (folder / "recipe.yaml").write_text(RECIPE.replace("{peak_memory: 300MB}", "{peak_memory: 1MB}"))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    runner = Runner(folder, path, recipe="recipe.yaml")
    assert runner.step("Build and prove").returncode == 1
    assert 'failures="1"' in (folder / "build/small/junit.xml").read_text()
    assert runner.step("Summary").returncode == 0
    assert "❌ does not fit" in (folder / "summary.md").read_text()


def test_no_script_takes_an_expression_and_the_workflow_names_inputs_that_exist():
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step.get("run", "")  # what others wrote would become a command
    used = next(step for step in WORKFLOW["jobs"]["build"]["steps"] if "edgewright" in step.get("uses", ""))
    assert used["with"].keys() <= ACTION["inputs"].keys()
    assert WORKFLOW["jobs"]["build"]["permissions"]["id-token"] == "write"
    assert all(found.get("required") or "default" in found for found in ACTION["inputs"].values())
