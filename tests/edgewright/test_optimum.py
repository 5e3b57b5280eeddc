"""`optimum-cli edgewright`, as an installation gives it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgewright.report import read_report

ROOT = Path(__file__).parents[2]
DOOR = ("-m", "optimum.commands.optimum_cli", "edgewright")
LOADED = """
import sys
from optimum.commands import optimum_cli
sys.argv = ["optimum-cli", "--help"]
try:
    optimum_cli.main()
finally:
    heavy = ["torch", "transformers", "onnx", "onnxruntime", "pydantic", "numpy", "yaml", "rich"]
    print([name for name in heavy if name in sys.modules], file=sys.stderr)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A wheel of this very code in a folder of its own."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    rooms = ("artifacts", "compiler", "device_farm", "edgewright", "recipes", "runtime_tests")
    for name in (*rooms, "pyproject.toml", "setup.py", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", target, source], check=True)
    return target


def optimum(installed: Path, place: Path, *command: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run([sys.executable, *command], cwd=place, env=variables, capture_output=True, text=True)


def test_it_plans_with_our_messages_and_exit_codes(installed, workplace, tmp_path):
    done = optimum(installed, tmp_path, *DOOR, "plan", str(workplace.recipe_file), "--target", "mlx", "--json")
    assert done.returncode == 0 and '"target": "mlx"' in done.stdout, done.stderr
    done = optimum(installed, tmp_path, *DOOR, "plan", "nowhere.yaml")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "nowhere.yaml" in done.stderr


@pytest.mark.nightly
def test_it_runs_and_validates(installed, workplace, tmp_path):
    command = ("run", str(workplace.recipe_file), "--out", "out", "--no-validate", "--quiet")
    done = optimum(installed, tmp_path, *DOOR, *command)
    assert done.returncode == 0 and "small: ! not validated" in done.stdout, done.stderr
    assert read_report(tmp_path / "out" / "small").verdict == "not validated"
    done = optimum(installed, tmp_path, *DOOR, "validate", "out/small/onnx", "--profile", "iphone-12", "--quiet")
    assert done.returncode == 0 and "✓ passed" in done.stdout, done.stderr


def test_nothing_is_loaded_where_it_only_starts(installed, tmp_path):
    done = optimum(installed, tmp_path, "-c", LOADED)
    assert "edgewright" in done.stdout and done.stderr.splitlines()[-1] == "[]", done.stderr


def test_no_folder_of_optimum_is_taken(installed):
    """Namespaces have no __init__.py, and what is installed there is the one file."""
    files = {file.relative_to(installed).as_posix() for file in (installed / "optimum").rglob("*") if file.is_file()}
    assert {name for name in files if not name.endswith(".pyc")} == {"optimum/commands/register/edgewright.py"}
    assert not (installed / "edgewright" / "optimum").exists()
