"""The rows of reports to browse: order, filters, search, details; in a notebook and in a page."""

from __future__ import annotations

import base64
import gzip
import json
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell

from workbench.browser import Browser, details
from workbench.browsing import Rows
from workbench.comparison import compare
from workbench.errors import InputError
from workbench.report import render
from workbench.types import Report, Usage
from workbench.verdicts import Evaluation, accuracy

EVIL = "</script></pre><script>alert(1)</script><img src=x onerror=alert(2)>&"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def evaluated(count: int = 60, **columns: Any) -> Evaluation:
    """An evaluation whose rows are right, wrong, unread, failed, in turn; two calls each."""
    kinds = ["right", "wrong", "unread", "failed"]
    rows = pd.DataFrame(
        {
            "id": f"item-{i}", "run": 0, "question": f"What is {i} + 1?", "answer": str(i + 1),
            "text": "" if i % 4 == 3 else f"It is {i + i % 4}.\n#### {i + 1 + i % 4}",
            "extracted": None if i % 4 > 1 else str(i + 1 + i % 4), "correct": i % 4 == 0,
            "parsed": i % 4 < 2, "error": "503, key=sk-abcdefgh12" if i % 4 == 3 else None,
            "kind": kinds[i % 4],
        }
        for i in range(count)
    )  # fmt: skip
    chats = [
        json.dumps([
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": one}, {"type": "image_url"}]},
        ])
        for one in rows["question"]
    ]  # fmt: skip
    trace = pd.concat([
        pd.DataFrame({
            "id": rows["id"], "run": 0, "round": number, "kind": "ask", "prompt": prompt,
            "text": f"draft {number} of " + rows["id"], "finish_reason": "stop", "error": None,
        })
        for number, prompt in ((1, chats), (2, "Q: " + rows["question"]))
    ])  # fmt: skip
    rows = rows.assign(**columns)
    about = {"task": "sums", "agent": "standard", "engine": {"model": "tiny"}}
    return Evaluation((accuracy(rows),), rows, Usage(), about, trace)


def kinds(listing: Rows, rows: list[int]) -> list[str]:
    return [str(listing.states[row]) for row in rows]


def shown(browser: Browser, place: int = 0) -> str:
    """The details of a row, as text."""
    return "\n".join(
        f"{title}\n" + "\n".join(f"{label}: {text}" for label, text in texts)
        for _, title, texts in browser.open(place)
    )


def test_wrong_rows_are_first_and_filters_count() -> None:
    report = evaluated()
    listing = Rows(report)
    order = kinds(listing, listing.find("all"))
    assert order == [name for name in ("wrong", "unread", "failed", "right") for _ in range(15)]
    assert listing.find("wrong")[:3] == [1, 5, 9]  # else as in the report
    assert {*report.wrong().index} == {*listing.find("wrong")}
    found = {name: listing.find(name) for name in listing.filters}
    assert {name: len(rows) for name, rows in found.items()} == {
        "all": 60, "wrong": 30, "unread": 15, "failed": 15, "right": 15,
    }  # fmt: skip
    assert all(listing.count(name) == len(rows) for name, rows in found.items())
    assert [*report.rows["kind"].iloc[found["unread"]].unique()] == ["unread"]
    assert [*report.rows["kind"].iloc[found["failed"]].unique()] == ["failed"]


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        ("WHAT is 7 +", [7]),  # a "+" is a plus
        ("is 7 + 1?", [7]),
        ("Item-5", [5, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59]),
        ("DRAFT 2 of item-41", [41]),  # a call's text
        ("it is  40.\n####", [38, 40]),  # white space is white space
        (".*", []),
        ("(", []),
        ("[a-z]", []),
        ("\\", []),
        ("503", [*range(3, 60, 4)]),
        ("  ", [*range(60)]),
    ],
)
def test_a_search_is_literal_in_all_texts(words: str, rows: list[int]) -> None:
    assert sorted(Rows(evaluated()).find("all", words)) == rows


def test_the_details_have_the_prompt_the_answer_the_grade_and_all_calls() -> None:
    browser = evaluated().browse()
    text = shown(browser)
    for said in (
        "item-1\nverdict: wrong\nread as: 3\ngold: 2", "system: Be brief.",
        "user: What is 1 + 1?\n[image_url]", "answer\n: It is 2.\n#### 3", "draft 1 of item-1",
        "round 2, kind ask, finish_reason stop: Q: What is 1 + 1?", "kind: wrong",
    ):  # fmt: skip
        assert said in text
    browser.find("failed")
    assert "error\n: 503, key=…" in shown(browser)
    assert "read as" not in shown(browser)
    browser.find("unread")
    assert "It is 4." in shown(browser)
    cells = browser.listing.cells(1)
    assert cells == ["item-1", "What is 1 + 1? [image_url]", "3", "2"]


