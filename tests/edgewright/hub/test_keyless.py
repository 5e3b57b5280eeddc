"""Signatures by the identity of a CI job: certified, logged, required by name; against a sigstore of our own."""

from __future__ import annotations

import json

import pytest

from artifacts.manifest import SIGNATURE

from .packages import package
from .sigstore import IDENTITY, ISSUER, Sigstore

REPO = "acme/small-edge"


@pytest.fixture(scope="module")
def sigstore():
    with Sigstore() as server:
        yield server


@pytest.fixture
def trust(sigstore, tmp_path):
    file = tmp_path / "trust.json"
    file.write_text(sigstore.trust())
    return file


@pytest.fixture
def signed(writable, edgewright, sigstore, trust, tmp_path):
    """The name of the only package of a publication that a job signed."""
    sigstore.entries.clear()
    done = publish(edgewright, tmp_path, "--sigstore", trust, **sigstore.job)
    assert done.code == 0, done.err
    (name,) = (line.strip() for line in done.out.splitlines() if line.startswith("  onnx-"))
    return name


def publish(edgewright, tmp_path, *arguments, **env):
    folder = tmp_path / "onnx"
    if not folder.exists():
        package(folder)
    return edgewright("publish", folder, "--repo", REPO, "--sign-keyless", *arguments, **env)


def pull(edgewright, tmp_path, trust, identity=IDENTITY, issuer=ISSUER):
    required = ("--signed-by", identity, "--issuer", issuer, "--sigstore", trust)
    return edgewright("pull", REPO, "--profile", "android-4gb", "--out", tmp_path / "pulled", *required)


def test_a_pulled_package_verifies_by_the_name_of_the_job_that_published_it(
    writable, edgewright, sigstore, trust, tmp_path, signed
):
    assert len(sigstore.entries) == 2  # the package, and what lies beside it
    done = pull(edgewright, tmp_path, trust)
    assert done.code == 0, done.err
    folder = tmp_path / "pulled" / signed
    required = ("--signed-by", IDENTITY, "--issuer", ISSUER, "--sigstore", trust)
    assert edgewright("verify", folder, *required).code == 0
    (folder / SIGNATURE).write_bytes((tmp_path / "pulled" / SIGNATURE).read_bytes())  # of other files
    refused = edgewright("verify", folder, *required)
    assert refused.code == 1 and "the files are not those that were signed" in refused.err


def test_another_job_issuer_sigstore_or_log_is_refused(writable, edgewright, trust, tmp_path, signed):
    for name in (
        {"identity": IDENTITY.replace("main", "fork")},
        {"identity": IDENTITY.replace("acme", "acne")},
        {"issuer": "https://gitlab.com"},
    ):
        refused = pull(edgewright, tmp_path, trust, **name)
        assert refused.code == 1 and "do not use it" in refused.err and not (tmp_path / "pulled").exists()
    assert pull(edgewright, tmp_path, trust).code == 0
    file = tmp_path / "pulled" / signed / SIGNATURE
    required = (file.parent, "--signed-by", IDENTITY, "--issuer", ISSUER, "--sigstore", trust)
    whole = file.read_text()
    bundle = json.loads(whole)
    (entry,) = bundle["verificationMaterial"]["tlogEntries"]
    entry["integratedTime"] = str(int(entry["integratedTime"]) + 1)
    file.write_text(json.dumps(bundle))
    refused = edgewright("verify", *required)
    assert refused.code == 1 and "inclusion promise" in refused.err
    file.write_text(whole)
    trust.write_text(Sigstore().trust())
    refused = edgewright("verify", *required)
    assert refused.code == 1 and "its signature is not that of" in refused.err


def test_without_an_identity_it_says_what_it_needs_and_asks_nobody(writable, edgewright, sigstore, trust, tmp_path):
    nobody = publish(edgewright, tmp_path, "--sigstore", trust)
    assert nobody.code == 2 and "no CI job that has an identity" in nobody.err and "id-token: write" in nobody.err
    forbidden = publish(edgewright, tmp_path, "--sigstore", trust, GITHUB_ACTIONS="true")
    assert forbidden.code == 2 and "permissions: id-token: write" in forbidden.err
    refused = publish(
        edgewright, tmp_path, "--sigstore", trust, **sigstore.job | {"ACTIONS_ID_TOKEN_REQUEST_TOKEN": "expired"}
    )
    assert refused.code == 2 and "code=403" in refused.err
    assert set(writable.repos[REPO].files()) == {".gitattributes"}


def test_a_sigstore_that_cannot_be_used_is_named(writable, edgewright, sigstore, trust, tmp_path, signed):
    assert pull(edgewright, tmp_path, trust).code == 0
    folder = tmp_path / "pulled" / signed
    for content in (b"{}", b"no JSON", b"\xff"):
        trust.write_bytes(content)
        for refused in (
            publish(edgewright, tmp_path, "--sigstore", trust, **sigstore.job),
            edgewright("verify", folder, "--signed-by", IDENTITY, "--issuer", ISSUER, "--sigstore", trust),
        ):
            assert refused.code == 2 and f"--sigstore {trust}: cannot be used" in refused.err
    missing = publish(edgewright, tmp_path, "--sigstore", tmp_path / "none", **sigstore.job)
    assert missing.code == 2 and str(tmp_path / "none") in missing.err
