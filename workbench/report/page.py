"""A page of parts: tables and text in which data is escaped, and embedded figures.

nbconvert renders it; the template next to this module has no external addresses, and
no script but that of `answers.py`.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from io import BytesIO
from numbers import Real
from pathlib import Path
from typing import Any

from workbench.errors import InputError
from workbench.lazy import Figure, pd, v4
from workbench.plots.points import shown
from workbench.plots.theme import PICTURE

Part = Any  # a cell of nbformat, which is only partly typed
MAX_OUTPUT = 1_000_000  # maximum characters of one output
MAX_PAGE = 30_000_000  # maximum characters of a page
MAX_VALUE = 300  # characters of a value in a table
TEMPLATE = Path(__file__).with_name("page.html.j2")
TAGS = {
    "a", "abbr", "b", "blockquote", "br", "caption", "code", "dd", "del", "details", "div", "dl",
    "dt", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "i", "img", "kbd", "li", "ol", "p", "pre",
    "q", "s", "small", "span", "strong", "sub", "summary", "sup", "table", "tbody", "td", "tfoot",
    "th", "thead", "tr", "u", "ul",
}  # fmt: skip
ATTRIBUTES = {
    "*": ["class"], "abbr": ["title"], "ol": ["start"], "td": ["colspan", "rowspan"],
    "th": ["colspan", "rowspan", "scope"], "img": ["alt", "width", "height"],
}  # fmt: skip
IGNORED = re.compile(r"[\x00-\x20]")  # by browsers, within an address


def cell(mime: str, data: str, **metadata: int) -> Part:
    """A part with data of a MIME type."""
    output = v4.new_output("display_data", data={mime: data}, metadata=metadata)
    return v4.new_code_cell(outputs=[output])


def heading(text: str, level: int = 2) -> Part:
    """A heading; `level` 1 is the page's title."""
    return cell("text/html", f"<h{level}>{html.escape(text)}</h{level}>")


def paragraph(text: str, kind: str = "") -> Part:
    """A text; the kinds "about" and "note" are set smaller."""
    return cell("text/html", f'<p class="{kind}">{html.escape(text)}</p>')


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], bad: str = "") -> Part:
    """A table; numbers are right-aligned, and the column `bad` is coloured."""
    cells = [_column(values) for values in zip(*rows, strict=True)] or [("", ())] * len(columns)
    classes = [
        kind + " bad" * (name == bad) for name, (kind, _) in zip(columns, cells, strict=True)
    ]

    def line(tag: str, values: Iterable[str]) -> str:
        pairs = zip(classes, map(html.escape, values), strict=True)
        inner = "".join(f'<{tag} class="{kind}">{value}</{tag}>' for kind, value in pairs)
        return f"<tr>{inner}</tr>"

    head = f"<thead>{line('th', columns)}</thead>" if any(columns) else ""
    body = "".join(line("td", row) for row in zip(*(texts for _, texts in cells), strict=True))
    text = f"<table>{head}<tbody>{body}</tbody></table>"
    return cell("text/html", f'<div class="wide">{text}</div>')


def _column(values: Sequence[object]) -> tuple[str, Sequence[str]]:
    """A column's class, and its values as texts; all numbers with the same decimals."""
    known = [value for value in values if not _missing(value)]
    if known and all(isinstance(v, Real) and not isinstance(v, bool) for v in known):
        form = _form([float(value) for value in known])  # type: ignore[arg-type]
        return "n", ["" if _missing(value) else form(value) for value in values]
    texts = ["" if _missing(value) else str(value) for value in values]
    texts = [text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]} …" for text in texts]
    return "long" if max(map(len, texts), default=0) > 30 else "", texts


def _form(numbers: Sequence[float]) -> Callable[[Any], str]:
    """Four digits of the largest; unrounded if that would leave nothing of the smallest."""
    sizes = [abs(number) for number in numbers if number and math.isfinite(number)]
    if not sizes or all(size.is_integer() for size in sizes):
        return "{:,.0f}".format
    decimals = min(max(3 - math.floor(math.log10(max(sizes))), 0), 4)
    if max(sizes) < 1e9 and min(sizes) * 10**decimals >= 1:
        return f"{{:,.{decimals}f}}".format
    return lambda number: shown(float(f"{number:.4g}"))


def frame(data: pd.DataFrame, most: int) -> list[Part]:
    """The first rows of a data frame, with a note on how many there are."""
    first = data.head(most)
    parts = [table([str(name) for name in data.columns], first.itertuples(index=False))]
    if len(data) > most:
        parts.append(paragraph(f"the first {most} of {len(data):,} rows", "note"))
    return parts