def test_pages_and_rows_are_opened_in_turn() -> None:
    browser = evaluated().browse(page=20)
    widget = browser.widget
    filters, search = widget.children[1].children
    page, where, further, before, which, after = widget.children[3].children
    assert [name for name, _ in filters.options][:2] == ["all 60", "wrong 30"]
    further.click()
    assert where.value == "rows 21–40 of 60"
    assert which.value == "21 of 60"
    after.click()
    assert (browser.place, browser.start) == (21, 20)
    further.click()
    further.click()
    assert where.value == "rows 41–60 of 60"
    assert which.value == "60 of 60"  # and no further
    page.click()
    before.click()
    assert where.value == "rows 1–20 of 60"
    filters.value = "wrong"
    assert where.value == "rows 1–20 of 30"
    assert "wb-unread" in widget.children[2].children[0].value
    search.value = "ITEM-5"
    assert where.value == "rows 1–6 of 6"
    buttons = widget.children[2].children[1].children
    assert [one.disabled for one in buttons] == [False] * 6 + [True] * 14
    buttons[2].click()
    assert buttons[2].description == "item-57"
    assert "What is 57 + 1?" in widget.children[4].value
    search.value = "nothing like that"
    assert where.value == "no rows"
    assert which.value == ""
    assert browser.open(5) == []


