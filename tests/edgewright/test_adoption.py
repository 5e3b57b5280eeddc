"""`edgewright adopt` on the command line: what it says, and what bad input ends in."""

from __future__ import annotations

import json
import subprocess
import sys
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
    assert "feathertalk, 0.11 M parameters: audio, renderer" in " ".join(said.split())  # below a path that is long
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


def test_a_folder_of_a_killed_run_goes_with_the_next(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = tmp_path / f".out.partial-{dead.pid}"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half of it")
    file = save_unet(tmp_path / "last.pth", small_unet())
    assert run(file, "--family", "feathertalk", "--out", tmp_path / "out") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pth", "out"]


def test_a_file_that_may_not_grow_is_a_sentence(tmp_path: Path) -> None:
    file = save_unet(tmp_path / "last.pth", small_unet())
    code = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "from edgewright.cli import main\n"
        f"main(['adopt', {str(file)!r}, '--family', 'feathertalk', '--out', {str(tmp_path / 'out')!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "raise the limit (ulimit -f)" in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["last.pth"]
