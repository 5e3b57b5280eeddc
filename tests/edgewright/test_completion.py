"""`edgewright completion`: the script in a real bash; the others as far as their syntax can be read here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from compiler.targets import target_options
from device_farm import list_profiles
from recipes.load import shipped

COMPLETE = """
source completion.bash
complete -p edgewright >/dev/null || exit 9
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
COMP_LINE="$*"
COMP_POINT=${#COMP_LINE}
_shtab_edgewright
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def completed(edgewright, tmp_path):
    """What bash offers for the last word of a command line, in a folder that holds one recipe."""
    code, script, error = edgewright("completion", "bash")
    assert (code, error) == (0, "")
    (tmp_path / "completion.bash").write_text(script)
    (tmp_path / "mine.yaml").touch()

    def completed(*words: str) -> set[str]:
        command = ["bash", "--norc", "-c", COMPLETE, "bash", "edgewright", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        return set(done.stdout.split())

    return completed


def test_commands_and_options(completed):
    assert {"run", "plan", "init", "validate", "explain", "completion"} <= completed("")
    assert completed("pl") == {"plan"}
    assert completed("cache", "") >= {"ls", "gc", "verify"}
    assert completed("run", "--no") == {"--no-validate"}
    assert {"--phone", "--target", "--context", "--out", "--force"} <= completed("init", "x", "--")


@pytest.mark.parametrize("words", [["run", "quickstart", "--profile", ""], ["init", "x", "--phone", ""]])
def test_phones(completed, words):
    assert completed(*words) == set(list_profiles())
    assert completed(*words[:-1], "iphone-1") == {n for n in list_profiles() if n.startswith("iphone-1")}


def test_every_phone_can_be_shown(completed):
    assert completed("profiles", "show", "poco") == {"poco-x7"}


@pytest.mark.parametrize("words", [["run", "quickstart"], ["plan", "quickstart"], ["init", "x"]])
def test_targets(completed, words):
    assert completed(*words, "--target", "") == set(target_options())


@pytest.mark.parametrize("words", [["run"], ["plan"], ["recipes", "show"]])
def test_recipes_that_ship_and_ones_own(completed, words):
    assert completed(*words, "") >= {*shipped(), "mine.yaml"}
    assert completed(*words, "quickstart-s") == {"quickstart-smolvlm2"}


def test_words_and_shells(completed):
    assert "tight" in completed("explain", "t")
    assert completed("completion", "") == {"bash", "zsh", "fish"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_script_names_everything(edgewright, tmp_path: Path, shell):
    code, script, _ = edgewright("completion", shell)
    assert code == 0
    for name in ("init", "--profile", "iphone-12", "coreml", "quickstart-int8"):
        assert name.lstrip("-") in script
    program = shutil.which(shell)
    if program is not None:  # each shell reads its own script where it is installed
        (tmp_path / "script").write_text(script)
        assert subprocess.run([program, "-n", str(tmp_path / "script")], capture_output=True).returncode == 0


def test_an_unknown_shell_is_bad_input(edgewright):
    code, _, error = edgewright("completion", "fsh")
    assert code == 2 and "did you mean 'fish'?" in error