class Tags(HTMLParser):
    """What a browser finds in HTML."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)
        assert {name for name, _ in attrs} <= {"class", "style"}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_what_comes_from_data_stays_text(tmp_path: Path) -> None:
    report = evaluated(question=EVIL, text=EVIL, extracted=EVIL, error=EVIL)
    report.rows[EVIL] = EVIL
    report.trace["prompt"] = EVIL
    report.trace["text"] = EVIL
    browser = report.browse()
    listed, below = browser.widget.children[2].children[0], browser.widget.children[4]
    for html in (listed.value, below.value, browser._repr_html_().partition("</style>")[2]):
        assert not Tags(html).seen & {"script", "img", "style"}
        assert EVIL[:40] in Tags(html).text
    assert Tags(details(browser.open(0))).text.count(EVIL) >= 3
    text = render(report.save(tmp_path / "evil")).read_text()
    assert "alert(1)" not in text.replace("&lt;script&gt;alert(1)", "")
    assert EVIL in packed(text)[1][1]


def packed(page: str) -> list[Any]:
    """The rows in a page."""
    data = page.partition('"application/gzip">')[2].partition("</script>")[0]
    return [json.loads(line) for line in gzip.decompress(base64.b64decode(data)).splitlines()]


def report_of(rows: dict[str, Any] | pd.DataFrame) -> Report:
    return Report((), pd.DataFrame(rows), Usage(), {})


def test_reports_of_every_kind_can_be_browsed() -> None:
    scored = report_of({
        "id": ["a", "b", "c"], "task": "qa", "answer": ["A", "B", "A"], "A": [-0.1, -0.2, np.nan],
        "B": [-3.0, -np.inf, np.nan], "error": [None, None, "lost"],
    })  # fmt: skip
    listing = Rows(scored)
    assert [*listing.states] == ["right", "wrong", "failed"]
    assert listing.cells(0) == ["a", "A", "A"]
    judged = report_of({
        "id": ["1", "2", "3", "4"], "problem": "p", "candidate": "c",
        "gold": pd.array([True, False, None, True], "boolean"),
        "verdict": pd.array([True, True, True, None], "boolean"),
        "error": None, "unparsed": [None, None, None, "a tie"],
    })  # fmt: skip
    assert [*Rows(judged).states] == ["right", "wrong", "unknown", "unread"]
    assert Rows(judged).columns == ["id", "prompt", "answer", "gold"]
    sampled = report_of({
        "id": ["x"], "answer": ["7"], "majority_text": ["#### 7"], "correct": [True],
        "entropy": [0.25], "clusters": pd.array([None], "Int64"), "error": [None],
    })  # fmt: skip
    assert Rows(sampled).cells(0) == ["x", "#### 7", "7"]
    assert "entropy: 0.25" in shown(sampled.browse())
    speeds = report_of({"runner": ["vllm", "other"], "speed": [2.5, None], "sizes": [[1, 2], [3]]})
    listing = Rows(speeds)
    assert [*listing.filters] == ["all", "failed"]
    assert listing.cells(1) == ["1", "other", "", "[3]"]
    assert listing.find("all", "vllm") == [0]
    for empty in (report_of({}), report_of({"id": [], "correct": [], "error": []})):
        browser = empty.browse()
        assert browser.find("all", "x") == []
        assert browser.open(0) == []
        assert browser.widget.children[3].children[1].value == "no rows"
        assert "0 rows" in browser._repr_html_()


def test_repeated_ids_and_runs_are_separate_rows() -> None:
    report = report_of({
        "id": ["a", "a", "a"], "run": [0, 0, 1], "answer": "1", "text": ["x", "y", "z"],
        "correct": [False, False, True], "error": None,
    })  # fmt: skip
    browser = report.browse()
    assert [browser.listing.cells(row)[:2] for row in browser.found] == [
        ["a", "x"], ["a", "y"], ["a (run 1)", "z"],
    ]  # fmt: skip
    assert "answer\n: y" in shown(browser, 1)


def test_bad_input_is_refused_with_the_remedy() -> None:
    with pytest.raises(InputError, match="page"):
        evaluated().browse(page=0)
    with pytest.raises(InputError, match=r"wrnog.*did you mean 'wrong'"):
        evaluated().browse().find("wrnog")


def test_two_reports_are_side_by_side_where_they_differ() -> None:
    first, second = evaluated(), evaluated()
    rows = second.rows
    rows.loc[[0, 1], "correct"] = [False, True]
    rows.loc[5, "extracted"] = "99"
    about = {**second.provenance, "agent": "vote"}
    other = Evaluation(second.summary, rows, Usage(), about, second.trace)
    difference = compare(first, other)
    browser = difference.browse()
    assert browser.listing.columns == ["id", "prompt", "gold", "agent=standard", "agent=vote"]
    assert browser.found == [0, 1, 5]  # only the first is right, only the second, other answers
    assert browser.listing.cells(5) == ["item-5", "What is 5 + 1? [image_url]", "6", "7", "99"]
    assert len(browser.find("all")) == 60
    assert browser.find("only the second is right") == [1]
    text = shown(browser)
    assert text.count("prompt\nsystem: Be brief.") == 1  # the prompt once, as it is the same
    assert "agent=standard\n: It is 2." in text
    assert "agent=vote\n: It is 2." in text
    with pytest.raises(InputError, match="browse what `compare` returns"):
        replace(difference).browse()


def test_a_saved_notebook_and_a_terminal_have_the_first_rows(monkeypatch: Any) -> None:
    monkeypatch.delenv("WORKBENCH_PROGRESS", raising=False)
    browser = evaluated().browse()
    formatter = InteractiveShell.instance().display_formatter
    assert formatter is not None
    data, _ = formatter.format(browser)  # type: ignore[no-untyped-call]
    assert set(data) == {"text/plain", "text/html"}
    text = "sums · standard · tiny: 60 rows, 30 wrong, 15 unread, 15 failed, 15 right"
    assert data["text/plain"] == text
    assert text in data["text/html"]
    assert "the first 10 of 60" in data["text/html"]
    assert "item-37" in data["text/html"]
    assert "item-41" not in data["text/html"]


def test_a_page_has_all_rows_in_the_listings_order(tmp_path: Path) -> None:
    report = evaluated()
    text = render(report.save(tmp_path / "sums")).read_text()
    assert render(tmp_path / "sums").read_text() == text
    about, *rows = packed(text)
    listing = Rows(report)
    assert about["columns"] == listing.columns
    assert [row[0] for row in rows] == kinds(listing, listing.find("all"))
    assert [row[1] for row in rows] == [listing.cells(row) for row in listing.find("all")]
    assert rows[0][2] == json.loads(json.dumps(listing.parts(1)))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_page_of_ten_thousand_rows_in_a_browser(tmp_path: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    report = evaluated(10_000)
    report.rows.loc[4001, "text"] = EVIL
    path = render(report.save(tmp_path / "many"))
    assert path.stat().st_size < 5_000_000
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        faults: list[object] = []
        asked: list[str] = []
        page.on("pageerror", lambda one: faults.append(str(one)))
        page.on("console", lambda message: faults.append(message.text))
        page.on("dialog", lambda one: faults.append(one.message))
        page.on("request", lambda request: asked.append(request.url))
        page.set_default_timeout(20_000)
        page.goto(path.as_uri())
        place = page.locator(".wb-page")
        seconds = page.evaluate("() => performance.now() / 1000")
        place.get_by_role("button", name="wrong 5,000").click()
        expect(place).to_contain_text("rows 1–20 of 5,000")
        assert place.locator("button.wb-line").count() == 20
        place.get_by_role("searchbox").fill("WHAT is 4001 + 1?")
        expect(place).to_contain_text("rows 1–1 of 1")
        expect(place.locator(".wb-details")).to_contain_text(EVIL)
        expect(place.locator(".wb-details")).to_contain_text("Be brief.")
        place.get_by_role("searchbox").fill("")
        place.locator("button.wb-line").nth(2).click()
        expect(place.locator(".wb-details")).to_contain_text("What is 9 + 1?")
        page.keyboard.press("ArrowDown")
        expect(place.locator(".wb-details")).to_contain_text("What is 13 + 1?")
        expect(place.locator(".wb-open")).to_be_focused()
        took = page.evaluate(TIMED)
        print(f"loaded in {seconds:.1f} s, searches in {took:.0f} ms")
        assert (faults, asked) == ([], [path.as_uri()])
        assert took < 2000
        browser.close()


TIMED = """() => {
  const search = document.querySelector(".wb-page input"), start = performance.now();
  for (const words of ["item-77", "7", "nothing"]) {
    search.value = words;
    search.dispatchEvent(new Event("input"));
  }
  return performance.now() - start;
}"""
