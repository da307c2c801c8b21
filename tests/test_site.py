"""The documentation as a site: built strictly, every link leads somewhere, nothing is fetched."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tools import site

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    assert site.main(out) == 0
    return out / "html"


def test_notebooks_have_their_outputs(html: Path) -> None:
    page = (html / "notebooks/01_quickstart.html").read_text(encoding="utf-8")
    assert "<table" in page
    assert len(list((html / "notebooks/01_quickstart").glob("*.png"))) > 0


def test_the_reference_has_what_is_used_daily(html: Path) -> None:
    import workbench

    page = (html / "api/workbench.html").read_text(encoding="utf-8")
    rooms = {"agents", "icm", "uncertainty"}  # with pages of their names
    names = [f"workbench.{name}" for name in workbench.__all__ if name not in rooms]
    assert [name for name in names if f'id="{name}"' not in page] == []
    assert all((html / f"api/workbench.{room}.html").is_file() for room in rooms)


def test_pictures_follow_the_theme(tmp_path: Path) -> None:
    (tmp_path / "a_dark.png").touch()
    text = '<picture><source srcset="a_dark.png"><img alt="A" src="a.png"></picture> ![B](b.png)'
    both = "![A](a.png#only-light)\n![A](a_dark.png#only-dark) ![B](b.png)"
    assert site.both_themes(text, tmp_path) == both


def test_what_is_broken_is_found(tmp_path: Path) -> None:
    (tmp_path / "b.html").write_text('<p id="here"></p>')
    text = '<a href="b.html#here"></a><a href="b.html#there"></a><a href="c.html"></a>'
    more = '<img src="d.png"><script src="https://example.org/x.js"></script>'
    (tmp_path / "a.html").write_text(text + more)
    assert list(site.broken(tmp_path)) == [
        "a.html: loads https://example.org/x.js",
        "a.html: b.html#there: no such place on that page",
        "a.html: c.html leads nowhere",
        "a.html: d.png leads nowhere",
    ]


def test_a_page_that_nothing_leads_to_is_found(tmp_path: Path) -> None:
    for name in ("a.md", "b.md"):
        (tmp_path / name).touch()
    (found,) = site.missing(tmp_path, [{"Home": "a.md"}])
    assert found.startswith("b.md: not in the navigation")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_from_a_folder_without_a_network(html: Path, scheme: Any) -> None:
    """Pages fetch nothing, show no error, fit a small screen, and can be searched."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(
            viewport={"width": 820, "height": 1180}, offline=True, color_scheme=scheme
        )
        page, wrong = context.new_page(), []
        # A picture that still loads when the next page opens is aborted, and did not fail.
        page.on("requestfailed", lambda request: (
            None if request.failure == "net::ERR_ABORTED" else wrong.append(request.url)
        ))  # fmt: skip
        page.on("console", lambda note: wrong.append(note.text) if note.type == "error" else None)
        for name in ("index", "docs/benchmarks", "notebooks/01_quickstart", "api/workbench.stats"):
            page.goto((html / f"{name}.html").as_uri())
            page.wait_for_load_state()
            assert page.evaluate("document.documentElement.scrollWidth") <= 820, name
        page.set_viewport_size({"width": 1440, "height": 900})
        page.keyboard.press("/")
        page.wait_for_timeout(1000)
        page.keyboard.type("conformal_report", delay=60)
        page.locator("menu", has_text="workbench.uncertainty").first.wait_for()
        browser.close()
    assert wrong == []
