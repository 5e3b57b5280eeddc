"""The page beside report.md, as its source says it; `test_html_browser.py` looks at it in a browser."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import vl_convert

from artifacts import Check
from edgewright import charts, html_report, vega
from edgewright.report import Report
from tests.edgewright.conftest import Finished
from tests.edgewright.html_pages import HOSTILE, many

VOID = {"meta", "link", "br", "img"}


class Page(HTMLParser):
    """Elements in their order with their attributes, the words of each, and whether every one was closed."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[dict[str, Any]] = []
        self.elements: list[dict[str, Any]] = []
        self.source = source
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = {"tag": tag, **dict(attrs), "words": "", "inside": [one["tag"] for one in self.open]}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element["words"] += data

    def all(self, *tags: str) -> Iterator[dict[str, Any]]:
        return (element for element in self.elements if element["tag"] in tags)

    def specs(self) -> list[dict[str, Any]]:
        (found,) = [one for one in self.all("script") if one.get("id") == "pictures"]
        read: list[dict[str, Any]] = json.loads(found["words"])
        return read


@pytest.fixture(scope="module")
def page(finished: Finished) -> Page:
    return Page((finished.folder / "report.html").read_text())


@pytest.fixture(scope="module")
def hostile(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("hostile")
    html_report.write_run(many(finished.report, folder, said=HOSTILE))
    return Page((folder / "report.html").read_text())


def test_a_page_has_an_outline_that_a_screen_reader_follows(page: Page) -> None:
    headings = [int(one["tag"][1]) for one in page.all("h1", "h2", "h3")]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(headings))
    names = [one["id"] for one in page.elements if "id" in one]
    assert len(names) == len(set(names))
    links = [one["href"] for one in page.all("a")]
    assert {link[1:] for link in links if link.startswith("#")} <= set(names)
    (root,) = page.all("html")
    assert root["lang"] == "en"
    (title,) = page.all("title")
    assert title["words"] == "small: passed"


def test_every_table_has_a_caption_and_says_what_its_heads_are_for(page: Page) -> None:
    tables = list(page.all("table"))
    captions = [one["words"] for one in page.all("caption")]
    assert len(tables) == len(captions) == len(set(captions)) >= 6
    assert {one["scope"] for one in page.all("th")} == {"col", "row"}


def test_every_picture_is_told_in_words_and_its_figures_are_in_a_table(page: Page, finished: Finished) -> None:
    pictures = [one for one in page.all("div") if one.get("class") == "chart"]
    assert len(pictures) == len(page.specs()) == 4, "checks, sizes, memory, tensors"
    assert all(one["role"] == "img" and "table" in one["aria-label"] for one in pictures)
    cells = {one["words"] for one in page.all("td", "th")}
    (target,) = finished.report.targets
    for check in target.checks:
        assert check.label in cells
    run = next(phone.run for phone in target.phones if phone.run)
    assert {phase.phase for phase in run.phases} <= cells
    assert {"model.embed_tokens", "model.layers.0.mlp.down_proj"} <= cells


def test_a_cell_opens_to_the_reason_the_phase_and_the_contributors(page: Page, finished: Finished) -> None:
    details = [one["words"] for one in page.all("details") if "td" in one["inside"]]
    phones = finished.report.targets[0].phones
    assert len(details) == len(phones) == 2
    for words, phone in zip(details, phones, strict=True):
        assert phone.checks[0].reason in words and f"Phase: {phone.phase}" in words
        assert all(str(part) in words for part in phone.largest)


