"""`edgewright publish` through the real client against a Hub on this machine: what is there afterwards."""

from __future__ import annotations

import json

import pytest
import yaml

from edgewright.hub.index import Index

from .identity import JOB, READER
from .packages import BASE, FILES, contents, memory, package, parity

REPO = "acme/small-edge"
RECIPE = """\
name: small
checkpoint: {hub: a/b, revision: null}
quantize: {rules: [{match: '*', bits: 4}]}
context: {max_tokens: 64}
targets: {onnx: {}}
"""


@pytest.fixture
def onnx(tmp_path):
    return package(tmp_path / "build" / "onnx")


@pytest.fixture
def mlx(tmp_path):
    checks = (parity(), memory("iphone-12", 2.1e8), memory("android-4gb", None))
    files = {**FILES, "README.md": FILES["README.md"].replace(b"onnxruntime-genai", b"mlx")}
    return package(
        tmp_path / "build" / "mlx", target="mlx", files=files, checks=checks, payload={"ios": ("model.onnx",)}
    )


def test_everything_is_there_in_one_commit_under_a_tag(writable, edgewright, onnx, mlx):
    done = edgewright("publish", onnx, mlx, "--repo", REPO, "--json")
    assert done.code == 0, done.err
    found, repo = done.json(), writable.repos[REPO]
    assert repo.private and len(repo.commits) == 2  # the Hub's own and ours
    assert repo.tags == {found["tag"]: found["commit"]} == {found["tag"]: repo.head}
    assert found["variants"] == ["mlx-int4-300B", "onnx-int4-32.3kB"]
    files = repo.files(found["tag"])
    expected = {f"mlx-int4-300B/{name}": content for name, content in contents(mlx).items()}
    expected |= {f"onnx-int4-32.3kB/{name}": content for name, content in contents(onnx).items()}
    roots = {"README.md", "bom.cdx.json", "config.json", "edgewright.index.json", ".gitattributes"}
    assert {name: content for name, content in files.items() if name not in roots} == expected
    assert roots <= files.keys()
    assert json.loads(files["config.json"])["variants"] == found["variants"]


def test_the_index_says_what_is_for_which_phone(writable, edgewright, onnx, mlx):
    edgewright("publish", onnx, mlx, "--repo", REPO)
    index = Index.model_validate_json(writable.repos[REPO].files()["edgewright.index.json"])
    assert index.recipe == "small" and index.base_model and index.base_model.repo == BASE
    assert index.profiles["iphone-12"].platform == "ios" and index.profiles["iphone-12"].ram_bytes == 4 << 30
    first, second = index.variants
    assert first.payload_bytes == {"ios": 300}
    assert {name: judged.verdict for name, judged in first.profiles.items()} == {
        "android-4gb": "not for this platform",
        "iphone-12": "passed",
    }
    (check,) = second.profiles["iphone-12"].checks
    assert (check.value, check.limit, check.obtained, check.stand_in) == (
        2.9e8,
        2.0e9,
        "emulated",
        "this machine without a limit",
    )
    assert second.quantization[0].method == "gptq"


def test_the_card_carries_the_hubs_metadata_and_every_verdict(writable, edgewright, onnx, mlx):
    edgewright("publish", onnx, mlx, "--repo", REPO)
    _, front, body = writable.repos[REPO].files()["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "license": "apache-2.0",
        "library_name": "edgewright",  # two runtimes, none of which is the repository's
        "pipeline_tag": "text-generation",
        "base_model": BASE,
        "base_model_relation": "quantized",
        "tags": ["onnx", "4-bit", "edgewright"],
    }
    assert "| `mlx-int4-300B` | mlx | 300 B in an app (ios) | INT4 group 64 | passed |" in body
    figure = "| iphone-12 | peak memory at 256 tokens | 290 MB | ≤ 2.00 GB |"
    assert f"{figure} emulated: this machine without a limit | fits |" in body
    assert "| parity | same clear token | 99.00 % | ≥ 97.00 % | measured | passed |" in body
    assert "| `onnx-int4-32.3kB` | 4 | 64 | yes | gptq | 3 | 900 | 500 B |" in body
    assert f"edgewright pull {REPO} --profile" in body


