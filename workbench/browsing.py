"""The rows of reports to browse: their order, filters, search, cells and details.

Nothing here displays: `browser.py` shows them in a notebook, `report/` in a page.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import cached_property
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple

from workbench.lazy import NDArray, np, pd
from workbench.reprs import Shown, brief, flat, masked

if TYPE_CHECKING:
    from workbench.browser import Browser
    from workbench.types import Report

PROMPTS = ("prompt", "question", "problem", "claim", "statement", "text")
ANSWERS = ("extracted", "text", "majority_text")
VERDICTS = ("verdict", "label")
"""Columns to compare with `gold`, in reports without `correct`."""
SHOWN = ("id", "run", "correct", "parsed", "error", "reasoning", "likeliest", *ANSWERS, *VERDICTS)
"""Columns that are not repeated below the details."""
LETTERS = "ABCDEFGHIJ"
CELL, MOST = 160, 100_000
"""Maximum characters of a cell, and of a text in the details."""
MARKS = {
    "wrong": "✗", "unread": "?", "failed": "!", "unknown": "·", "right": "✓",
    "only the first is right": "✓✗", "only the second is right": "✗✓", "other answers": "≠",
    "equal": "=", "alone": "",
}  # fmt: skip
"""The states of rows and of pairs in the order of a listing, with their marks."""
STATES, PAIRED = [*MARKS][:5], [*MARKS][5:9]
FILTERS = {"all": STATES, "wrong": STATES[:2]} | {name: [name] for name in [*STATES[1:3], "right"]}
DIFFER = {"different": PAIRED[:3], **{name: [name] for name in PAIRED[:3]}, "all": PAIRED}
SETTINGS = ("agent", "engine.model", "style", "shots", "prompt", "sampling.temperature", "seed")
"""What can name one of two reports: the first that differs."""


class Part(NamedTuple):
    """Texts of a row's details, each with a label.

    The kinds are "text", "error", "facts" (short texts) and "calls" (folded).
    """

    kind: str
    title: str
    texts: list[tuple[str, str]]


class Rows:
    """All rows of a report to browse, with the calls of an evaluation's trace.

    Attributes:
        columns: the names of the cells.
        states: the state of each row, one of `MARKS`.
        filters: by name the states that each keeps; a view begins with the first.
    """

    def __init__(self, report: Report) -> None:
        about = flat(report.provenance)
        names = ("task", "agent", "engine.model")
        self.title = masked(" · ".join(str(about[one]) for one in names if about.get(one)))
        self.data = {str(name): one.to_numpy() for name, one in report.rows.items()}
        self.trace: Mapping[str, Any] = {}
        if (trace := getattr(report, "trace", None)) is not None and "prompt" in trace:
            self.trace = {str(name): one.to_numpy() for name, one in trace.items()}
        graded = "correct" in self.data
        ids: Any = self.data.get("id", report.rows.index)
        self.keys = [*zip(map(str, ids), self.data.get("run", repeat(0)), strict=False)]
        self.answers = [one for one in (ANSWERS if graded else VERDICTS) if one in self.data]
        self.prompts = [one for one in PROMPTS if one in {*self.data} - {*self.answers}]
        golds = ("answer", "gold") if graded or "gold" not in self.data else ("gold",)
        self.golds = [one for one in golds if one in self.data][:1]
        self._choose(graded=graded)
        self.states = self.verdicts = self._verdicts(report.rows)
        there = {"prompt": self.prompts or self.trace, "answer": self.answers, "gold": self.golds}
        self.columns = ["id", *(name for name, found in there.items() if found)]
        if len(self.columns) == 1:
            self.columns += [name for name in self.data if name != "id"][:5]
        failed = (self.states == "failed").any()
        self.columns += ["error"] * bool(failed and not {"answer", "error"} & {*self.columns})
        some = {*self.states} - {"unknown", "failed"}
        self.filters = FILTERS if some else {name: FILTERS[name] for name in ("all", "failed")}

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """The rows sorted by state, wrong or different ones first, else as they are."""
        places = {state: place for place, state in enumerate(MARKS)}
        return np.argsort([places[state] for state in self.states], kind="stable")

    def count(self, name: str) -> int:
        """How many rows a filter keeps."""
        return int(np.isin(self.states, self.filters[name]).sum())

    def find(self, name: str, words: str = "") -> list[int]:
        """The rows that a filter keeps and that have `words` in some text, in order."""
        kept = self.order[np.isin(self.states, self.filters[name])[self.order]].tolist()
        wanted = searched(words)
        return [row for row in kept if wanted in self.texts[row]] if wanted else kept

    def _choose(self, *, graded: bool) -> None:
        """Of log-probabilities of letters, the likeliest letter is the answer."""
        letters = [one for one in LETTERS if one in self.data]
        if graded or self.answers or not self.golds or len(letters) < 2:
            return
        scores = np.stack([np.asarray(self.data[one], float) for one in letters], axis=1)
        scores[np.isnan(scores)] = -np.inf
        known = np.isfinite(scores).any(axis=1)
        self.answers = ["likeliest"]
        best = zip(scores.argmax(axis=1), known, strict=True)
        self.data["likeliest"] = np.array([letters[i] if ok else "" for i, ok in best], object)

    def _verdicts(self, rows: pd.DataFrame) -> NDArray[Any]:
        def being(name: str, value: bool) -> NDArray[np.bool_]:
            return rows[name].eq(value).fillna(value=False).astype(bool).to_numpy()

        states = np.full(len(rows), "unknown", dtype=object)
        if "correct" in self.data:
            right, wrong = being("correct", True), being("correct", False)
        else:
            pairs = [(self.answer(i), self.gold(i)) for i in range(len(states))]
            right = np.array([bool(one) and one == gold for one, gold in pairs], bool)
            wrong = np.array([bool(one and gold) and one != gold for one, gold in pairs], bool)
        states[right], states[wrong] = "right", "wrong"
        if "parsed" in self.data:
            states[wrong & being("parsed", False)] = "unread"
        for name, state in (("unparsed", "unread"), ("error", "failed")):
            if name in self.data:
                states[pd.notna(self.data[name])] = state
        return states

    @cached_property
    def calls(self) -> Mapping[tuple[str, Any], list[int]]:
        """The places of each key's calls in the trace."""
        found: dict[tuple[str, Any], list[int]] = defaultdict(list)
        runs = self.trace.get("run", repeat(0))
        for place, key in enumerate(zip(self.trace.get("id", ()), runs, strict=False)):
            found[str(key[0]), key[1]].append(place)
        return found

    def value(self, row: int, *names: str) -> str:
        """The first of these columns that has a value in this row, as a text."""
        texts = (plain(self.data[name][row]) for name in names if name in self.data)
        return next(filter(None, texts), "")

    def name(self, row: int) -> str:
        """The row's id, with its run if there are several."""
        key, run = self.keys[row]
        return f"{key} (run {run})" if run or (key, 1) in self.calls else key

    def prompt(self, row: int) -> str:
        called = self.calls.get(self.keys[row])
        return plain(self.trace["prompt"][called[0]]) if called else self.value(row, *self.prompts)

    def answer(self, row: int) -> str:
        return self.value(row, *self.answers)

    def gold(self, row: int) -> str:
        return self.value(row, *self.golds)

    def said(self, row: int) -> str:
        """The answer, or why there is none."""
        return self.error(row) or self.answer(row)

    def error(self, row: int) -> str:
        return masked(self.value(row, "error"))

    def cells(self, row: int) -> list[str]:
        """One short text for each column."""
        special: dict[str, Callable[[int], str]] = {
            "id": self.name, "gold": self.gold, "error": self.error, "answer": self.said,
            "prompt": lambda row: _asked(self.prompt(row)),
        }  # fmt: skip
        named = [special.get(one) for one in self.columns]
        pairs = zip(self.columns, named, strict=True)
        return [short(get(row) if get else self.value(row, name)) for name, get in pairs]

    def parts(self, row: int) -> list[Part]:
        """The details of a row."""
        grade, *said = self.result(row)
        asked = Part("text", "prompt", messages(self.prompt(row)))
        return [grade, *([asked] if asked.texts else []), *said, *self.rest(row)]

    def result(self, row: int, title: str = "answer") -> list[Part]:
        """The verdict, and what the model said."""
        whole = self.value(row, *(name for name in self.answers if name == "text"))
        read = self.value(row, *self.answers[:1])
        grade = {"verdict": str(self.verdicts[row]), "read as": read if read != whole else ""}
        facts = [*grade.items(), ("gold", self.gold(row))]
        said = {"error": self.error(row), "reasoning": self.value(row, "reasoning"), title: whole}
        parts = [
            Part("error" if name == "error" else "text", name, [("", text)])
            for name, text in said.items()
            if text
        ]
        return [Part("facts", self.name(row), [pair for pair in facts if pair[1]]), *parts]

    def rest(self, row: int) -> list[Part]:
        """All calls if there are several, and the other columns."""
        calls, prompt = self.calls.get(self.keys[row], []), self.prompt(row)
        others = [name for name in self.data if name not in {*SHOWN, *self.golds}]
        texts = [(name, self.value(row, name)) for name in others]
        facts = [(name, text) for name, text in texts if text and text not in prompt]
        parts = [Part("calls", "calls", [*map(self._call, calls)])] if len(calls) > 1 else []
        return [*parts, Part("facts", "row", facts)] if facts else parts

    def _call(self, place: int) -> tuple[str, str]:
        """An answer to a call: what it was, and its texts."""
        record = {name: plain(column[place]) for name, column in self.trace.items()}
        about = ("round", "kind", "sample", "finish_reason")
        label = ", ".join(f"{name} {record[name]}" for name in about if record.get(name))
        texts = [f"{role}: {text}" if role else text for role, text in messages(record["prompt"])]
        said = ("reasoning", "text", "error")
        return label, "\n\n".join(
            [*texts, *(f"[{name}]\n{record[name]}" for name in said if record.get(name))]
        )

    @cached_property
    def texts(self) -> list[str]:
        """What a search looks at, for each row (see `searched`)."""
        found = [[key] for key, _ in self.keys]
        for column in self.data.values():
            if not pd.api.types.is_numeric_dtype(column.dtype):
                for row, one in zip(found, column, strict=True):
                    row.append(plain(one))
        said = [self.trace[name] for name in ("prompt", "text", "error") if name in self.trace]
        for row, key in zip(found, self.keys, strict=True):
            row += [plain(column[place]) for place in self.calls.get(key, ()) for column in said]
        return [searched("\n".join(row)) for row in found]


