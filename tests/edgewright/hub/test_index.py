"""edgewright.index.json: what its page says of it, and the choice for a phone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import edgewright.hub
from artifacts import EdgewrightError, read_manifest
from artifacts.payload import app_bytes
from edgewright.hub import index as indexes
from edgewright.hub.index import Index, choose, read_index
from tests.edgewright.conftest import Finished

from .packages import memory, package, parity

PAGE = (Path(edgewright.hub.__file__).parent / "README.md").read_text(encoding="utf-8")


def variant(folder: Path, **made: object) -> indexes.Variant:
    manifest = read_manifest(package(folder, **made))  # type: ignore[arg-type]
    return indexes.variant(manifest, "0" * 64, 10, app_bytes(folder, manifest))


def keys(schema: dict, of: str) -> set[str]:
    return set((schema["$defs"][of] if of else schema)["properties"])


def test_the_page_names_every_key_and_no_other() -> None:
    schema = Index.model_json_schema()
    top = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    assert top | {"variants"} == keys(schema, "")
    assert set(re.findall(r"^\| `variants\[\]\.(\w+)` \|", PAGE, re.MULTILINE)) == keys(schema, "Variant")
    words = set(re.findall(r"`(\w+)`", PAGE))
    for inner in ("Origin", "Phone", "ManifestFile", "Judged", "Check", "QuantizationGroup"):
        assert keys(schema, inner) <= words, inner


@pytest.mark.parametrize("language", ["swift", "kotlin"])
def test_a_reader_for_apps_has_twenty_lines_and_reads_keys_that_exist(language: str) -> None:
    code = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert code
    lines = [line for line in code[1].splitlines() if line.strip()]
    assert len(lines) <= 20
    schema = Index.model_json_schema()
    known = {key for of in ("", "Variant", "Phone", "Judged") for key in keys(schema, of)}
    if language == "kotlin":
        read = set(re.findall(r"(?:get|opt)(?:Int|String|Double|Long|JSONObject|JSONArray)\(\"(\w+)\"\)", code[1]))
        assert read - known == {"android"}  # a platform, of `payload_bytes`
    else:
        read = {name for let in re.findall(r"let ([^=\n}]+:[^=\n}]+)", code[1]) for name in re.findall(r"(\w+):", let)}
        assert read - known <= {"String"}
    assert {"schema_version", "profiles", "variants", "verdict", "payload_bytes", "ram_bytes"} <= read


def test_a_phone_that_failed_once_stays_failed(tmp_path: Path) -> None:
    found = variant(tmp_path, checks=(parity(), memory("iphone-12", 3e9)), verdict="failed")
    assert found.verdict == "failed" and found.profiles["iphone-12"].verdict == "failed"


def test_the_name_says_target_bits_and_size(tmp_path: Path) -> None:
    assert variant(tmp_path / "a", bits=8).name == "onnx-int8-32.3kB"
    assert variant(tmp_path / "b", target="tvm", payload={}).name == "tvm-int4-32.7kB"  # for no phone: all of it


def test_the_smallest_payload_on_the_phones_own_platform_decides(tmp_path: Path) -> None:
    checks = (parity(), memory("iphone-12", 1e8), memory("my-phone", 1e8))
    small_on_ios = variant(
        tmp_path / "a", checks=checks, payload={"ios": ("README.md",), "android": ("model.onnx.data",)}
    )
    plain = variant(
        tmp_path / "b", target="tvm", checks=checks, payload={"ios": ("model.onnx",), "android": ("model.onnx",)}
    )
    both = (small_on_ios, plain)
    index = Index(recipe="small", base_model=None, profiles=indexes.phones(both), variants=both)
    assert choose(index, "iphone-12", "a/b") == small_on_ios
    assert choose(index, "my-phone", "a/b") == plain  # of no known platform: the most of all


def test_an_index_reads_as_it_was_written(tmp_path: Path) -> None:
    one = (variant(tmp_path),)
    index = Index(recipe="small", base_model=None, profiles=indexes.phones(one), variants=one)
    assert read_index(index.content(), "here") == index
    for raw in (b"", b"[]", b"{}", b'{"schema_version": true}', index.content().replace(b'"bytes"', b'"byte"')):
        with pytest.raises(EdgewrightError, match=r"^here: .*publish the packages again"):
            read_index(raw, "here")


def test_of_a_real_run_the_phones_are_those_of_its_recipe(finished: Finished) -> None:
    folder = finished.folder / "onnx"
    manifest = read_manifest(folder)
    made = indexes.variant(manifest, "0" * 64, 10, app_bytes(folder, manifest))
    assert {name: judged.verdict for name, judged in made.profiles.items()} == {
        "android-4gb": "passed",
        "iphone-12": "passed",
    }
    assert made.verdict == "passed" and made.name.startswith("onnx-int4-")