def test_publishing_again_sends_nothing_and_says_so(writable, edgewright, onnx, mlx):
    first = edgewright("publish", onnx, mlx, "--repo", REPO, "--json").json()
    writable.log.clear()
    again = edgewright("publish", mlx, onnx, "--repo", REPO)
    assert again.code == 0 and f"{REPO}: unchanged, no file was sent" in again.out
    assert {method for method, _, _ in writable.log} == {"GET"}
    repo = writable.repos[REPO]
    assert repo.head == first["commit"] and list(repo.tags) == [first["tag"]]


def test_what_changed_alone_is_sent_and_what_it_replaces_goes(writable, edgewright, onnx, mlx, tmp_path):
    first = edgewright("publish", onnx, mlx, "--repo", REPO, "--json").json()
    heavier = package(tmp_path / "again" / "onnx", files={**FILES, "model.onnx.data": b"\0other" * 9000})
    writable.log.clear()
    second = edgewright("publish", heavier, mlx, "--repo", REPO, "--json").json()
    assert [path for path in second["sent"] if path.startswith("mlx")] == []
    assert {path.split("/")[0] for path in second["removed"]} == {"onnx-int4-32.3kB"}
    assert len(writable.requests("PUT", "/store/")) == 1  # the graph is known by its digest, wherever it lies
    repo = writable.repos[REPO]
    assert {path.split("/")[0] for path in repo.files() if "/" in path} == {"mlx-int4-300B", "onnx-int4-54.3kB"}
    assert "onnx-int4-32.3kB/model.onnx.data" in repo.files(first["tag"])  # who pinned the tag keeps it


def test_what_somebody_laid_beside_it_stays(writable, edgewright, onnx):
    edgewright("publish", onnx, "--repo", REPO)
    repo = writable.repos[REPO]
    repo.write(LICENSE=b"Apache")
    again = edgewright("publish", onnx, "--repo", REPO, "--json")
    assert again.code == 0, again.err
    assert again.json()["sent"] == [] and repo.files()["LICENSE"] == b"Apache"


def test_the_recipe_names_the_repository(writable, edgewright, onnx, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(RECIPE)
    none = edgewright("publish", onnx, "--recipe", recipe)
    assert none.code == 2 and "has no section `publish`; give --repo OWNER/NAME" in none.err
    recipe.write_text(RECIPE + "publish: {repo: acme/from-recipe, private: false}\n")
    done = edgewright("publish", onnx, "--recipe", recipe)
    assert done.code == 0, done.err
    assert not writable.repos["acme/from-recipe"].private and "(public)" in done.out
    assert edgewright("publish", onnx).code == 2


def test_private_by_default_never_means_into_a_public_one(writable, edgewright, onnx):
    writable.make(REPO, private=False)
    refused = edgewright("publish", onnx, "--repo", REPO)
    assert refused.code == 2 and "everybody can see this repository" in refused.err
    assert writable.requests("POST", "") == [] and writable.requests("PUT", "") == []
    assert edgewright("publish", onnx, "--repo", REPO, "--public").code == 0


def test_what_did_not_pass_is_published_only_as_such(writable, edgewright, tmp_path):
    checks = (parity(), memory("iphone-12", 3.0e9))
    failed = package(tmp_path / "onnx", checks=checks, verdict="failed")
    refused = edgewright("publish", failed, "--repo", REPO)
    assert refused.code == 1
    assert "did not pass, so nothing was published: failed on 2026-11-22" in refused.err
    assert "peak memory at 256 tokens 3.00 GB (limit 2.00 GB): does not fit" in refused.err
    assert writable.log == []

    done = edgewright("publish", failed, "--repo", REPO, "--allow-failed")
    words = " ".join(done.out.split())  # where lines fold depends on the folder's name
    assert done.code == 0 and "warning: " in words and ": failed; the repository's card" in words
    files = writable.repos[REPO].files()
    index = json.loads(files["edgewright.index.json"])["variants"][0]
    assert index["verdict"] == "failed" and index["profiles"]["iphone-12"]["verdict"] == "failed"
    assert "**`onnx-int4-32.3kB` did not pass (failed) and was published all the same.**" in files["README.md"].decode()


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"checks": None}, "never validated"),
        ({"checks": (parity(), memory("android-4gb", None)), "verdict": "not assessed"}, "not assessed on 2026-11-22"),
    ],
)
def test_what_nothing_was_found_out_about_did_not_pass(writable, edgewright, tmp_path, made, said):
    refused = edgewright("publish", package(tmp_path / "onnx", **made), "--repo", REPO)
    assert refused.code == 1 and said in refused.err and writable.log == []