def test_a_page_asks_no_network_for_anything_and_stays_small(page: Page) -> None:
    loads = [one.get(key) for one in page.elements for key in ("src", "href", "srcset", "data", "action") if key in one]
    assert all(link.startswith(("#", "data:")) for link in loads)
    (policy,) = [one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none';") and "http" not in policy
    style = next(page.all("style"))["words"]
    assert "url(" not in style and "@import" not in style
    assert len(page.source.encode()) < 1_200_000


def test_twelve_phones_on_four_targets_stay_below_two_megabytes(hostile: Page) -> None:
    assert len(hostile.source.encode()) < 2_000_000


def test_names_are_text_wherever_they_stand(hostile: Page) -> None:
    assert [one.get("id") for one in hostile.all("script")] == [None, "pictures", None], "none of theirs"
    assert not list(hostile.all("img"))
    assert {key for one in hostile.elements for key in one if key.startswith("on")} == set()
    (head,) = hostile.all("h1")
    shown = HOSTILE.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
    assert f"small{shown}" in head["words"]
    assert "\x1b" not in hostile.source and "\u202e" not in hostile.source
    assert "evil.example" in json.dumps(hostile.specs()), "names are in the pictures too"


def test_names_are_values_of_the_data_and_no_part_of_an_expression(hostile: Page) -> None:
    for spec in hostile.specs():
        for text in _outside_of_data(spec):
            assert "alert" not in text


def _outside_of_data(spec: Any, key: str = "") -> Iterator[str]:
    """Every text of a specification but rows, and the domains of scales, which are compared with them."""
    if isinstance(spec, dict):
        for name, value in spec.items():
            if name not in ("values", "domain", "sort"):
                yield from _outside_of_data(value, name)
    elif isinstance(spec, list):
        for value in spec:
            yield from _outside_of_data(value, key)
    elif isinstance(spec, str):
        yield spec


def test_pictures_are_vega_lite_that_its_schema_knows_and_that_can_be_drawn(hostile: Page) -> None:
    import altair  # costs seconds, which collecting the tests need not

    specs = hostile.specs()
    assert len(specs) > 20
    kinds = {spec["description"]: spec for spec in specs}
    assert len(kinds) == 6, sorted(kinds)
    for spec in kinds.values():
        altair.Chart.from_dict(spec)  # raises altair's SchemaValidationError
        drawn = charts.svg(spec, "a title")
        assert re.search(r"<(path|rect|line)\b", drawn) and "undefined" not in drawn and "NaN" not in drawn


def test_no_point_covers_the_name_of_its_row(hostile: Page) -> None:
    (spec,) = (spec for spec in hostile.specs() if spec["description"] == "Share of each limit that is used")
    drawn = charts.svg(spec, "a title")
    labels = re.findall(r'<text text-anchor="start" transform="translate\(2,([0-9.]+)\)"', drawn)
    names = sorted(map(float, labels))  # where the line of each is, from the top
    points = [
        float(y) for y in re.findall(r'-roledescription="point" transform="translate\([0-9.]+,([0-9.]+)\)"', drawn)
    ]
    assert len(names) == len({row["check"] for row in spec["data"]["values"]}) and len(points) >= len(names)
    above, below, radius = 8, 2, 4.2  # of letters of 10 px over and under their line, and of a point
    assert not [(name, y) for name in names for y in points if name - above - radius < y < name + below + radius]


@pytest.mark.parametrize("text", ["\x00", "\x1b[31m", "\ufffe", "\uffff", "\ud800", "\x85", "]]>", "&lt;"])
def test_no_character_ends_the_process_that_draws(text: str) -> None:
    """vl-convert takes what it draws for XML, and its process with it where that is none."""
    drawn = charts.svg(charts.sizes([]), text)
    ElementTree.fromstring(drawn)


def test_the_runtime_is_there_once_and_in_the_version_that_draws_files(page: Page) -> None:
    import altair

    (script,) = [one["words"] for one in page.all("script") if len(one["words"]) > 100_000]
    assert "window.vegaEmbed=" in script
    assert charts._VERSION in vl_convert.get_vegalite_versions()
    assert altair.SCHEMA_VERSION.removeprefix("v").startswith(f"{charts._VERSION}.") or altair.SCHEMA_VERSION > "v6"


def test_the_runtime_is_bundled_once_and_again_where_what_was_kept_is_not_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    bundle = vl_convert.javascript_bundle
    monkeypatch.setattr(vl_convert, "javascript_bundle", lambda *of, **more: made.append(of) or bundle(*of, **more))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    snippet, kept = "window.two = 2;", tmp_path / "edgewright" / "vega.js"

    script = vega.bundled(snippet, charts._VERSION)
    whole = kept.read_bytes()
    assert script == vega.bundled(snippet, charts._VERSION) and "two=2" in script and len(made) == 1
    assert list(kept.parent.iterdir()) == [kept]
    older = whole.replace(version("vl-convert-python").encode(), b"0.1", 1)
    for other in (whole[:-1], whole.replace(b"two=2", b"two=3"), b"", older):
        made.clear()
        kept.write_bytes(other)
        assert vega.bundled(snippet, charts._VERSION) == script and len(made) == 1
        assert kept.read_bytes() == whole
    assert "two=3" in vega.bundled("window.two = 3;", charts._VERSION)

    monkeypatch.setenv("XDG_CACHE_HOME", str(kept))  # where no folder can be
    assert vega.bundled(snippet, charts._VERSION) == script


@pytest.mark.parametrize(
    ("unit", "direction", "limit", "value", "share"),
    [
        ("nat", "at most", 0.002, 0.001, 0.5),
        ("fraction", "at least", 0.97, 0.99, 1 / 3),
        ("fraction", "at least", 0.97, 0.94, 2.0),
        ("nat", "at most", 0.002, 0.0, 1e-4),
        ("change", "at most", 0.05, -0.01, 1e-4),
        ("boolean", "at least", 1.0, 1.0, None),
        ("fraction", "at least", 1.0, 1.0, None),
        ("tok/s", "at least", 12.0, 30.0, None),
        ("nat", "at most", None, 0.1, None),
        ("nat", "at most", 0.0, 0.1, None),
    ],
)
def test_a_share_of_a_limit_is_below_one_where_a_check_passes(
    unit: str, direction: Any, limit: float | None, value: float, share: float | None
) -> None:
    check = Check(
        group="parity",
        name="x",
        label="x",
        value=value,
        limit=limit,
        direction=direction,
        unit=unit,
        obtained="measured",
        verdict=None,
    )
    assert charts.used(check, check.value) == (None if share is None else pytest.approx(share))


def test_without_what_draws_a_run_goes_on_and_says_so(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "vl_convert" else find(name))
    html_report.write_run(finished.report.model_copy(update={"folder": str(tmp_path)}))
    assert list(tmp_path.iterdir()) == []
    assert charts.missing() == (
        "no report.html and no pictures: vl-convert-python is not installed; pip install vl-convert-python"
    )


def test_a_run_that_was_not_validated_has_a_page_too(finished: Finished, tmp_path: Path) -> None:
    built = {"checks": (), "figures": (), "phones": (), "verdict": "not validated", "artifact": str(tmp_path / "gone")}
    targets = tuple(target.model_copy(update=built) for target in finished.report.targets)
    report: Report = finished.report.model_copy(update={"targets": targets, "folder": str(tmp_path)})
    html_report.write_run(report)
    page = Page((tmp_path / "report.html").read_text())
    words = next(page.all("main"))["words"]
    for line in ("No phone was judged.", "Nothing was compared.", "No memory run was made.", "None were obtained."):
        assert line in words
    assert "gone" in words, "why there is nothing about its tensors"


def test_nothing_that_draws_is_loaded_at_the_start() -> None:
    code = "import sys; from edgewright import api, cli; cli.parser(); print({'altair', 'vl_convert'} & {*sys.modules})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"
