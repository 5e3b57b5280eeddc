"""Every artifact's README lets an app begin: its files with sizes, calls, tokens, and what was run and what was not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from artifacts import silent
from compiler.slots import Scheme
from compiler.targets import load_target, target_options
from tests.compiler.conftest import Jobs

CALLS = {
    "onnx": ('update_options(add_special_tokens="true")', "past_key_values.0.key", "com.microsoft"),
    "mlx": ("from mlx_lm import load", "ChatSession"),
    "coreml": ("MLModelConfiguration", "key_cache_0"),
    "tvm": ("edgewright_open(", "libtvm_runtime"),
}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("target", sorted(CALLS))
def test_an_app_can_start_from_the_readme(ministral: Path, jobs: Jobs, tmp_path: Path, target: str) -> None:
    (ministral / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    options = target_options()[target](**({"triples": []} if target == "tvm" else {}))
    folder = tmp_path / target
    folder.mkdir()
    load_target(target).build(jobs(ministral, options, Scheme(4, 32)), folder, silent)
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert page.startswith("---\nlicense: apache-2.0\n") and f"library_name: {target}"[:14] in page
    table = page.partition("## Files")[2].partition("\n## ")[0]
    listed = {name: int(size.replace(",", "")) for name, size in re.findall(r"\| `([^`]+)` \| ([\d,]+) \|", table)}
    files = {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
    del files["README.md"]
    assert listed == files
    assert "for 64 tokens of context" in page and "Its BOS token is 1" in page and "end an answer: 2." in page
    assert "What was run, and what was not" in page and "no `tokenizer.json`" in page
    for call in CALLS[target]:
        assert call in page


def test_a_checkpoint_without_a_licence_is_said_so(ministral: Path, jobs: Jobs, tmp_path: Path) -> None:
    folder = tmp_path / "onnx"
    folder.mkdir()
    load_target("onnx").build(jobs(ministral, target_options()["onnx"](), Scheme(4, 32)), folder, silent)
    assert "set `license` before publishing" in (folder / "README.md").read_text()