def test_a_changed_artifact_is_refused(writable, edgewright, onnx):
    (onnx / "model.onnx").write_bytes(b"\0GRAPH" * 50)
    refused = edgewright("publish", onnx, "--repo", REPO)
    assert refused.code == 2 and "model.onnx: sha256 differs: the content was changed" in refused.err
    (onnx / "model.onnx").write_bytes(FILES["model.onnx"])
    manifest = onnx / "edgewright.json"
    manifest.write_text(
        manifest.read_text()
        .replace('"does not fit"', '"fits"')
        .replace('"verdict": "fits"', '"verdict": "does not fit"')
    )
    refused = edgewright("publish", onnx, "--repo", REPO)
    assert refused.code == 2 and "it was edited" in refused.err
    assert writable.log == []


def test_links_names_of_one_case_and_paths_that_leave_are_refused(writable, edgewright, onnx, tmp_path):
    manifest = onnx / "edgewright.json"
    good = manifest.read_text()
    manifest.write_text(good.replace("golden.safetensors", "../golden.safetensors"))
    refused = edgewright("publish", onnx, "--repo", REPO)
    assert refused.code == 2 and "would leave the artifact's folder" in refused.err
    manifest.write_text(good.replace("golden.safetensors", "MODEL.onnx"))
    refused = edgewright("publish", onnx, "--repo", REPO)
    assert refused.code == 2 and "is listed twice (or differs only in case)" in refused.err
    manifest.write_text(good)
    (onnx / "golden.safetensors").rename(tmp_path / "elsewhere")
    (onnx / "golden.safetensors").symlink_to(tmp_path / "elsewhere")
    refused = edgewright("publish", onnx, "--repo", REPO)
    assert refused.code == 2 and "golden.safetensors: a symbolic link, which is refused" in refused.err
    assert writable.log == []


@pytest.mark.parametrize("name", [".git/hooks/post-checkout", "x/.Cache/y", "right\u202eleft.txt"])
def test_names_that_the_hub_or_a_terminal_cannot_take_are_refused(writable, edgewright, tmp_path, name):
    folder = package(tmp_path / "onnx", files={**FILES, name: b"x"})
    refused = edgewright("publish", folder, "--repo", REPO)
    assert refused.code == 2 and "build the package without it" in refused.err and writable.log == []


def test_two_artifacts_for_one_place_or_of_two_recipes_are_refused(writable, edgewright, onnx, tmp_path):
    for made in ({}, {"recipe": "other", "bits": 8}, {"checkpoint": "f" * 64, "bits": 8}):
        other = package(tmp_path / f"other{len(made)}{made.get('recipe')}", **made)
        refused = edgewright("publish", onnx, other, "--repo", REPO)
        said = "of different recipes or checkpoints" if made else "both would be onnx-int4-32.3kB"
        assert refused.code == 2 and said in refused.err
    assert edgewright("publish", onnx, onnx, "--repo", REPO).code == 2
    assert writable.log == []


def test_quantized_weights_are_no_package(writable, edgewright, tmp_path):
    weights = package(tmp_path / "quantized", target="checkpoint", checks=None)
    refused = edgewright("publish", weights, "--repo", REPO, "--allow-failed")
    assert refused.code == 2 and "publish the packages instead" in refused.err


