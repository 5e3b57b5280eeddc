"""`edgewright adopt` on the command line: what it says, and what bad input ends in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgewright.cli import main
from tests.compiler.adopt.conftest import save_encoder, save_unet
from tests.compiler.avatars import small_encoder, small_unet


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["adopt", *map(str, arguments)])
    return int(ended.value.code or 0)


def test_what_was_read_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = save_unet(tmp_path / "last.pth", small_unet(True)), save_encoder(tmp_path / "hubert.pth", small_encoder())
    given = "--family", "feathertalk", "--out"
    assert run(*files, *given, tmp_path / "a", "--license", "apache-2.0") == 0
    said = capsys.readouterr().out
    assert "feathertalk, 0.11 M parameters: audio, renderer" in said
    assert "folded     169 batch norms, 53 branched blocks" in said and "licence    apache-2.0" in said
    assert run(files[0], *given, tmp_path / "b", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["components"] == ["renderer"] and found["licence"] is None
    assert (
        json.loads((tmp_path / "b" / "config.json").read_text())["adopted"][0]["sha256"] == found["files"]["last.pth"]
    )


def test_bad_input_ends_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.pth").write_bytes(b"no pickle")
    out = tmp_path / "out"
    for arguments, message in (
        ((tmp_path / "a.pth", "--family", "feathertalks"), "'feathertalks' cannot be adopted, only "),
        ((tmp_path / "a.pth", "--family", "feathertalk"), "not a PyTorch pickle, or a damaged one"),
        ((tmp_path / "b.pth", "--family", "feathertalk"), "b.pth: cannot be read"),
    ):
        assert run(*arguments, "--out", out) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1 and not out.exists()
    (tmp_path / "file").write_text("")
    save_unet(tmp_path / "last.pth", small_unet())
    assert run(tmp_path / "last.pth", "--family", "feathertalk", "--out", tmp_path / "file" / "out") == 2
    assert "choose another --out" in capsys.readouterr().err
