"""What the README shows works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from compiler.adopt import families
from compiler.models import decoder
from edgewright import api, cli

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_sample_recipe_passes_on_the_shipped_checkpoint(tmp_path: Path) -> None:
    block, *_ = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    sample = tmp_path / "my-model.yaml"
    sample.write_text(block.replace("path: recipes/", f"path: {ROOT}/recipes/"))
    report = api.run(sample, out=tmp_path / "build")
    assert report.verdict == "passed", [c for t in report.targets for c in t.checks if c.verdict == "failed"]


def test_the_model_types_that_it_names_are_those_that_are_taken() -> None:
    sentence = " ".join(TEXT[TEXT.index("Text decoders of the model types") :].split("\n\n")[0].split())
    assert all(f"`{kind}`" in sentence for kind in (*decoder.MODEL_TYPES, *decoder.WRAPPERS))


def test_the_avatars_that_it_names_are_those_that_can_be_adopted() -> None:
    sentence = " ".join(TEXT[TEXT.index("Talking avatars come as") :].split("\n\n")[0].split())
    assert all(f"`{family}` (" in sentence for family in families())


def test_a_phone_of_ones_own_starts_from_one_that_ships(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["profiles", "show", "android-4gb"])
    mine = tmp_path / "my-phone.yaml"
    mine.write_text(capsys.readouterr().out.replace("name: android-4gb", "name: my-phone"))
    with pytest.raises(SystemExit) as ended:
        cli.main(["plan", "quickstart", "--profile", str(mine)])
    assert ended.value.code == 0 and "my-phone" in capsys.readouterr().out


def test_a_fresh_clone_talks_after_three_commands() -> None:
    """`make demo` leaves a package where the third looks for one."""
    first, *_ = re.findall(r"```\n(.*?)```", TEXT, re.DOTALL)
    made, activated, talked = (line.partition("#")[0].strip() for line in first.strip().splitlines())
    assert (made, activated) == ("make demo", ". .venv/bin/activate")
    demo = re.search(r"^demo:.*\n\t\S+/bin/edgewright (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert demo is not None
    run = cli.parser().parse_args(demo.group(1).split())
    (recipe,) = run.recipe
    name = api.load_recipe(ROOT / recipe).name
    assert talked.split() == ["edgewright", "try", f"{run.out}/{name}"]
    assert cli.parser().parse_args(talked.split()[1:]).artifact == f"{run.out}/{name}"