def test_hostile_text_stays_text(writable, edgewright, tmp_path):
    hostile = "<img src=x onerror=alert(1)> [a](javascript:b) | ``` \n# big"
    name = "`<script>` | [x](y) ![z](w).txt"
    checks = (parity(label=hostile), memory("iphone-12", 1e8, label=hostile))
    folder = package(tmp_path / "onnx", files={**FILES, name: b"x"}, checks=checks, recipe=hostile)
    done = edgewright("publish", folder, "--repo", REPO)
    assert done.code == 0, done.err
    files = writable.repos[REPO].files()
    assert files[f"onnx-int4-32.3kB/{name}"] == b"x"
    card = files["README.md"].decode()
    body = card.split("---\n", 2)[2]
    assert "\\<img src=x onerror=alert(1)\\> \\[a\\](javascript:b)" in body
    assert "<img" not in body.replace("\\<img", "") and "\n# big" not in body and "](" not in body.replace("\\](", "")
    row = next(line for line in body.splitlines() if line.startswith("| parity"))
    assert len(row.replace("\\|", "").split("|")) == 8  # six cells


def test_a_licence_that_forbids_commercial_use_is_accepted_by_name_or_nothing_is_sent(writable, edgewright, tmp_path):
    folder, recipe = package(tmp_path / "onnx", licence="cc-by-nc-4.0"), tmp_path / "mine.yaml"
    for accepted in ("", ", accept_licence: mit"):
        recipe.write_text(f"{RECIPE}publish: {{repo: {REPO}{accepted}}}\n")
        refused = edgewright("publish", folder, "--recipe", recipe)
        assert refused.code == 2 and "accept_licence: cc-by-nc-4.0" in refused.err and not writable.repos
    recipe.write_text(f"{RECIPE}publish: {{repo: {REPO}, accept_licence: cc-by-nc-4.0}}\n")
    assert edgewright("publish", folder, "--recipe", recipe).code == 0


def test_a_license_that_is_not_stated_is_said(writable, edgewright, tmp_path):
    folder = package(tmp_path / "onnx", files={**FILES, "README.md": b"---\nlicense: [a, b]\ntags: 3\n---\n"})
    done = edgewright("publish", folder, "--repo", REPO)
    assert done.code == 0 and "states no licence" in " ".join(done.out.split())
    assert "library_name: edgewright\nlicense: unknown\n" in writable.repos[REPO].files()["README.md"].decode()
    broken = package(tmp_path / "broken", files={**FILES, "README.md": b"---\nlicense: [a\n---\n"})
    refused = edgewright("publish", broken, "--repo", REPO)
    assert refused.code == 2 and "its metadata cannot be read" in refused.err


def test_a_repository_of_something_else_is_left_alone(writable, edgewright, onnx, tmp_path):
    theirs = writable.make(REPO, **{"README.md": b"# mine", "model.gguf": b"x"})
    refused = edgewright("publish", onnx, "--repo", REPO)
    assert refused.code == 2 and "holds other files (README.md, model.gguf) and no edgewright.index.json" in refused.err
    assert len(theirs.commits) == 2 and theirs.tags == {} and writable.requests("PUT", "") == []

    other = package(tmp_path / "other", recipe="other")
    assert edgewright("publish", other, "--repo", "acme/other").code == 0
    refused = edgewright("publish", onnx, "--repo", "acme/other")
    assert refused.code == 2 and "packages of the recipe 'other', these are of 'small'" in refused.err


def test_a_target_is_not_lost_by_the_way(writable, edgewright, onnx, mlx):
    edgewright("publish", onnx, mlx, "--repo", REPO)
    before = writable.repos[REPO].head
    refused = edgewright("publish", onnx, "--repo", REPO)
    assert refused.code == 2 and "holds packages for mlx too, which would be gone" in refused.err
    assert writable.repos[REPO].head == before


def test_names_that_differ_in_case_only_are_refused(writable, edgewright, onnx):
    edgewright("publish", onnx, "--repo", REPO)
    writable.repos[REPO].write(**{"readme.md": b"x"})
    refused = edgewright("publish", onnx, "--repo", REPO)
    assert refused.code == 2 and "readme.md, which differs from README.md only in case" in refused.err


