from __future__ import annotations

import json
import math
import re
import resource
import stat
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from workbench.cli import app
from workbench.errors import InputError
from workbench.evaluation import Evaluation
from workbench.plots import new_figure, plot_accuracy
from workbench.report import render
from workbench.report.page import clean
from workbench.types import Metric, Report, Usage

# Any: nbformat is typed in part.
nbformat: Any = import_module("nbformat")
v4: Any = import_module("nbformat.v4")

EVIL = (
    "<script>alert(1)</script> <img src=https://evil.example/x.png> **bold** [a](https://b) | c |"
)
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)


class Page(HTMLParser):
    """What a browser would find in a page: its tags, and its text with the tables' cells apart."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while tag in self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if data.strip() and not {"style", "script"} & {*self.open}:
            self.texts.append(data.strip())

    def found(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def text(self) -> str:
        return "\n".join(self.texts)

    @property
    def images(self) -> list[str]:
        return [str(one["src"]) for one in self.found("img")]

    def check(self) -> Page:
        """The page stands alone: it loads nothing, and runs the script for the rows at most."""
        (policy,) = (m for m in self.found("meta") if m.get("http-equiv"))
        assert self.found("script") in ([], [{"type": "application/gzip", "id": "listing"}, {}])
        assert ("script-src" in str(policy["content"])) == bool(self.found("script"))
        assert not self.found("link")
        assert not self.found("iframe")
        assert all(source.startswith("data:image/") for source in self.images)
        for tag, attrs in self.tags:
            assert not any(name.startswith("on") for name in attrs), tag
        assert "default-src 'none'" in str(policy["content"])
        return self


def report(**changes: Any) -> Evaluation:
    """An evaluation of 30 items, of which 4 failed for two reasons."""
    errors = {3: "the server answered 503", 9: "the server answered 503", 20: EVIL, 21: EVIL}
    rows = pd.DataFrame([
        {
            "id": f"item-{i}", "run": 0, "answer": str(i),
            "text": EVIL if i == 5 else f"It is {i}.", "correct": i % 3 > 0,
            "parsed": True, "error": errors.get(i),
        }
        for i in range(30)
    ])  # fmt: skip
    trace = rows[["id", "run", "text"]].assign(prompt="Q: " + rows["id"], kind="ask")
    facts: dict[str, Any] = {
        "summary": (Metric("accuracy", 0.6538, 0.4621, 0.8063, 26, 4, 1),),
        "rows": rows,
        "usage": Usage(requests=30, failed=4, prompt_tokens=900, cached_tokens=450, seconds=1.5),
        "provenance": {
            "task": "sums", "engine": {"model": "tiny", "versions": {"vllm": "0.32.0"}},
            "commit": None,
        },
        "trace": trace,
    }  # fmt: skip
    return Evaluation(**facts | changes)


def saved(folder: Path, **changes: Any) -> Path:
    figure, (ax,) = new_figure()
    one = report(**changes)
    plot_accuracy(ax, one.summary)
    return one.save(folder, figure)


def notebook(*cells: Any, **metadata: Any) -> Any:
    """An executed notebook with these cells."""
    return v4.new_notebook(cells=[*cells], metadata=metadata)


def code(*outputs: Any, source: str = "secret_source()", count: int | None = 1) -> Any:
    return v4.new_code_cell(source, outputs=[*outputs], execution_count=count)


def shows(**data: str) -> Any:
    kinds = {"html": "text/html", "png": "image/png", "plain": "text/plain", "svg": "image/svg+xml",
             "js": "application/javascript", "markdown": "text/markdown"}  # fmt: skip
    return v4.new_output("display_data", data={kinds[kind]: text for kind, text in data.items()})


def said(text: str, name: str = "stdout") -> Any:
    return v4.new_output("stream", name=name, text=text)


def kept(path: Path, book: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(nbformat.writes(book), encoding="utf-8")
    return path


def run_folder(folder: Path) -> Path:
    frame = pd.DataFrame({"n": [1, 2], "text": ["a", EVIL]})
    kept(folder / "01_first.ipynb", notebook(
        v4.new_markdown_cell("# First\n\nWith *words* and $a < b$."),
        code(said("before\n"), shows(png=PIXEL, plain="<Figure>"), said("after\n")),
        code(shows(html=frame.to_html(), plain="a frame")),
        papermill={"parameters": {"count": 7}},
    ))  # fmt: skip
    error = v4.new_output(
        "error", ename="ZeroDivisionError", evalue="division by zero",
        traceback=["\x1b[0;31mZeroDivisionError\x1b[0m: division by zero", f"in {EVIL}"],
    )  # fmt: skip
    kept(folder / "02_second.ipynb", notebook(
        v4.new_markdown_cell("# Second"), code(said("fine")), code(error, count=2), code(count=None)
    ))  # fmt: skip
    (folder / "figures").mkdir()
    figure, (ax,) = new_figure()
    ax.plot([1, 2])
    figure.savefig(folder / "figures" / "curve.png")
    (folder / "results").mkdir()
    frame.to_csv(folder / "results" / "01_first.csv", index=False)
    return folder


def sweep_folder(folder: Path, states: tuple[str, ...] = (), **changes: Any) -> Path:
    """A sweep of 3 rates, 2 models and 2 seeds; `states` are those of the first points."""
    rng = np.random.default_rng(0)
    rows = []
    grid = [
        (lr, m, seed) for lr in (1e-4, 1e-3, 1e-2) for m in ("tiny", "small") for seed in (0, 1)
    ]
    for i, (lr, model, seed) in enumerate(grid):
        state = states[i] if i < len(states) else "done"
        value = rng.random() if state == "done" else math.nan
        rows.append({
            "key": f"{i:04x}", "state": state,
            "detail": "" if state == "done" else f"why {i} {EVIL}", "lr": lr,
            "model": model, "seed": seed, "accuracy": value,
            "accuracy.low": value - 0.1, "accuracy.high": value + 0.1,
            "seconds": 5 + 10 * rng.random(), "machine": "node-1" if i % 2 else "node-2",
        })  # fmt: skip
    folder.mkdir(parents=True)
    pd.DataFrame(rows).to_parquet(folder / "results.parquet")
    about = {
        "name": f"rates {EVIL}", "notebook": "notebooks/03_accuracy.ipynb",
        "parameters": {"varied": ["lr", "model", "seed"], "fixed": {"count": 200}},
        "metrics": ["accuracy"], "notes": [f"a note {EVIL}"],
    }  # fmt: skip
    (folder / "sweep.json").write_text(json.dumps(about | changes))
    return folder


# Saved reports


def test_a_report_shows_numbers_figure_failures_rows_usage_and_provenance(tmp_path: Path) -> None:
    page = Page(render(saved(tmp_path / "sums"))).check()
    start = page.texts.index("metric")
    assert page.texts[start + 7 : start + 14] == [
        "accuracy", "0.6538", "0.4621", "0.8063", "26", "4", "1",
    ]  # fmt: skip
    assert len(page.images) == 1
    assert "4 of 30 rows have no answer." in page.text
    start = page.texts.index("reason")
    assert page.texts[start + 2 : start + 5] == ["2", "the server answered 503", "item-3, item-9"]
    assert "the first 20 of 30 rows" in page.text
    assert "item-19" in page.texts
    assert "item-29" not in page.texts
    assert "Q: item-0" in page.texts
    for name, value in (("prefix-cache hit rate", "50.0%"), ("engine.versions.vllm", "0.32.0")):
        assert page.texts[page.texts.index(name) + 1] == value


def test_what_comes_from_data_stays_text(tmp_path: Path) -> None:
    page = Page(render(saved(tmp_path / "sums"))).check()
    assert page.texts.count(EVIL) == 2  # an answer and a reason; the trace is shown no further
    assert not page.found("a")
    assert not page.found("strong")


def test_a_report_without_failures_figure_or_trace_is_a_page_too(tmp_path: Path) -> None:
    rows = pd.DataFrame({"runner": ["vllm"], "sizes": [[1, 2]], "speed": [math.nan]})
    plain = Report((), rows, Usage(cached_tokens=None), {})
    page = Page(render(plain.save(tmp_path / "plain"))).check()
    assert "Failures" not in page.text
    assert not page.images
    assert page.texts[page.texts.index("prefix-cache hit rate") + 1] == "not known"


def test_long_values_are_shortened(tmp_path: Path) -> None:
    rows = report().rows.assign(text="x" * 5000)
    page = render(saved(tmp_path / "sums", rows=rows)).read_text()
    assert "x" * 300 + " …" in page
    assert "x" * 301 not in page


# Notebooks


def test_a_run_shows_text_and_outputs_in_order_without_the_code(tmp_path: Path) -> None:
    page = Page(render(run_folder(tmp_path / "run"))).check()
    shown = page.texts[page.texts.index("First") :]
    places = [shown.index(x) for x in ("before", "after", "02_second.ipynb", "Second", "fine")]
    assert places == sorted(places)
    assert "secret_source" not in page.text
    assert page.images[0] == f"data:image/png;base64,{PIXEL}"
    assert len(page.images) == 2
    assert page.texts[page.texts.index("figures/curve.png") - 1] == "Saved figures"
    assert EVIL in page.texts[page.texts.index("results/01_first.csv") :]
    assert page.texts[page.texts.index("count") + 1] == "7"
    assert not re.search(r"(In|Out)?\s?\[\d*\]:", page.text)


def test_a_run_says_how_far_each_notebook_came(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    kept(folder / "03_third.ipynb", notebook(code(), code(count=None)))
    texts = Page(render(folder)).texts
    start = texts.index("01_first.ipynb")
    assert texts[start : start + 11] == [
        "01_first.ipynb", "2", "2",
        "02_second.ipynb", "1", "3", "cell 2: ZeroDivisionError: division by zero",
        "03_third.ipynb", "1", "2", "it did not run to its end",
    ]  # fmt: skip


def test_one_notebook_has_its_page_beside_it(tmp_path: Path) -> None:
    path = kept(tmp_path / "mine.ipynb", notebook(v4.new_markdown_cell("# Mine"), code(said("x"))))
    assert render(path) == tmp_path / "mine.html"
    assert Page(tmp_path / "mine.html").check().texts[-2:] == ["Mine", "x"]


def test_what_a_notebook_would_run_or_load_is_left_out(tmp_path: Path) -> None:
    evil = f"<b>here</b><script src='https://evil.example/x.js'>run()</script>{EVIL}"
    path = kept(tmp_path / "evil.ipynb", notebook(
        v4.new_markdown_cell(f"![x](https://evil.example/x.png) <b onclick=x>y</b>\n\n{EVIL}"),
        code(shows(js="run()"), shows(html=evil), shows(markdown=EVIL)),
        code(shows(html="<link rel=stylesheet href=https://evil.example><svg onload=run()></svg>")),
        code(shows(svg="<svg xmlns='http://www.w3.org/2000/svg'><script>run()</script></svg>")),
        code(shows(html="<a href='java\tscript:run()'>go</a><a href='https://fine.example'>on</a>")),
        widgets={"application/vnd.jupyter.widget-state+json": {"state": {}}},
    ))  # fmt: skip
    page = Page(render(path)).check()
    assert "run()" not in path.with_suffix(".html").read_text()
    assert [one.get("href") for one in page.found("a") if one.get("class") is None][-2:] == [
        None, "https://fine.example",
    ]  # fmt: skip
    assert "a script is left out: this page runs none" in page.text
    assert "(an image that is not in this file)" in page.text


def test_pictures_of_a_notebook_are_in_the_page(tmp_path: Path) -> None:
    cell = v4.new_markdown_cell("![one](attachment:one.png) ![two](two.png) ![no](../two.png)")
    cell["attachments"] = {"one.png": {"image/png": PIXEL}}
    path = kept(tmp_path / "here" / "pictures.ipynb", notebook(cell))
    (tmp_path / "here" / "two.png").write_bytes(b"a picture")
    (tmp_path / "two.png").write_bytes(b"not of this folder")
    page = Page(render(path)).check()
    assert page.images == [f"data:image/png;base64,{PIXEL}", "data:image/png;base64,YSBwaWN0dXJl"]


def test_large_outputs_are_cut_and_it_is_told(tmp_path: Path) -> None:
    large = "a line of output\n" * 100_000
    cells = [
        code(said(large)), code(shows(png="A" * 2_000_000, plain="<Figure>")),
        code(shows(html=f"<p>{large}</p>", plain=large)), v4.new_markdown_cell(large),
    ]  # fmt: skip
    page = Page(render(kept(tmp_path / "large.ipynb", notebook(*cells)))).check()
    assert (tmp_path / "large.html").stat().st_size < 100_000
    assert page.text.count("cut: the first 10,000 of 1,700,000 characters") == 3
    assert "image/png of 2,000,000 characters is left out of this page" in page.text
    assert "text/html of 1,700,007 characters is left out" in page.text
    assert "<Figure>" in page.texts


def test_many_large_outputs_end_the_page_in_time(tmp_path: Path) -> None:
    cells = [code(said("x" * 990_000)) for _ in range(40)]
    render(kept(tmp_path / "many.ipynb", notebook(code(said("the first")), *cells)))
    page = Page(tmp_path / "many.html").check()
    assert (tmp_path / "many.html").stat().st_size < 31_000_000
    assert page.texts[0] != page.texts[1] == "the first"
    assert page.texts[-1] == "The rest is left out: the page has 30,000,000 characters."


def test_progress_bars_are_as_a_terminal_leaves_them(tmp_path: Path) -> None:
    text = "".join(f"\r{n} of 3" for n in (1, 2, 3)) + "\r\ndone\n"
    page = Page(render(kept(tmp_path / "bar.ipynb", notebook(code(said(text, "stderr"))))))
    assert page.texts[-1] == "3 of 3\ndone"


def test_html_is_cleaned_to_text_and_tables() -> None:
    for dirty, expected in (
        ("<b>un", "<b>un</b>"),
        ("<foo>text</foo>", "text"),
        ("<!-- <b> --><![CDATA[<script>x</script>]]>y", "y"),
        ("<table class='dataframe'><tr style='x'><td colspan=2 onclick=x>1</td></tr></table>",
         '<table class="dataframe"><tr><td colspan="2">1</td></tr></table>'),
        ("&lt;script&gt;", "&lt;script&gt;"),
        ("<style>*{}</style><iframe src='http://x'></iframe>a", "a"),
        ("<img src='DATA:text/html,x' alt=y>", "(an image that is not in this file)"),
    ):  # fmt: skip
        assert clean(dirty) == expected


# Sweeps


def test_a_sweep_shows_states_figures_and_failed_points_first(tmp_path: Path) -> None:
    folder = sweep_folder(tmp_path / "rates", ("done", "failed", "timeout", "failed"))
    page = Page(render(folder)).check()
    start = page.texts.index("state")
    assert page.texts[start + 2 : start + 8] == ["done", "9", "failed", "2", "timeout", "1"]
    assert len(page.images) == 2  # lines beside a heat map, and a front
    table = page.texts[page.texts.index("Points") :]
    states = [one for one in table if one in {"done", "failed", "timeout"}]
    assert states == ["failed", "timeout", "failed", *["done"] * 9]
    assert f"why 1 {EVIL}" in table
    assert f"a note {EVIL}" in page.texts
    assert page.texts[page.texts.index("machine") + 1] == "node-2 (6 points)\nnode-1 (6 points)"
    assert page.texts[page.texts.index("count") + 1] == "200"
    assert "averaged over seed" in page.texts
    assert not page.found("strong")


def test_a_sweep_without_a_finished_point_shows_why(tmp_path: Path) -> None:
    page = Page(render(sweep_folder(tmp_path / "rates", ("killed",) * 12))).check()
    assert not page.images
    assert "No finished point has a number." in page.texts
    assert page.texts[page.texts.index("killed") + 1] == "12"
    assert f"why 11 {EVIL}" in page.texts


def test_a_sweep_that_has_just_begun_has_no_metrics(tmp_path: Path) -> None:
    folder = sweep_folder(tmp_path / "rates", ("waiting",) * 12, metrics=[], notes=[])
    page = Page(render(folder)).check()
    assert "No point has a metric yet, so there is nothing to draw." in page.texts


@pytest.mark.parametrize(
    ("varied", "images"), [([], 1), (["seed"], 2), (["model"], 2), (["lr", "model"], 2)]
)
def test_figures_follow_what_varies(tmp_path: Path, varied: list[str], images: int) -> None:
    parameters = {"varied": varied, "fixed": {}}
    page = Page(render(sweep_folder(tmp_path / "rates", parameters=parameters)))
    assert len(page.images) == images


def test_a_sweep_of_500_points_shows_the_first(tmp_path: Path) -> None:
    folder = sweep_folder(tmp_path / "rates")
    points = pd.read_parquet(folder / "results.parquet")
    pd.concat([points] * 42, ignore_index=True).to_parquet(folder / "results.parquet")
    assert "the first 200 of 504 points" in Page(render(folder)).check().texts


# All of them


MAKERS = {
    "report": saved,
    "run": run_folder,
    "sweep": sweep_folder,
}


@pytest.mark.parametrize("kind", MAKERS)
def test_the_same_folder_gives_the_same_page(tmp_path: Path, kind: str) -> None:
    folder = MAKERS[kind](tmp_path / "here")
    first = render(folder).read_bytes()
    assert render(folder) == folder / "report.html"  # though a page lies there now
    assert (folder / "report.html").read_bytes() == first
    (tmp_path / "elsewhere").mkdir()
    moved = folder.rename(tmp_path / "elsewhere" / "here")
    out = render(moved, tmp_path / "out.html")
    assert out.read_bytes() == first
    assert str(tmp_path).encode() not in first
    assert not [*moved.glob("*.part")]


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        ("report", "summary.json", "{"),
        ("report", "summary.json", "[]"),
        ("report", "summary.json", '{"summary": [{"name": "x"}], "usage": {}, "provenance": {}}'),
        ("report", "summary.json", '{"summary": [], "usage": {"n": 1}, "provenance": {}}'),
        ("report", "summary.json", '{"summary": [], "usage": {"requests": "x"}, "provenance": {}}'),
        ("report", "summary.json", '{"summary": [], "usage": {}, "provenance": [1]}'),
        ("report", "rows.parquet", "no table"),
        ("report", "trace.parquet", "no table"),
        ("run", "01_first.ipynb", "{"),
        ("run", "01_first.ipynb", '{"cells": 1, "metadata": {}, "nbformat": 4}'),
        ("sweep", "sweep.json", "{"),
        ("sweep", "sweep.json", "[1]"),
        ("sweep", "sweep.json", '{"name": "x"}'),
        ("sweep", "results.parquet", "no table"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, kind: str, name: str, text: str) -> None:
    folder = MAKERS[kind](tmp_path / "here")
    (folder / name).write_text(text)
    with pytest.raises(InputError, match="here") as caught:
        render(folder)
    assert "\n" not in str(caught.value).strip()
    assert not (folder / "report.html").exists()


def test_columns_that_a_sweep_names_must_be_there(tmp_path: Path) -> None:
    parameters = {"varied": ["batch"], "fixed": {}}
    with pytest.raises(InputError, match=r"results\.parquet has no column 'batch'"):
        render(sweep_folder(tmp_path / "rates", parameters=parameters))
    folder = sweep_folder(tmp_path / "empty")
    pd.read_parquet(folder / "results.parquet")[:0].to_parquet(folder / "results.parquet")
    with pytest.raises(InputError, match="has no points"):
        render(folder)


def test_what_is_none_of_these_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("x")
    for place in (tmp_path, text, tmp_path / "nowhere", tmp_path / "no.ipynb"):
        with pytest.raises(InputError, match=f"{re.escape(str(place))} is not a folder of a sweep"):
            render(place)
    saved(tmp_path / "inner")
    with pytest.raises(InputError, match=r"inner holds one"):
        render(tmp_path)


def test_a_page_is_written_only_where_a_page_can_be(tmp_path: Path) -> None:
    folder = saved(tmp_path / "sums")
    (tmp_path / "folder.html").mkdir()
    for out in ("folder.html", "no/page.html", "page.txt", "sums/summary.json"):
        with pytest.raises(InputError, match=r"give a file that ends in \.html"):
            render(folder, tmp_path / out)
    assert json.loads((folder / "summary.json").read_text())


def test_a_page_that_is_there_stays_whole_if_the_new_one_cannot_be_written(tmp_path: Path) -> None:
    folder = saved(tmp_path / "sums")
    (folder / "report.html").write_text("the old page")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # as if the disk were full
    try:
        with pytest.raises(InputError, match="could not be written"):
            render(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (folder / "report.html").read_text() == "the old page"


def test_the_command_prints_the_path_and_refuses_in_a_line(tmp_path: Path) -> None:
    folder, out = saved(tmp_path / "sums"), tmp_path / "page.html"
    done = CliRunner().invoke(app, ["report", str(folder), "--out", str(out)])
    assert (done.exit_code, done.output.strip()) == (0, str(out))
    assert stat.S_ISREG(out.stat().st_mode)
    refused = CliRunner().invoke(app, ["report", str(tmp_path / "nowhere")])
    assert refused.exit_code == 2
    assert refused.output.startswith("error: ")
