"""`edgewright pull`: the package for a phone and no other, every byte checked, and nothing outside of its folder."""

from __future__ import annotations

import json
import os
import signal

import pytest

from artifacts import read_manifest, verify

from .packages import FILES, PAYLOAD, contents, memory, package, parity, validated
from .repositories import Blob
from .writable import Fault

REPO = "acme/small-edge"
ONNX, MLX = "onnx-int4-32.3kB", "mlx-int4-300B"
ROOT = {"README.md", "bom.cdx.json", "config.json", "edgewright.index.json"}


@pytest.fixture
def published(writable, edgewright, tmp_path):
    """A repository with a package for both platforms and a smaller one for iOS alone; the folders they came from."""
    onnx = package(tmp_path / "build" / "onnx")
    checks = (parity(), memory("iphone-12", 2.1e8), memory("android-4gb", None))
    mlx = package(tmp_path / "build" / "mlx", target="mlx", checks=checks, payload={"ios": ("model.onnx",)})
    done = edgewright("publish", onnx, mlx, "--repo", REPO, "--tag", "v1")
    assert done.code == 0, done.err
    writable.log.clear()
    return {ONNX: onnx, MLX: mlx}


@pytest.fixture
def pull(edgewright, tmp_path):
    def pull(*arguments, profile="android-4gb", repo=REPO, out=tmp_path / "out", **env):
        return edgewright("pull", repo, "--profile", profile, "--out", out, *arguments, **env)

    return pull


def asked(writable):
    """Paths in the repository whose content was asked for."""
    return {path.split("/", 5)[5] for method, path, _ in writable.log if "/resolve/" in path}


@pytest.mark.parametrize(("profile", "name"), [("android-4gb", ONNX), ("iphone-12", MLX)])
def test_the_smallest_that_passed_is_fetched_and_no_other(writable, published, pull, tmp_path, profile, name):
    done = pull("--json", profile=profile)
    assert done.code == 0, done.err
    out = tmp_path / "out"
    found = done.json()
    assert (found["variant"], found["folder"], found["profile"]) == (name, str(out / name), profile)
    assert contents(out / name) == contents(published[name]) and verify(out / name) == []
    assert {path.name for path in out.iterdir()} == {name, *ROOT}
    assert asked(writable) == ROOT | {f"{name}/{path}" for path in contents(published[name])}


def test_what_is_there_is_not_fetched_again_and_what_is_damaged_is(writable, published, pull, tmp_path):
    assert pull().code == 0
    writable.log.clear()
    again = pull()
    assert again.code == 0 and "was there already" in again.out
    assert asked(writable) == ROOT | {f"{ONNX}/edgewright.json"}
    mine = tmp_path / "out" / ONNX
    validated(mine, read_manifest(mine), (parity(), memory("my-phone", 1e8)))  # which its manifest remembers
    assert "was there already" in pull().out and "my-phone" in (mine / "edgewright.json").read_text()
    (tmp_path / "out" / ONNX / "model.onnx").write_bytes(b"\0GRAPH" * 50)
    assert "received" in pull().out
    assert contents(mine) == contents(published[ONNX])


def test_a_tag_keeps_what_it_was(writable, published, edgewright, pull, tmp_path):
    newer = package(tmp_path / "newer", files={**FILES, "model.onnx.data": b"\0newer" * 9000})
    assert edgewright("publish", newer, published[MLX], "--repo", REPO, "--tag", "v2").code == 0
    assert pull("--json").json()["variant"] == "onnx-int4-54.3kB"
    assert pull("--revision", "v1", "--json").json()["variant"] == ONNX
    commit = writable.repos[REPO].tags["v1"]
    assert pull("--revision", commit, "--json").json()["commit"] == commit
    assert "no such commit; check --revision" in pull("--revision", "v3").err
    for revision in ("../v1", "a b", "-x", ""):
        assert pull(f"--revision={revision}").code == 2


def test_a_phone_on_which_none_passed_is_told_why(writable, edgewright, pull, tmp_path):
    checks = (parity(), memory("iphone-12", 3.0e9), memory("android-4gb", None))
    failed = package(tmp_path / "a", checks=checks, verdict="failed")
    worse = (parity(verdict="failed"), memory("iphone-12", 1e8))
    broken = package(tmp_path / "b", target="coreml", checks=worse, verdict="failed", payload={"ios": PAYLOAD})
    done = edgewright("publish", failed, broken, "--repo", REPO, "--allow-failed")
    assert done.code == 0, done.err
    none = pull(profile="iphone-12")
    assert none.code == 1
    assert "no package passed on iphone-12, so none was fetched" in none.err
    assert f"{ONNX}: peak memory at 256 tokens 3.00 GB (limit 2.00 GB): does not fit" in none.err
    assert "coreml-int4-32.3kB: failed as a whole: it was published all the same" in none.err
    other = pull(profile="android-4gb")
    assert f"{ONNX}: not for this platform" in other.err and "coreml-int4-32.3kB: never judged on it" in other.err
    assert not (tmp_path / "out").exists()
    unknown = pull(profile="iphone-11")
    assert unknown.code == 2 and "did you mean 'iphone-12'?" in unknown.err