def facts(values: Mapping[str, object]) -> Part:
    """Names with their values, two columns without a header."""
    return table(["", ""], [(name, *_column([value])[1]) for name, value in values.items()])


def image(path: Path) -> Part:
    """A picture from a file, or a note that it is left out."""
    kinds = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
    kind = kinds.get(path.suffix.lower())
    size = path.stat().st_size
    if kind is None or size > MAX_OUTPUT:
        return paragraph(f"{path.name}, {size:,} bytes, is left out of this page", "note")
    return _picture(kind, path.read_bytes())


def drawn(figure: Figure) -> Part:
    """A figure as a PNG; equal figures give equal bytes."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", **PICTURE)
    return _picture("image/png", buffer.getvalue())


def _picture(kind: str, data: bytes) -> Part:
    """A picture at its printed size; figures of this package have 150 dots per inch."""
    wide = {"width": int.from_bytes(data[16:20]) * 96 // 150} if kind == "image/png" else {}
    return cell(kind, base64.b64encode(data).decode(), **wide)


def page(title: str, parts: Iterable[Part], folder: Path) -> str:
    """The page as one HTML text, the same for the same parts.

    Args:
        folder: the base of relative paths of pictures in a notebook's text.

    Raises:
        InputError: a notebook's text refers to an attachment that it does not have.
    """
    nbconvert: Any = import_module("nbconvert")
    faults: Any = import_module("nbconvert.filters.markdown_mistune")
    cells = [*_fitting(parts)]
    for number, part in enumerate(cells):
        part["id"] = f"part-{number}"
    exporter = nbconvert.HTMLExporter(
        template_name="lab",
        raw_template=TEMPLATE.read_text(encoding="utf-8"),
        extra_template_basedirs=[],
        exclude_input=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
        embed_images=True,
        sanitize_html=True,
        filters={"clean_html": clean},
    )
    if rows := next((one["metadata"].pop("listing") for one in cells if one["metadata"]), None):
        allowed = base64.b64encode(hashlib.sha256(rows["js"].encode()).digest()).decode()
        rows["policy"] = f"; script-src 'sha256-{allowed}'"
    notebook = v4.new_notebook(cells=cells, metadata={"title": title, "rows": rows})
    about = {"metadata": {"name": title, "path": str(folder)}}
    try:
        text, _ = exporter.from_notebook_node(notebook, resources=about)
    except faults.InvalidNotebook as error:
        raise InputError(f"{title}: {error}; restore it or remove the reference to it") from error
    return str(text)


def _fitting(parts: Iterable[Part]) -> Iterator[Part]:
    """The parts up to the maximum size of a page, and a note if some are left out."""
    left = MAX_PAGE
    for part in parts:
        left -= len(json.dumps(part))
        if left < 0:
            yield paragraph(f"The rest is left out: the page has {MAX_PAGE:,} characters.", "note")
            return
        yield part


def clean(element: object) -> str:
    """HTML without scripts, external resources and styles; unknown tags keep only their text."""
    bs4: Any = import_module("bs4")
    raw: Any = import_module("bs4.element").PreformattedString
    soup = bs4.BeautifulSoup(str(element), "html.parser")
    for node in soup.find_all(string=lambda text: isinstance(text, raw)):
        node.extract()  # comments and the like, which are not escaped
    for tag in soup.find_all(["script", "style"]):
        tag.extract()
    for tag in soup.find_all(True):
        if tag.name not in TAGS:
            tag.unwrap()
        tag.attrs = {name: value for name, value in tag.attrs.items() if _allowed(tag, name)}
        if tag.name == "img" and "src" not in tag.attrs:
            tag.replace_with("(an image that is not in this file)")
    return str(soup)


def _allowed(tag: Any, name: str) -> bool:
    """Whether an attribute is safe: not one with an address that is loaded or run."""
    value = IGNORED.sub("", str(tag.attrs[name])).lower()
    if name == "src":
        return tag.name == "img" and value.startswith("data:image/")
    if name == "href":
        return tag.name == "a" and value.startswith(("http://", "https://", "mailto:", "#"))
    return name in ATTRIBUTES["*"] or name in ATTRIBUTES.get(tag.name, [])


def _missing(value: object) -> bool:
    return pd.isna(value) is True  # type: ignore[call-overload]
