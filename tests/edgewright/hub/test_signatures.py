"""Signatures and the bill of materials of a publication: made, checked after a pull, and found out when they lie."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from artifacts.manifest import SIGNATURE

from .packages import FILES, contents, package
from .repositories import Blob

REPO = "acme/small-edge"


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Two pairs: ours and somebody else's."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "theirs"):
        key = ec.generate_private_key(ec.SECP256R1())
        (folder / name).write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (folder / f"{name}.pub").write_bytes(public)
    return folder


@pytest.fixture
def signed(writable, edgewright, keys, tmp_path):
    """A signed publication; the name of its only package."""
    folder = package(tmp_path / "onnx")
    done = edgewright("publish", folder, "--repo", REPO, "--sign-key", keys / "ours")
    assert done.code == 0, done.err
    (name,) = (line.strip() for line in done.out.splitlines() if line.startswith("  onnx-"))
    return name


def pull(edgewright, keys, tmp_path, key="ours.pub"):
    return edgewright(
        "pull", REPO, "--profile", "android-4gb", "--out", tmp_path / "pulled", "--public-key", keys / key
    )


def damage(writable, path, content):
    repo = writable.repos[REPO]
    tree = dict(repo.commits[repo.head])
    tree[path] = Blob(content, False)
    repo.commit(tree)


def test_a_pulled_package_verifies_by_the_public_key(writable, edgewright, keys, tmp_path, signed):
    assert {SIGNATURE, f"{signed}/{SIGNATURE}"} <= writable.repos[REPO].files().keys()
    done = pull(edgewright, keys, tmp_path)
    assert done.code == 0, done.err
    folder = tmp_path / "pulled" / signed
    assert edgewright("verify", folder, "--public-key", keys / "ours.pub").code == 0
    assert edgewright("verify", folder).code == 0  # the signature is no stray file
    refused = edgewright("verify", folder, "--public-key", keys / "theirs.pub")
    assert refused.code == 1 and "its signature is not that of" in refused.err
    again = pull(edgewright, keys, tmp_path)
    assert again.code == 0 and "was there already" in again.out


def test_model_signing_itself_verifies_what_was_signed(edgewright, keys, tmp_path, signed):
    pull(edgewright, keys, tmp_path)
    for folder, ignored in ((tmp_path / "pulled" / signed, ()), (tmp_path / "pulled", (signed,))):
        command = [sys.executable, "-m", "model_signing", "verify", "key", str(folder)]
        command += ["--signature", str(folder / SIGNATURE), "--public_key", str(keys / "ours.pub")]
        command += [part for name in ignored for part in ("--ignore-paths", str(folder / name))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_another_key_or_no_signature_is_refused_before_anything_is_fetched(
    writable, edgewright, keys, tmp_path, signed
):
    writable.log.clear()
    refused = pull(edgewright, keys, tmp_path, "theirs.pub")
    assert refused.code == 1 and "do not use it" in refused.err and not (tmp_path / "pulled").exists()
    assert not writable.requests("GET", f"/{signed}/edgewright.json")
    repo = writable.repos[REPO]
    repo.commit({path: blob for path, blob in repo.commits[repo.head].items() if path != SIGNATURE})
    refused = pull(edgewright, keys, tmp_path)
    assert refused.code == 2 and "carries no signature" in refused.err


@pytest.mark.parametrize("path", ["README.md", "edgewright.index.json", "bom.cdx.json", SIGNATURE])
def test_a_root_file_that_was_changed_is_found_out(writable, edgewright, keys, tmp_path, signed, path):
    damage(writable, path, writable.repos[REPO].files()[path] + b"\n")
    refused = pull(edgewright, keys, tmp_path)
    if path == SIGNATURE:  # white space behind a JSON document changes nothing of it
        assert refused.code == 0
        damage(writable, path, b"{}")
        refused = pull(edgewright, keys, tmp_path)
    assert refused.code == 1 and "do not use it" in refused.err


def test_a_package_of_another_publication_under_a_true_root_is_found_out(writable, edgewright, keys, tmp_path, signed):
    damage(writable, f"{signed}/model.onnx", b"\0another")
    refused = pull(edgewright, keys, tmp_path)
    assert refused.code == 2 and "model.onnx" in refused.err and not (tmp_path / "pulled" / signed).exists()


def test_publishing_again_keeps_signatures_that_hold(writable, edgewright, keys, tmp_path, signed):
    again = edgewright("publish", tmp_path / "onnx", "--repo", REPO, "--sign-key", keys / "ours")
    assert again.code == 0 and "unchanged, no file was sent" in again.out
    other = edgewright("publish", tmp_path / "onnx", "--repo", REPO, "--sign-key", keys / "theirs")
    assert other.code == 0 and "2 files sent" in other.out
    unsigned = edgewright("publish", tmp_path / "onnx", "--repo", REPO)
    assert unsigned.code == 0 and f"{signed}/{SIGNATURE}" not in writable.repos[REPO].files()


def test_keys_that_are_none_are_bad_input(writable, edgewright, keys, tmp_path):
    folder = package(tmp_path / "onnx")
    (tmp_path / "key").write_text("no key")
    for key in (tmp_path / "key", tmp_path / "missing", keys / "ours.pub"):
        refused = edgewright("publish", folder, "--repo", REPO, "--sign-key", key)
        assert refused.code == 2 and str(key) in refused.err and not writable.repos.get(f"{REPO}x")
    assert edgewright("verify", folder, "--public-key", tmp_path / "key").code == 2  # and there is no signature
    assert edgewright("verify", folder, "--signed-by", "me").code == 2
    (folder / SIGNATURE).write_text("{}")
    refused = edgewright("verify", folder, "--public-key", tmp_path / "key")
    assert refused.code == 2 and "is no elliptic-curve key" in refused.err


def test_the_bill_of_materials_is_valid_and_the_same_for_the_same_packages(writable, edgewright, tmp_path):
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    done = edgewright("publish", package(tmp_path / "onnx"), "--repo", REPO)
    assert done.code == 0, done.err
    raw = writable.repos[REPO].files()["bom.cdx.json"].decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(raw) is None
    found = json.loads(raw)
    kinds = {item["bom-ref"]: item["type"] for item in found["components"]}
    assert kinds["base-model"] == "machine-learning-model" and "tool/edgewright@0.1.0" in kinds
    base = next(item for item in found["components"] if item["bom-ref"] == "base-model")
    assert base["purl"] == f"pkg:huggingface/mistralai/Ministral-3-3B-Instruct-2512-BF16@{'a' * 40}"
    before = contents(tmp_path / "onnx")
    shutil.rmtree(tmp_path / "onnx")
    assert contents(package(tmp_path / "onnx", files=FILES)).keys() == before.keys()
    assert "no file was sent" in edgewright("publish", tmp_path / "onnx", "--repo", REPO).out
