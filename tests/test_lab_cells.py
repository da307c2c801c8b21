"""What cells show in JupyterLab in a real browser: results, errors, bars; on light and dark.

With WORKBENCH_SCREENSHOTS set to a folder, the documentation's pictures are written there.
"""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import urlparse

import pytest
from stranger import Said, Stranger
from test_chat_only import chat_only
from test_lab import Lab, lab, nbformat  # noqa: F401  # a fixture

READABLE = 4.5
"""Contrast of text, the least of WCAG 2.1's level AA."""

OPEN = """\
import pandas as pd
import workbench as wb

engine = wb.open_engine(engine="transformers", store=None, batch_size=16)"""
DATA = """\
items = wb.open_task("word_problems").items(21)
rows = [{"question": item.fields["question"], "answer": item.answer} for item in items]
df = pd.DataFrame(rows)
report = wb.evaluate(df, engine, max_tokens=96)
report"""
LONG = """\
hard = ["A very long question, <b>of many words</b> & signs: " * 20, "x" * 300, "2+2="]
engine.generate(hard, wb.Sampling(max_tokens=40, ignore_eos=True))"""
SHOWS = {
    'engine.ask(df.head(3), "{question}", max_tokens=4)': ["answer", "tokens", "error"],
    LONG: ["3 completions", "length, "],
    'engine.label_logprobs(["2+2=4 is", "2+2=5 is"], [" true", " false"])': [
        "log-probabilities of 2 labels after 2 prompts", "true", "false",
    ],
    "engine.info": ["transformers", "workbench-tiny", "float32"],
    "engine.usage": ["prompt tokens", "completion tokens"],
    "report.summary[0]": ["accuracy", "n = 21"],
    "wb.open_task(df)": ["task own", "21 items", "Answer:"],
    "wb.open_task(df).items(1, 0)[0]": ["question", "answer"],
}  # fmt: skip
COMPARED = """\
wordings = {"short": "{question}", "cot": "{question} Think step by step."}
wb.compare_prompts(df, engine, wordings, max_tokens=96)"""
WRONG = "wb.evaluate(df, engine, temprature=0.5)"
STOPPED = 'engine.generate([f"{n}+1=" for n in range(5000)], wb.Sampling(max_tokens=64))'
AFTER = 'engine.generate(["12+30="], wb.Sampling(max_tokens=2))[0].text'
CHATS = """\
chats = wb.open_engine(engine="remote", base_url={url!r}, store=None)
wb.evaluate(df, chats, max_tokens=4)"""

WATCH = """\
() => {
  window.seen = [];
  setInterval(() => {
    const text = document.querySelector(".jp-Cell-outputArea")?.innerText.trim();
    if (text && window.seen.at(-1) !== text) window.seen.push(text);
  }, 50);
}"""
READ = """\
areas => {
  const part = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const over = ([r, g, b, a = 1], below) => [r, g, b].map((v, i) => v * a + below[i] * (1 - a));
  const below = (node) => {
    if (!node) return [255, 255, 255];
    const own = part(getComputedStyle(node).backgroundColor);
    return own.length === 3 ? own : over(own, below(node.parentElement));
  };
  const light = (rgb) => rgb.map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const found = [];
  for (const area of areas) {
    const walker = document.createTreeWalker(area, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const text = walker.currentNode.textContent.trim(), node = walker.currentNode.parentElement;
      if (!text || !node.getClientRects().length || node.closest(".jp-OutputPrompt, style, script"))
        continue;
      const back = below(node), style = getComputedStyle(node);
      const [a, b] = [light(over(part(style.color), back)), light(back)];
      const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      const trace = node.closest(".jp-RenderedText[data-mime-type*='vnd.jupyter']");
      const ours = !trace || node.tagName === "PRE" || text.startsWith("stopped");
      found.push({ text, contrast, ours, size: parseFloat(style.fontSize) });
    }
  }
  return found;
}"""
WIDE = """\
parts => parts.filter((one) => one.scrollWidth > one.clientWidth + 1)
  .map((one) => one.innerText.slice(0, 80))"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_cells_show(lab: Lab) -> None:  # noqa: F811
    asked: list[str] = []
    lab.page.on("request", lambda request: asked.append(request.url))
    with Stranger(chat_only(Said({"detail": "Not Found"}, 404))) as server:
        codes = [OPEN, DATA, *SHOWS, COMPARED, WRONG, "%tb", STOPPED, AFTER]
        codes.append(CHATS.format(url=server.url))
        lab.write("cells.ipynb", codes)
        lab.open("cells.ipynb")
        loads(lab)
        for number in range(1, codes.index(STOPPED)):
            lab.run(number)
        stops(lab, codes.index(STOPPED))
        for number in range(codes.index(AFTER), len(codes)):
            lab.run(number)
    texts = [output(lab, number).inner_text() for number in range(len(codes))]
    said = dict(zip(codes, texts, strict=True))
    for code, words in SHOWS.items():
        assert [word for word in words if word not in said[code]] == []
    for word in ("own · standard · workbench-tiny", "accuracy", "of 21 rows wrong", "21 requests"):
        assert word in said[DATA]
    assert "versions" not in said[DATA]  # folded
    assert "cot" in said[COMPARED]
    assert output(lab, codes.index(COMPARED)).locator("img").count() == 1
    error(lab, codes, said)
    assert said[AFTER].split()[-1] == "'42'"
    chats = output(lab, len(codes) - 1)
    chats.locator("summary").click()
    assert re.search(r"style\s+chat", chats.inner_text())
    assert "the server has no completions" in chats.inner_text()

    pictures(lab, "", {"report": 1, "error": codes.index(WRONG)})
    readable(lab, said)
    lab.saved("cells.ipynb")
    in_theme(lab, "JupyterLab Dark")
    pictures(lab, "_dark", {"report": 1})
    readable(lab, said)
    without_a_kernel(lab)
    assert [url for url in asked if urlparse(url).hostname not in {"127.0.0.1", None, ""}] == []


def output(lab: Lab, number: int) -> Any:  # noqa: F811
    """What a code cell shows."""
    cell = lab.page.locator(".jp-CodeCell").nth(number)
    cell.scroll_into_view_if_needed()  # what is far away is not drawn
    return cell.locator(".jp-Cell-outputArea")


def loads(lab: Lab) -> None:  # noqa: F811
    """A line that changes while the model loads, and says in the end what is ready."""
    lab.page.evaluate(WATCH)
    lab.start(0)
    output(lab, 0).get_by_text(re.compile(r"^loading: .*, [1-9]\d* s$")).wait_for()
    pictures(lab, "", {"loading": 0})
    lab.ended(0)
    output(lab, 0).get_by_text(re.compile(r"^ready: transformers, .*, float32, \d+ s$")).wait_for()
    seen = lab.page.evaluate("window.seen")
    assert len([text for text in seen if text.startswith("loading: ")]) > 1
    assert seen[-1].startswith("ready: ")
    assert [text for text in seen if "\n" in text] == []


def stops(lab: Lab, number: int) -> None:  # noqa: F811
    """The notebook's own interrupt: one line, and the bar says how far it was."""
    lab.start(number)
    output(lab, number).get_by_text(re.compile(r"generate: [1-9][\d,]* of 5,000 rows")).wait_for()
    lab.page.get_by_role("menuitem", name="Kernel", exact=True).click()
    lab.page.get_by_role("menuitem", name=re.compile("^Interrupt Kernel")).click()
    lab.ended(number)
    bar, line = filter(str.strip, output(lab, number).inner_text().splitlines())
    assert re.match(r"generate stopped: [1-9][\d,]* of 5,000 rows", bar.strip())
    assert re.match(r"stopped: generate, [1-9][\d,]* of 5,000 rows", line)
    assert rows(output(lab, number).locator("pre").last) == 1