class Browsable(Shown):
    """A report, whose rows can be read one by one."""

    __slots__ = ()

    def browse(self, page: int = 20) -> Browser:
        """All rows to filter, search and open, wrong ones first: a widget in Lab and VS Code.

        A row opens with its prompt, answer, grade, error and calls. Elsewhere, and in the saved
        notebook, there is a table of the first rows.

        Args:
            page: number of rows at a time.

        Raises:
            InputError: `page` is not from 1 to 200.
        """
        from workbench.browser import Browser

        return Browser(Rows(self), page)  # type: ignore[arg-type]


class Pairs(Rows):
    """The rows that two reports share, by id and run, side by side."""

    def __init__(self, report: Report, other: Report) -> None:
        super().__init__(report)
        self.other = Rows(other)
        places = {key: row for row, key in enumerate(self.other.keys)}
        self.beside = [places.get(key, -1) for key in self.keys]  # -1: only the first has it
        abouts = [flat(one.provenance) for one in (report, other)]
        self.names = ["first", "second"]
        for name in [n for n in SETTINGS if abouts[0].get(n) != abouts[1].get(n)][:1]:
            self.names = [f"{name}={brief(str(about.get(name)), 40)}" for about in abouts]
        self.title += f": {' beside '.join(self.names)}"
        self.columns = ["id", "prompt", "gold", *self.names]
        self.states = np.array([*map(self._state, range(len(self.keys)))], dtype=object)
        self.filters = DIFFER

    def _state(self, row: int) -> str:
        if (beside := self.beside[row]) < 0:
            return "alone"
        right = [one == "right" for one in (self.verdicts[row], self.other.verdicts[beside])]
        if right[0] != right[1]:
            return PAIRED[0] if right[0] else PAIRED[1]
        same = self.verdicts[row] == self.other.verdicts[beside]
        return "equal" if same and self.said(row) == self.other.said(beside) else PAIRED[2]

    def cells(self, row: int) -> list[str]:
        about = [self.name(row), _asked(self.prompt(row)), self.gold(row)]
        return [*map(short, (*about, self.said(row), self.other.said(self.beside[row])))]

    def parts(self, row: int) -> list[Part]:
        both = [*zip(self.names, (self, self.other), (row, self.beside[row]), strict=True)]
        verdicts = [(name, str(side.verdicts[at])) for name, side, at in both]
        parts = [Part("facts", self.name(row), [*verdicts, ("gold", self.gold(row))])]
        first, second = (messages(side.prompt(at)) for _, side, at in both)
        if first == second:
            parts.append(Part("wide", "prompt", first))
        else:
            named = zip(self.names, (first, second), strict=True)
            parts += [Part("text", f"prompt, {name}", texts) for name, texts in named]
        for name, side, at in both:
            parts += side.result(at, name)[1:]
        return [*parts, *(part for _, side, at in both for part in side.rest(at))]

    @cached_property
    def texts(self) -> list[str]:
        theirs = self.other.texts
        return [f"{own} {theirs[i]}" for own, i in zip(super().texts, self.beside, strict=True)]


