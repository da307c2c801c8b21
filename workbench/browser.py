"""A listing in a notebook: filters, a search, a page of rows, and the details of one.

All of it is kept in the kernel, and the front end has one page: its cost is the same for any number
of rows. A saved notebook has the first rows as a table, which is displayed where nothing runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple
from functools import cached_property, wraps
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

from workbench import values
from workbench.browsing import MARKS, Pairs, Part, Rows
from workbench.errors import InputError
from workbench.frontend import chosen_view
from workbench.reprs import note, table
from workbench.stats import Metric, ShareDifference

if TYPE_CHECKING:
    from workbench.types import Report

STYLE = Path(__file__).with_name("browse.css")
SAVED = 10  # rows of the table in a saved notebook
LIVE_SEARCH = 200_000  # rows up to which each letter searches; above it, Enter does
# The table is not displayed beside the widget, nor a widget that has no kernel above the table.
ONE_OF_BOTH = (
    "<style>.jp-OutputArea-child:has(.wb-live)+.jp-OutputArea-child:has(.wb-saved),"
    ".jp-OutputArea-child:not(:has(.wb-live)):has(+.jp-OutputArea-child .wb-saved)"
    "{display:none}</style>"
)


P = ParamSpec("P")


class Difference(ShareDifference):
    """What `compare` returns: a difference of two reports, whose rows can be read side by side."""

    __slots__ = ("_reports",)
    _reports: tuple[Report, Report]  # copies and files have the numbers alone

    def browse(self, page: int = 20) -> Browser:
        """Both answers to each item, those that differ first; see `Report.browse`.

        Raises:
            InputError: `page` is not from 1 to 200, or this is a copy, without the reports.
        """
        if not hasattr(self, "_reports"):
            raise InputError("this difference has no reports: browse what `compare` returns")
        return Browser(Pairs(*self._reports), page)


def with_reports(
    measure: Callable[Concatenate[Report, Report, P], Metric],
) -> Callable[Concatenate[Report, Report, P], Difference]:
    """Make a comparison's result one that can be browsed."""

    @wraps(measure)
    def compared(report: Report, other: Report, *args: P.args, **kwargs: P.kwargs) -> Difference:
        metric = Difference(*astuple(measure(report, other, *args, **kwargs)))
        object.__setattr__(metric, "_reports", (report, other))
        return metric

    return compared  # type: ignore[return-value]  # it has the names of the arguments too