def error(lab: Lab, codes: list[str], said: dict[str, str]) -> None:  # noqa: F811
    """The user's own line and the message; everything is there for who asks."""
    short = said[WRONG]
    assert "----> 1 wb.evaluate(df, engine, temprature=0.5)" in short
    assert "did you mean 'temperature'?" in short
    assert "site-packages" not in short
    assert "workbench/" not in short
    assert rows(output(lab, codes.index(WRONG)).locator("pre")) <= 8
    assert "evaluation.py" in said["%tb"]
    assert rows(output(lab, codes.index("%tb")).locator("pre")) > 20


def rows(text: Any) -> int:
    """Lines on the screen, long ones as often as they are wrapped."""
    height: float = text.evaluate(
        "one => { const style = getComputedStyle(one);"
        " return (one.getBoundingClientRect().height - parseFloat(style.paddingTop)"
        " - parseFloat(style.paddingBottom)) / parseFloat(style.lineHeight) }"
    )
    return round(height)


def readable(lab: Lab, said: dict[str, str]) -> None:  # noqa: F811
    """Text stands out from what is behind it and fits, and nothing asks for attention."""
    found, wide = [], []
    for number in range(len(said)):
        found += output(lab, number).evaluate_all(READ)
        wide += output(lab, number).locator(".jp-OutputArea-output").evaluate_all(WIDE)
    assert len(found) > 10 * len(said)
    assert [one for one in found if one["ours"] and one["contrast"] < READABLE] == []
    assert [one for one in found if one["ours"] and not 12 <= one["size"] <= 14] == []
    assert wide == []
    assert lab.page.locator(".Toastify__toast").count() == 0


def in_theme(lab: Lab, theme: str, at: int = 1, shows: str = "summary") -> None:  # noqa: F811
    """Choose a theme, as the settings do, and open the page again."""
    headers = {"Authorization": lab.key}
    address = f"{lab.url}/lab/api/settings/@jupyterlab/apputils-extension:themes"
    raw = json.dumps({"theme": theme})
    assert lab.page.request.put(address, headers=headers, data={"raw": raw}).ok
    lab.open("cells.ipynb")
    lab.page.locator("body[data-jp-theme-light=false]").wait_for(state="attached")
    output(lab, at).locator(shows).first.wait_for()


def without_a_kernel(lab: Lab) -> None:  # noqa: F811
    """What is saved is all that a reader needs."""
    saved = nbformat.read(lab.folder / "cells.ipynb", as_version=4)
    del saved.metadata["kernelspec"]
    nbformat.write(saved, lab.folder / "read.ipynb")
    lab.page.goto(f"{lab.url}/doc/tree/read.ipynb")
    lab.page.locator(".jp-Dialog select").select_option(label="No Kernel")
    lab.page.locator(".jp-Dialog .jp-mod-accept").click()
    output(lab, 0).get_by_text(re.compile(r"^ready: transformers, ")).wait_for()
    output(lab, 1).get_by_text("own · standard · workbench-tiny").wait_for()


def pictures(lab: Lab, ending: str, cells: dict[str, int]) -> None:  # noqa: F811
    """Write pictures of cells, if pictures are asked for."""
    for name, number in cells.items():
        lab.page.locator(".jp-CodeCell").nth(number).scroll_into_view_if_needed()
        lab.picture(f"lab_{name}{ending}", f".jp-CodeCell >> nth={number}", number)