def plain(value: Any) -> str:
    """A value as a text; "" if it is missing."""
    value = value.tolist() if hasattr(value, "tolist") else value  # of NumPy
    value = str(value) if isinstance(value, bool | list | tuple | dict) else value
    if isinstance(value, str):
        return value if len(value) <= MOST else f"{value[:MOST]} … ({len(value):,} characters)"
    return "" if value is None or value is pd.NA else brief(value)


def searched(text: str) -> str:
    """A text as a search sees it: without differences of case and of white space."""
    return " ".join(text.casefold().split())


def short(text: str, *, end: bool = False) -> str:
    """A text, or its end, as one short line."""
    line = " ".join((text[-4 * CELL :] if end else text[: 4 * CELL]).split())
    if len(line) <= CELL and len(text) <= 4 * CELL:
        return line
    return f"…{line[-CELL:]}" if end else f"{line[:CELL]}…"


def messages(prompt: str) -> list[tuple[str, str]]:
    """The messages of a chat with their roles; a plain prompt is one without a role."""
    if prompt.startswith("[{"):
        try:
            return [(str(one["role"]), _content(one["content"])) for one in json.loads(prompt)]
        except (ValueError, KeyError, TypeError):
            pass  # a text that only begins like a chat
    return [("", prompt)] if prompt else []


def _content(content: Any) -> str:
    """A message's text; parts that are no text are named."""
    if not isinstance(content, list):
        return plain(content)
    return "\n".join(one.get("text") or f"[{one.get('type')}]" for one in content)


def _asked(prompt: str) -> str:
    """The end of a prompt's last message."""
    return short(messages(prompt)[-1][1], end=True) if prompt else ""
