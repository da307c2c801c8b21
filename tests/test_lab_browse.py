"""`browse()` in JupyterLab in a real browser: ten thousand rows, two reports, a saved notebook.

With WORKBENCH_SCREENSHOTS set to a folder, the documentation's pictures are written there.
"""

from __future__ import annotations

import time

import pytest
from test_lab import Lab, lab, nbformat  # noqa: F401  # a fixture
from test_lab_cells import READ, READABLE, in_theme, output, pictures

MANY = """\
import pandas as pd
from workbench.types import Report, Usage

rows = pd.DataFrame({"id": [f"item-{n}" for n in range(10_000)]})
rows["question"] = [f"<b>What</b> is {n} + 1?\\n" + "Think. " * 50 for n in range(10_000)]
rows["answer"] = [str(n + 1) for n in range(10_000)]
rows["text"] = [str(n + 1 + (n % 4 == 1)) for n in range(10_000)]
rows["correct"] = rows["text"] == rows["answer"]
rows["error"] = [None if n % 100 else "the server answered 503" for n in range(10_000)]
report = Report((), rows, Usage(), {"task": "sums", "agent": "standard"})
report.browse()"""
REAL = """\
import workbench as wb

engine = wb.open_engine(engine="transformers", store=None, batch_size=16)
few = wb.evaluate("word_problems", engine, count=200, shots=4, max_tokens=96)
report = wb.evaluate("word_problems", engine, count=200, max_tokens=96)"""
BROWSE = "report.browse(page=10)"
COMPARE = "wb.compare(report, few).browse(page=8)"
QUICK = 10.0  # seconds; under 1 where nothing else runs


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_thousand_rows_are_filtered_searched_and_opened(lab: Lab) -> None:  # noqa: F811
    lab.write("cells.ipynb", [MANY, REAL, BROWSE, COMPARE])
    lab.open("cells.ipynb")
    lab.run(0)
    many(lab)
    for cell in (1, 2, 3):
        lab.run(cell)
    output(lab, 2).locator(".widget-toggle-button", has_text="wrong").click()
    output(lab, 2).locator(".wb-rows button").nth(2).click()
    output(lab, 3).locator(".wb-open").wait_for()
    readable(lab)
    pictures(lab, "", {"browse": 2, "browse_pair": 3})
    lab.saved("cells.ipynb")
    in_theme(lab, "JupyterLab Dark", at=2, shows=".wb-open")  # the kernel is still there
    output(lab, 3).locator(".wb-open").wait_for()
    readable(lab)
    pictures(lab, "_dark", {"browse": 2, "browse_pair": 3})
    without_a_kernel(lab)


def many(lab: Lab) -> None:  # noqa: F811
    """Ten thousand rows, with the pointer and with the keyboard."""
    area = output(lab, 0)
    details = area.locator(".wb-details")
    took = {}

    def timed(name: str, begin: float) -> None:
        took[name] = time.perf_counter() - begin

    area.locator(".wb-open").wait_for()
    assert area.locator(".wb-line").count() == 21  # of ten thousand, in the browser
    assert area.locator(".wb-saved").count() == 1
    assert not area.locator(".wb-saved").is_visible()  # beside the live one
    begin = time.perf_counter()
    area.locator(".widget-toggle-button", has_text="wrong 2,500").click()
    area.get_by_text("rows 1–20 of 2,500").wait_for()
    timed("filter", begin)
    begin = time.perf_counter()
    area.locator(".wb-rows button").nth(3).click()
    details.get_by_text("<b>What</b> is 13 + 1?").wait_for()
    timed("open", begin)
    assert details.locator(".wb-text pre").first.inner_text().count("Think.") == 50
    begin = time.perf_counter()
    area.locator("input").press_sequentially("IS 4321  +")
    area.get_by_text("rows 1–1 of 1", exact=True).wait_for()
    timed("search", begin)
    details.get_by_text("is 4321 + 1?").wait_for()
    area.locator("input").fill("")
    area.get_by_text("rows 1–20 of 2,500").wait_for()
    area.locator(".wb-rows button").first.focus()  # the keyboard alone
    lab.page.keyboard.press("Tab")
    lab.page.keyboard.press("Enter")
    details.get_by_text("is 5 + 1?").wait_for()
    print(", ".join(f"{name} {seconds:.2f} s" for name, seconds in took.items()))
    assert max(took.values()) < QUICK
    assert details.locator("b", has_text="What").count() == 0  # escaped


def readable(lab: Lab) -> None:  # noqa: F811
    """Text stands out from what is behind it."""
    found = []
    for cell in (2, 3):
        parts = output(lab, cell).locator(".wb-line, .wb-details, .wb-bar .widget-html")
        found += parts.evaluate_all(READ)
    assert len(found) > 100
    assert [one for one in found if one["contrast"] < READABLE] == []
    assert [one for one in found if not 12 <= one["size"] <= 14] == []


def without_a_kernel(lab: Lab) -> None:  # noqa: F811
    """The saved notebook has the first rows, and no trace of the dead widget."""
    saved = nbformat.read(lab.folder / "cells.ipynb", as_version=4)
    assert "the first 10 of 10,000" in nbformat.writes(saved)
    assert "item-4321" not in nbformat.writes(saved)
    del saved.metadata["kernelspec"]
    nbformat.write(saved, lab.folder / "read.ipynb")
    lab.page.goto(f"{lab.url}/doc/tree/read.ipynb")
    lab.page.locator(".jp-Dialog select").select_option(label="No Kernel")
    lab.page.locator(".jp-Dialog .jp-mod-accept").click()
    output(lab, 0).locator(".wb-saved").get_by_text("the first 10 of 10,000").wait_for()
    assert output(lab, 0).get_by_text("item-37", exact=True).is_visible()
    assert not output(lab, 0).get_by_text("Error displaying widget").is_visible()