@pytest.mark.parametrize("path", ["model.onnx", "tokenizer/tokenizer.json", "edgewright.json"])
def test_a_corrupted_download_of_the_right_size_is_found(writable, published, pull, tmp_path, path):
    writable.damaged[f"{ONNX}/{path}"] = bytes(reversed(contents(published[ONNX])[path]))
    broken = pull()
    assert broken.code == 2 and f"{ONNX}/{path} differs from the digest" in broken.err
    assert not (tmp_path / "out" / ONNX).exists() and not ROOT & set(os.listdir(tmp_path / "out"))
    writable.damaged.clear()
    assert pull().code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {ONNX, *ROOT}


def test_a_package_that_is_there_stays_until_the_new_one_is_whole(writable, published, pull, edgewright, tmp_path):
    assert pull().code == 0
    before = contents(tmp_path / "out")
    checks = (parity(), memory("android-4gb", 1.0e8))
    newer = package(tmp_path / "newer", files={**FILES, "model.onnx": b"\0newer" * 50}, checks=checks)
    assert edgewright("publish", newer, published[MLX], "--repo", REPO).code == 0
    writable.damaged[f"{ONNX}/model.onnx"] = b"\0wrong" * 50
    assert pull().code == 2
    assert {name: data for name, data in contents(tmp_path / "out").items() if not name.startswith(".")} == before
    writable.damaged.clear()
    assert pull().code == 0 and contents(tmp_path / "out" / ONNX) == contents(newer)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("drop", "GET", r"/cdn/.*model\.onnx\.data", after=9000, times=2),
        Fault("status", "GET", "/resolve/", status=500),
        Fault("status", "GET", "/resolve/", status=429, headers={"Retry-After": "99999999"}),
        Fault("status", "GET", "/tree/", status=503),
    ],
    ids=lambda fault: f"{fault.kind} {fault.status}",
)
def test_what_passes_by_itself_is_tried_again(writable, published, pull, tmp_path, fault):
    writable.faults = [Fault(**vars(fault))]
    assert pull().code == 0
    assert contents(tmp_path / "out" / ONNX) == contents(published[ONNX])


def test_the_next_call_goes_on_where_one_broke_off(writable, published, pull, tmp_path):
    writable.faults = [Fault("drop", "GET", r"/cdn/.*model\.onnx\.data", after=9000, times=3)]
    broken = pull()
    assert broken.code == 2 and "the Hub cannot be reached (the connection broke off" in broken.err
    assert [name for name in os.listdir(tmp_path / "out") if not name.startswith(".")] == []
    writable.log.clear()
    writable.ranges.clear()
    assert pull().code == 0
    assert writable.ranges == [f"{ONNX}/model.onnx.data"]
    assert f"{ONNX}/golden.safetensors" not in asked(writable)  # whole already
    assert contents(tmp_path / "out" / ONNX) == contents(published[ONNX])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {ONNX, *ROOT}


def test_what_was_received_of_an_earlier_state_goes(writable, published, edgewright, pull, tmp_path):
    writable.faults = [Fault("drop", "GET", r"/cdn/.*model\.onnx\.data", after=9000, times=3)]
    assert pull().code == 2 and os.listdir(tmp_path / "out") != []
    newer = package(tmp_path / "newer", files={**FILES, "model.onnx": b"\0newer" * 50})
    assert edgewright("publish", newer, published[MLX], "--repo", REPO).code == 0
    assert pull().code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {ONNX, *ROOT}
    assert contents(tmp_path / "out" / ONNX) == contents(newer)


def test_a_kill_at_any_request_leaves_nothing_half_written(writable, published, pull, edgewright, tmp_path):
    assert pull(out=tmp_path / "whole").code == 0
    expected = contents(tmp_path / "whole")
    for number in range(len(writable.log)):
        out = tmp_path / f"out{number}"
        kill = Fault("first", ".*", "", skip=number, action=lambda: os.kill(edgewright.process, signal.SIGKILL))
        writable.faults = [kill]
        assert pull(out=out).code == -signal.SIGKILL
        assert not out.exists() or all(name.startswith(".") for name in os.listdir(out))
        writable.faults = []
        assert pull(out=out).code == 0 and contents(out) == expected


