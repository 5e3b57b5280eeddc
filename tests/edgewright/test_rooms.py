"""Packages of others with the names of our rooms: named, or out of the way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def shadow(tmp_path) -> Path:
    """A folder of somebody's own work with packages `artifacts` and `recipes`, and a plain folder `compiler`."""
    for name in ("artifacts", "recipes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("mine = True\n")
    (tmp_path / "compiler").mkdir()
    return tmp_path


def python(shadow: Path, *arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [path, str(ROOT)]))}
    environment.pop("PYTHONSAFEPATH", None)
    return subprocess.run(
        [sys.executable, *arguments], cwd=shadow, env=environment, capture_output=True, text=True, timeout=120
    )


def test_python_m_looks_for_nothing_in_the_working_directory(shadow, finished):
    done = python(shadow, "-m", "edgewright", "inspect", str(finished.folder / "onnx"))
    assert done.returncode == 0, done.stderr
    assert "model.onnx" in done.stdout


def test_a_whole_run_and_its_children_do_not_either(shadow, workplace):
    done = python(shadow, "-m", "edgewright", "run", str(workplace.recipe_file), "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("small: ✓ passed")


@pytest.mark.parametrize("name", ["run", "Recipe"])
def test_the_python_interface_says_which_folder_hides_which_package(shadow, name):
    done = python(shadow, "-c", f"from edgewright import {name}")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"edgewright.rooms.RoomHidden: {shadow}/artifacts hides Edgewright's own package 'artifacts' "
        f"({ROOT}/artifacts): Python finds it first. Rename it, or start the command `edgewright` from another folder "
        "and without that one in PYTHONPATH"
    )


def test_one_that_was_imported_before_is_named_too(shadow):
    done = python(shadow, "-c", "import recipes, sys; sys.path.remove(''); from edgewright import run")
    assert f"{shadow}/recipes hides Edgewright's own package 'recipes'" in done.stderr


def test_a_module_hides_a_package_as_well(tmp_path):
    (tmp_path / "device_farm.py").write_text("")
    done = python(tmp_path, "-c", "from edgewright import plan")
    assert f"{tmp_path}/device_farm.py hides Edgewright's own package 'device_farm'" in done.stderr


def test_the_command_ends_with_2_and_no_traceback(shadow):
    done = python(shadow, "-m", "edgewright", "recipes", "list", path=str(shadow))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {shadow}/artifacts hides") and "Traceback" not in done.stderr
    assert python(shadow, "-m", "edgewright", "--help", path=str(shadow)).returncode == 0


def test_folders_that_are_no_packages_hide_nothing(tmp_path):
    for name in ("artifacts", "compiler", "recipes"):
        (tmp_path / name).mkdir()
    assert python(tmp_path, "-c", "from edgewright import run").returncode == 0