def test_a_tag_of_something_else_is_found_before_anything_is_sent(writable, edgewright, onnx, tmp_path):
    edgewright("publish", onnx, "--repo", REPO, "--tag", "v1")
    before = writable.repos[REPO].head
    writable.log.clear()
    other = package(tmp_path / "again", files={**FILES, "model.onnx": b"\0other"})
    refused = edgewright("publish", other, "--repo", REPO, "--tag", "v1")
    assert refused.code == 2 and "has a tag v1 already, of something else; give another --tag" in refused.err
    assert {method for method, _, _ in writable.log} == {"GET"}
    assert edgewright("publish", onnx, "--repo", REPO, "--tag", "v1").code == 0
    assert writable.repos[REPO].head == before
    for name in ("../v1", "a b", "-x", "v1.lock", ""):
        assert edgewright("publish", onnx, "--repo", REPO, f"--tag={name}").code == 2


@pytest.mark.parametrize("repo", ["small", "a/b/c", "../x", "a/../b", "acme/sm all"])
def test_a_repository_that_can_be_none_is_named(writable, edgewright, onnx, repo):
    refused = edgewright("publish", onnx, "--repo", repo)
    assert refused.code == 2 and "--repo: must be owner/name" in refused.err and writable.log == []


def test_a_ci_job_publishes_by_its_identity_alone(writable, edgewright, onnx):
    github = {"GITHUB_ACTIONS": "true", "ACTIONS_ID_TOKEN_REQUEST_URL": f"{writable.url}/github/identity",
              "ACTIONS_ID_TOKEN_REQUEST_TOKEN": JOB}  # fmt: skip
    refused = edgewright("publish", onnx, "--repo", REPO, token=None, **github)
    assert refused.code == 2 and "name its workflow as a trusted publisher" in refused.err
    writable.publishers.add(REPO)
    missing = edgewright("publish", onnx, "--repo", REPO, token=None, **github)
    assert missing.code == 2 and "make it first: a CI job's own token is for one that exists" in missing.err
    writable.make(REPO)
    writable.log.clear()
    done = edgewright("publish", onnx, "--repo", REPO, token=None, **github)
    assert done.code == 0, done.err
    asked = [path for _, path, _ in writable.log]
    assert asked[:2] == ["/github/identity", "/oauth/token"] and asked.count("/oauth/token") == 1
    other = edgewright("publish", onnx, "--repo", REPO, token=None, **{**github, "HF_OIDC_RESOURCE": "acme/other"})
    assert other.code == 2 and "no token for acme/other" in other.err


def test_without_the_right_token_it_says_which_one(writable, edgewright, onnx):
    none = edgewright("publish", onnx, "--repo", REPO, token="")
    assert none.code == 2 and "needs a token with write rights: `hf auth login`, or set HF_TOKEN" in none.err
    wrong = edgewright("publish", onnx, "--repo", REPO, token="hf_unknownMustStaySecret")
    assert wrong.code == 2 and "does not know the token" in wrong.err
    for _ in range(2):  # where there is no repository, and where there is one
        reader = edgewright("publish", onnx, "--repo", REPO, token=READER)
        assert reader.code == 2 and "the token has no right to write there" in reader.err
        writable.make(REPO)
    other = edgewright("publish", onnx, "--repo", "somebody/else")
    assert other.code == 2 and "the token has no right to write there (You don't have the rights" in other.err


def test_a_hub_that_refuses_the_card_is_quoted(writable, edgewright, tmp_path):
    card = FILES["README.md"].replace(b"apache-2.0", b"forbidden")
    folder = package(tmp_path / "onnx", files={**FILES, "README.md": card})
    refused = edgewright("publish", folder, "--repo", REPO)
    assert refused.code == 2 and '"license" must be one of' in refused.err
    assert len(writable.repos[REPO].commits) == 1 and writable.repos[REPO].tags == {}


def test_a_listing_of_several_pages_is_read_to_its_end(writable, edgewright, onnx, mlx):
    writable.page = 3
    assert edgewright("publish", onnx, mlx, "--repo", REPO).code == 0
    assert "unchanged" in edgewright("publish", onnx, mlx, "--repo", REPO).out