def test_a_folder_of_somebodys_own_is_not_written_to(writable, published, pull, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("my own")
    refused = pull()
    assert refused.code == 2 and "holds a README.md that no pull put there" in refused.err
    (out / "README.md").unlink()
    (out / ONNX).mkdir()
    (out / ONNX / "precious").write_text("my own")
    refused = pull()
    assert refused.code == 2 and "is not an Edgewright artifact" in refused.err
    assert contents(out) == {f"{ONNX}/precious": b"my own"}
    (tmp_path / "file").write_text("")
    assert pull(out=tmp_path / "file").code == 2


def test_links_in_the_folder_lead_nowhere(writable, published, pull, tmp_path):
    assert pull().code == 0
    out, outside = tmp_path / "out", tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("my own")
    (out / "config.json").unlink()
    (out / "config.json").symlink_to(outside / "precious")
    assert pull().code == 0 and not (out / "config.json").is_symlink()
    digest = json.loads((out / "edgewright.index.json").read_text())["variants"][1]["manifest"]["sha256"]
    (out / ONNX).rename(tmp_path / "moved")
    (out / f".{ONNX}.pull-{digest[:16]}").symlink_to(outside)
    refused = pull()
    assert refused.code == 2 and "another pull is receiving this package" in refused.err
    assert contents(outside) == {"precious": b"my own"}


def served(writable, change):
    """Let the repository hold a changed index, as somebody who may write to it could."""
    repo = writable.repos[REPO]
    index = json.loads(repo.files()["edgewright.index.json"])
    change(index)
    repo.write(**{"edgewright.index.json": json.dumps(index).encode()})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda index: index["variants"][1].update(name="../../evil"), "variants.1.name"),
        (lambda index: index["variants"][1].update(name="onnx-a/../../b"), "variants.1.name"),
        (lambda index: index["variants"][1].update(name=".."), "variants.1.name"),
        (lambda index: index["variants"][1].update(name=index["variants"][0]["name"]), "two variants have one name"),
        (lambda index: index["variants"][1]["manifest"].update(sha256="0" * 64), "differs from the digest"),
        (lambda index: index["variants"][1]["manifest"].update(bytes=1 << 60), "which it never has"),
        (lambda index: index["variants"][1]["manifest"].update(bytes=7), "makes no sense"),
        (lambda index: index["variants"][1].update(bytes=1), "is of another package than the index says"),
        (lambda index: index.update(schema_version=2), "is newer than this Edgewright reads"),
        (lambda index: index.update(extra=1), "extra"),
        (lambda index: index.clear(), "not an index of Edgewright"),
    ],
)
def test_an_index_that_lies_is_not_obeyed(writable, published, pull, tmp_path, change, said):
    served(writable, change)
    refused = pull()
    assert refused.code == 2 and said in refused.err
    assert sorted(os.listdir(tmp_path)) in (["build"], ["build", "out"])
    out = tmp_path / "out"
    assert not out.exists() or all(name.startswith(".") for name in os.listdir(out))


@pytest.mark.parametrize("path", ["../../evil", "/etc/evil", "a/../../../evil", "edgewright.json", "x\u202ey"])
def test_a_manifest_that_leads_elsewhere_is_not_obeyed(writable, published, pull, tmp_path, path):
    import hashlib

    repo = writable.repos[REPO]
    manifest = json.loads(repo.files()[f"{ONNX}/edgewright.json"])
    manifest["files"][0]["path"] = path
    raw = json.dumps(manifest).encode()
    repo.write(**{f"{ONNX}/edgewright.json": raw})
    told = {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    served(writable, lambda index: index["variants"][1].update(manifest=told))
    refused = pull()
    assert refused.code == 2 and "Traceback" not in refused.err
    assert not (tmp_path / "evil").exists() and not (tmp_path.parent / "evil").exists()
    assert not (tmp_path / "out" / ONNX).exists()


def test_a_file_that_is_also_a_folder_is_refused(writable, published, pull, tmp_path):
    import hashlib

    repo = writable.repos[REPO]
    manifest = json.loads(repo.files()[f"{ONNX}/edgewright.json"])
    manifest["files"].append({**manifest["files"][0], "path": "model.onnx/inner"})
    raw = json.dumps(manifest).encode()
    repo.write(**{f"{ONNX}/edgewright.json": raw})
    told = {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    whole = sum(file["size"] for file in manifest["files"])
    served(writable, lambda index: index["variants"][1].update(manifest=told, bytes=whole))
    refused = pull()
    assert refused.code == 2 and "cannot be kept in --out" in refused.err
    assert not (tmp_path / "out" / ONNX).exists()


def test_what_no_publication_is_says_so(writable, published, pull):
    writable.make("acme/other", **{"README.md": b"#"})
    assert "holds no edgewright.index.json: nothing that `edgewright publish` put there" in pull(repo="acme/other").err
    assert "no such repository on the Hub, or it is private: check REPO" in pull(repo="acme/none").err
    assert "REPO: must be owner/name" in pull(repo="none").err
    assert "or it is private" in pull(token="").err
    big = writable.make("acme/big")
    big.commit({"edgewright.index.json": Blob(b" " * (5 << 20), False)})
    assert "which it never has" in pull(repo="acme/big").err
