"""The page in the system's Chromium: drawn, quiet, within its width, and without a violation that axe-core finds.

Nightly, since a machine for the default suite may have no Chromium; with `-m nightly` its lack is a failure.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from edgewright import html_report
from tests.edgewright.conftest import Finished
from tests.edgewright.html_pages import HOSTILE, many

pytestmark = pytest.mark.nightly

WIDTHS = (390, 1024, 1920)


@dataclass
class Seen:
    """An open page, what it said on its console, and what it asked for."""

    page: Any
    console: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert found, "no Chromium on this machine, by which the page is looked at: apt-get install chromium"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module", params=["real", "many", "hostile"])
def file(request: pytest.FixtureRequest, finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "real":
        return finished.folder / "report.html"
    folder = tmp_path_factory.mktemp(request.param)
    html_report.write_run(many(finished.report, folder, said=HOSTILE if request.param == "hostile" else ""))
    return folder / "report.html"


def seen(browser: Any, file: Path, width: int, **wanted: Any) -> Seen:
    """The page, drawn."""
    found = Seen(browser.new_page(viewport={"width": width, "height": 900}, **wanted))
    found.page.on("console", lambda message: found.console.append(message.text))
    found.page.on("pageerror", lambda error: found.console.append(str(error)))
    found.page.on("dialog", lambda dialog: found.console.append(f"dialog {dialog.message}"))
    found.page.on("request", lambda request: found.asked.append(request.url))
    found.page.goto(file.as_uri())
    found.page.wait_for_function(
        "document.querySelectorAll('.chart svg').length === document.querySelectorAll('.chart').length"
    )
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_page_is_drawn_quiet_and_open_to_everyone(browser: Any, file: Path, width: int, scheme: str) -> None:
    found = seen(browser, file, width, color_scheme=scheme)
    page = found.page
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == width, "nothing but a table scrolls sideways"
    wide = page.evaluate(
        "[...document.querySelectorAll('.chart svg')].filter(one => one.clientWidth > innerWidth).length"
    )
    empty = page.evaluate(
        "[...document.querySelectorAll('.chart svg')].filter(one => !one.querySelector('text')).length"
    )
    assert (wide, empty) == (0, 0)
    page.add_script_tag(content=files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    violations = page.evaluate("axe.run().then(found => found.violations)")
    assert [(one["id"], one["nodes"][0]["html"]) for one in violations] == []
    assert [url for url in found.asked if not url.startswith("data:")] == [file.as_uri()]
    assert found.console == []
    page.close()


def test_a_cell_opens_by_keyboard_and_all_of_it_is_printed(browser: Any, file: Path) -> None:
    page = seen(browser, file, 1024).page
    page.focus("td summary")
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelector('td details').open")
    assert page.evaluate("document.querySelectorAll('details:not([open])').length") > 0
    assert len(page.pdf()) > 10_000
    assert page.evaluate("document.querySelectorAll('details:not([open])').length") == 0
    page.close()


def test_without_scripts_the_tables_are_there_and_the_pictures_gone(browser: Any, file: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(file.as_uri())
    assert page.locator(".chart").first.is_hidden()
    assert page.locator("noscript p").is_visible() and page.locator("caption").first.is_visible()
    context.close()