class Browser:
    """What `report.browse()` and `compare(a, b).browse()` return: a cell displays it."""

    def __init__(self, listing: Rows, page: int = 20) -> None:
        self.listing = listing
        self.page = min(values.whole("page", page, 1, 200), max(len(listing.states), 1))
        self.filter, self.words = next(iter(listing.filters)), ""
        self.found = listing.find(self.filter)
        self.place = 0  # of the open row in `found`
        self._html: dict[str, Any] = {}  # the widget's parts, if there is one

    def find(self, name: str, words: str = "") -> list[int]:
        """Filter and search; the first row found becomes the open one.

        Raises:
            InputError: no such filter.
        """
        values.known("filter", name, [*self.listing.filters])
        self.filter, self.words, self.place = name, words, 0
        self.found = self.listing.find(name, words)
        self._draw()
        return self.found

    def open(self, place: int) -> list[Part]:
        """The details of a row, by its place in what was found; its page is displayed."""
        self.place = max(0, min(place, len(self.found) - 1))
        self._draw()
        return self.listing.parts(self.found[self.place]) if self.found else []

    @property
    def start(self) -> int:
        """The place of the page's first row."""
        return self.place - self.place % self.page

    def __repr__(self) -> str:
        counts = [f"{len(self.listing.find('all')):,} rows"]
        names = [name for name in self.listing.filters if name != "all"]
        counts += [f"{self.listing.count(name):,} {name}" for name in names]
        return f"{self.listing.title}: {', '.join(counts)}"

    def _repr_html_(self) -> str:
        shown, state = self.listing.find(self.filter)[:SAVED], self.listing.states
        lines = [(MARKS[state[row]], *self.listing.cells(row)) for row in shown]
        total = len(self.listing.find(self.filter))
        rows = table(["", *self.listing.columns], lines, total) if lines else ""
        return f'{ONE_OF_BOTH}<div class="wb-saved">{note(repr(self))}{rows}</div>'

    def _ipython_display_(self) -> None:
        if chosen_view() != "widget":
            raise NotImplementedError  # IPython then displays the HTML or the text
        from IPython.display import display

        live = self.widget._repr_mimebundle_() | {"text/plain": "", "text/html": ""}
        saved = f'<div class="{self._name}">{self._repr_html_()}</div>'
        for data in (live, {"text/plain": repr(self), "text/html": saved}):
            display(data, raw=True)  # type: ignore[no-untyped-call]

    @cached_property
    def widget(self) -> Any:
        """The widget, created once; what it displays is updated in place."""
        import ipywidgets as w

        names, count = self.listing.filters, self.listing.count
        options = [(f"{name} {count(name):,}", name) for name in names]
        self._filters = w.ToggleButtons(options=options, value=self.filter)
        live = len(self.listing.states) < LIVE_SEARCH
        self._search = w.Text(placeholder="search all texts", continuous_update=live)
        for one in (self._filters, self._search):
            one.observe(lambda _: self.find(self._filters.value, self._search.value), "value")
        self._html = {name: w.HTML() for name in ("head", "list", "page", "row", "details")}
        self._buttons = [
            self._button("", lambda at=at: self.start + at)  # type: ignore[misc]
            for at in range(self.page)
        ]
        turn = [
            self._button("‹ page", lambda: self.start - self.page),
            self._html["page"],
            self._button("page ›", lambda: self.start + self.page),
            self._button("‹ row", lambda: self.place - 1),
            self._html["row"],
            self._button("row ›", lambda: self.place + 1),
        ]
        listed = w.Box([self._html["list"], w.VBox(self._buttons).add_class("wb-rows")])
        box = w.VBox([
            self._html["head"], w.HBox([self._filters, self._search]).add_class("wb-bar"),
            listed.add_class("wb-list"), w.HBox(turn).add_class("wb-bar"), self._html["details"],
        ]).add_class("wb-live")  # fmt: skip
        self._name = f"wb-{box.model_id}"
        style = f"{STYLE.read_text(encoding='utf-8')} .{self._name} {{display: none}}"
        self._html["head"].value = f"<style>{style}</style><b>{escape(self.listing.title)}</b>"
        self._draw()
        return box

    def _button(self, text: str, place: Callable[[], int]) -> Any:
        """A button that opens a row."""
        import ipywidgets

        button = ipywidgets.Button(description=text)
        button.on_click(lambda _: self.open(place()))
        return button

    def _draw(self) -> None:
        """Update the widget, if there is one: the page, and the details of the open row."""
        if not self._html:
            return
        shown, total = self.found[self.start : self.start + self.page], len(self.found)
        self._html["list"].value = self._lines(shown)
        for at, button in enumerate(self._buttons):
            there = at < len(shown)
            button.disabled = not there
            button.description = self.listing.cells(shown[at])[0] if there else ""
        last = self.start + len(shown)
        self._html["page"].value = (
            f"rows {self.start + 1:,}–{last:,} of {total:,}" if total else "no rows"
        )
        self._html["row"].value = f"{self.place + 1:,} of {total:,}" if total else ""
        parts = self.listing.parts(self.found[self.place]) if total else []
        self._html["details"].value = details(parts)

    def _lines(self, shown: Sequence[int]) -> str:
        """The page's rows, above which the buttons are; the open one is marked."""
        widths = {"id": "1fr", "prompt": "3fr"}
        sizes = " ".join(f"minmax(0, {widths.get(one, '1.4fr')})" for one in self.listing.columns)
        grid = f"grid-template-columns: 2.4em {sizes}"
        lines = [_line(grid, "wb-names", ["", *self.listing.columns])]
        for at, row in enumerate(shown, self.start):
            state = str(self.listing.states[row])
            kind = f"wb-{state.split(maxsplit=1)[0]}" + " wb-open" * (at == self.place)
            lines.append(_line(grid, kind, [MARKS[state], *self.listing.cells(row)]))
        return "".join(lines)


def _line(grid: str, kind: str, cells: Sequence[str]) -> str:
    inner = "".join(f"<span>{escape(cell)}</span>" for cell in cells)
    return f'<div class="wb-line {kind}" style="{grid}">{inner}</div>'


def details(parts: Sequence[Part]) -> str:
    """The details of a row as HTML, in which data is escaped."""
    return f'<div class="wb-details">{"".join(map(_part, parts))}</div>'


def _part(part: Part) -> str:
    forms = {
        "facts": "<span><b>{}</b> {}</span> ",
        "calls": "<details><summary>{}</summary><pre>{}</pre></details>",
    }
    form = forms.get(part.kind, "<i>{}</i><pre>{}</pre>")
    inner = "".join(form.format(escape(label), escape(text)) for label, text in part.texts)
    return f'<section class="wb-{part.kind}"><h4>{escape(part.title)}</h4>{inner}</section>'
