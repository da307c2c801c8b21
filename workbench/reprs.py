"""How values are displayed: at most 5 lines of text, and a table in a notebook.

The HTML is static and inherits its colours. Data is escaped and shortened. What looks like a key is
removed from settings and reasons, but not from prompts and answers. Nothing here calls a model or
raises.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from html import escape
from numbers import Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.stats import Metric
    from workbench.types import (
        Completion,
        EngineInfo,
        Item,
        LabelScores,
        Report,
        TextScores,
        Usage,
    )  # fmt: skip

LINES, WIDTH = 5, 160
"""Maximum of a text: lines, and characters per line."""
ROWS, LONGEST, METRICS = 10, 400, 20
"""Maximum of a table: rows, characters of a value, and headline numbers."""
WRONG = 5
"""Maximum number of wrong answers in a report's display."""
PLAIN = "vertical-align:top;color:inherit;padding:.2em .6em"
CELL = f"{PLAIN};text-align:left;white-space:pre-wrap;overflow-wrap:anywhere"
NUMBER = f"{PLAIN};text-align:right;white-space:nowrap"
WHOLE = f"{PLAIN};text-align:left;white-space:nowrap"
SHORT = 24
"""Maximum characters of a text on one line."""
SECRET_NAME = re.compile(
    r"api_?key|secret|passw|credential|authorization|(^|[._-])(token|key)$", re.IGNORECASE
)
SECRETS = re.compile(
    r"(?<=://)[^/\s@]+(?=@)|(?<=bearer )\S+|(?<![\w-])sk-[\w-]{8,}"
    r"|(?<=key=)[^&\s]+|(?<=token=)[^&\s]+|(?<=password=)[^&\s]+",
    re.IGNORECASE,
)
HIDDEN = "…"
EMPTY: tuple[Any, ...] = (None, "", (), {}, [])

_short = reprlib.Repr()
_short.maxstring = _short.maxother = LONGEST
_short.maxlist = _short.maxtuple = _short.maxdict = _short.maxset = 20


@dataclass(frozen=True, slots=True)
class Card:
    """What is displayed: lines of text, and parts of HTML."""

    lines: Sequence[str]
    html: Sequence[str]


class Shown:
    """A value that prints as lines of text, and displays as a table in a notebook."""

    __slots__ = ()

    def __repr__(self) -> str:
        try:
            lines = [" ".join(line.split()) for line in self._card().lines[:LINES]]
        except Exception:  # noqa: BLE001  # custom fields may fail; a debugger shows the value too
            return object.__repr__(self)
        return "\n".join(brief(line, WIDTH) for line in lines)

    def _repr_html_(self) -> str | None:
        try:
            inner = "".join(self._card().html)
        except Exception:  # noqa: BLE001  # then a notebook shows the text
            return None
        return f'<div style="color:inherit;font-size:13px">{inner}</div>'

    def _card(self) -> Card:
        return next(_cards()[kind](self) for kind in type(self).__mro__ if kind in _cards())


@cache
def _cards() -> Mapping[type, Callable[[Any], Card]]:
    from workbench import types

    return {
        types.Completion: _completion,
        types.EngineInfo: _info,
        types.Item: _item,
        types.LabelScores: _scores,
        types.TextScores: _texts,
        types.Metric: _metric,
        types.Report: _report,
        types.Usage: _usage,
    }


def measured(metric: Metric) -> str:
    """A number with its interval and counts: "85.0 % (64.0 to 94.8, n = 20)"."""
    value, interval = sides(metric)
    counts = [f"n = {metric.n:,}"]
    counts += [f"{metric.n_failed:,} failed"] * bool(metric.n_failed)
    counts += [f"{metric.n_unparsed:,} unparsed"] * bool(metric.n_unparsed)
    return f"{value} ({', '.join(filter(None, [interval, *counts]))})"


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Nested names flattened: `{"engine": {"model": "x"}}` is `{"engine.model": "x"}`."""
    found: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def brief(value: object, most: int = LONGEST) -> str:
    """A value as a short text; numbers have four significant digits."""
    if value is None or value != value:  # noqa: PLR0124  # NaN
        return ""
    if isinstance(value, Real) and not isinstance(value, bool):
        return _number(value)
    text = value[: 2 * most] if isinstance(value, str) else _short.repr(value)
    return text if len(text) <= most else f"{text[: most - 2]} …"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], total: int = 0) -> str:
    """An HTML table; notes the number of all rows (`total`) if there are more."""
    shown = [*rows]
    columns_of = [*zip(*shown, strict=True)] or [()] * len(columns)
    numbers = [bool(values) and all(map(_is_number, values)) for values in columns_of]

    def line(tag: str, values: Iterable[object]) -> str:
        cells = []
        for of_numbers, value in zip(numbers, map(brief, values), strict=True):
            whole = len(value) <= SHORT and "\n" not in value
            style = NUMBER if of_numbers else WHOLE if whole else CELL
            cells.append(f'<{tag} style="{style}">{escape(value)}</{tag}>')
        return f"<tr>{''.join(cells)}</tr>"

    head = f"<thead>{line('th', columns)}</thead>" if any(columns) else ""
    more = note(f"the first {len(shown)} of {total:,}") if total > len(shown) else ""
    return f"<table>{head}<tbody>{''.join(line('td', row) for row in shown)}</tbody></table>{more}"


def masked(text: str) -> str:
    """A setting or a reason, without what looks like a key."""
    return SECRETS.sub(HIDDEN, text)


def settings(values: Mapping[str, object]) -> str:
    """As `facts`, without keys and passwords."""
    known = {name: value for name, value in values.items() if value not in EMPTY}
    return facts(
        {n: HIDDEN if SECRET_NAME.search(n) else masked(brief(v)) for n, v in known.items()}
    )


def facts(values: Mapping[str, object]) -> str:
    """Names with their values, as an HTML table without a header."""
    known = {n: v for n, v in values.items() if v not in EMPTY}
    return table(("", ""), [(name.replace("_", " "), value) for name, value in known.items()])


def note(text: str) -> str:
    """A line in small type."""
    return f'<div style="font-size:12px;overflow-wrap:anywhere">{escape(brief(text))}</div>'


def block(text: object, most: int = 5 * LONGEST) -> str:
    """A text of several lines."""
    return f'<pre style="{CELL};background:transparent">{escape(brief(text, most))}</pre>'


def tokens(one: Completion) -> str:
    """An answer's finish reason and tokens."""
    parts = [one.finish_reason, f"{one.prompt_tokens:,} + {one.completion_tokens:,} tokens"]
    parts += [f"{one.reasoning_tokens:,} of them thinking"] * bool(one.reasoning_tokens)
    parts += [f"{len(one.samples):,} samples"] * (len(one.samples) > 1)
    return ", ".join(parts + ["from the store"] * one.from_store)


def _number(value: Any) -> str:
    number = float(value)
    whole = number.is_integer() or abs(number) >= 9999.5
    return f"{number:,.0f}" if whole and abs(number) < 1e15 else f"{number:.4g}"


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, Real) and not isinstance(value, bool))


def sides(metric: Metric) -> tuple[str, str]:
    """The value, and its interval."""

    def form(number: float) -> str:
        if metric.form == "number":
            return _number(number)
        sign = "+" * (metric.form == "share difference")
        return format(round(100 * number, 1) + 0.0, f"{sign}.1f")  # never -0.0

    unit = {"share": " %", "share difference": " points"}.get(metric.form, "")
    value = "unknown" if math.isnan(metric.value) else f"{form(metric.value)}{unit}"
    known = not any(map(math.isnan, (metric.value, metric.low, metric.high)))
    return value, f"{form(metric.low)} to {form(metric.high)}" if known else ""


def _metric(metric: Metric) -> Card:
    text = f"{metric.name}: {measured(metric)}"
    return Card([text], [f"<b>{escape(brief(metric.name))}</b> {escape(measured(metric))}"])


def _report(report: Report) -> Card:
    metrics, rows, about = report.summary, report.rows, flat(report.provenance)
    lines = [_metric(one).lines[0] for one in metrics[: 3 if len(metrics) <= 3 else 2]]
    lines += [f"and {len(metrics) - 2} more in .summary"] * (len(metrics) > 3)
    columns = ("", "value", "interval", "n", "failed", "unparsed")
    numbers = [
        (one.name, *sides(one), one.n, one.n_failed, one.n_unparsed) for one in metrics[:METRICS]
    ]
    title = [str(about[name]) for name in ("task", "agent", "engine.model") if about.get(name)]
    html = [f"<div><b>{escape(brief(masked(' · '.join(title))))}</b></div>" if title else ""]
    html.append(table(columns, numbers, len(metrics)))
    lost = [*rows["error"].dropna()] if "error" in rows else []
    first = masked(str(lost[0])) if lost else ""
    if "correct" in rows:
        wrong = report.wrong()
        why = f"{len(lost):,} failed: {first}" if lost else ""
        some = f"{len(wrong):,} of {len(rows):,} rows wrong: .wrong() shows them"
        cut = int(rows["cut_thinking"].sum()) if "cut_thinking" in rows else 0
        thought = f"{cut:,} ran out of tokens while thinking" if cut else ""
        said = [some if len(lost) < len(rows) else "", thought, why]
        lines.append("; ".join(filter(None, said)))
        html.append(note(lines[-1]))
        shown = wrong[_informative([*wrong.columns])].head(WRONG)
        html.append(table([*map(str, shown)], shown.itertuples(index=False)) if len(shown) else "")
    else:
        lines.append(f"{len(rows):,} rows in .rows")
        html.append(note(lines[-1]))
    html += [note(f"{len(lost):,} rows failed. First: {first}")] if lost else []
    used = _usage(report.usage).lines[0]
    used += "" if spent(report) is None else f", a cost of {brief(spent(report))}"
    details = f"<details><summary>provenance</summary>{settings(about)}</details>"
    return Card([*lines, used], [*html, note(used), details])


def spent(report: Report) -> float | None:
    """The cost of the answers in the currency of the prices; None if no prices were given."""
    cost = report.provenance.get("cost")
    return cost.get("spent") if isinstance(cost, Mapping) else None


def _informative(columns: list[Any]) -> list[Any]:
    """The columns of a wrong answer that show the question and the answer."""
    if "answer" not in columns:
        return columns[:6]
    before = [name for name in columns[: columns.index("answer")] if name != "run"]
    return [*before[:3], *(n for n in ("answer", "extracted", "text") if n in columns)]


def _usage(usage: Usage) -> Card:
    rate = usage.cache_hit_rate
    about = [f"{usage.from_store:,} from the store"] * bool(usage.from_store)
    about += [f"{usage.failed:,} failed"] * bool(usage.failed)
    cached = f", {rate:.0%} of the prompts' cached" if rate else ""
    used = f"{usage.prompt_tokens:,} + {usage.completion_tokens:,} tokens{cached}"
    parts = [f"{usage.requests:,} requests" + (f" ({', '.join(about)})" if about else ""), used]
    parts += [f"{usage.retries:,} retries"] * bool(usage.retries)
    names = {name: value for name, value in asdict(usage).items() if value != 0}
    names["cached_tokens"] = "unknown" if rate is None else usage.cached_tokens
    return Card([", ".join([*parts, f"{_number(round(usage.seconds, 2))} s"])], [facts(names)])


def _info(info: EngineInfo) -> Card:
    context = f", {info.context_length:,} tokens of context" if info.context_length else ""
    lines = [f"{info.engine}: {info.model}, {info.dtype} on {info.device}{context}"]
    lines += [f"revision {info.revision}"] * bool(info.revision) + [f"why: {info.why}"]
    remarks = [*info.failovers, *info.notes]
    lines += remarks if len(remarks) < 3 else [remarks[0], f"and {len(remarks) - 1} more notes"]
    values = asdict(info) | {"context_length": info.context_length or "unknown"}
    values["versions"] = ", ".join(f"{name} {one}" for name, one in info.versions.items())
    several = {name: "\n".join(values[name]) for name in ("failovers", "notes")}
    return Card([*map(masked, lines)], [settings(values | several)])


def _completion(one: Completion) -> Card:
    if one.error is not None:
        why = f"failed: {masked(one.error)}"
        return Card([why], [note(why), block(one.text)])
    texts = [block(sample.text) for sample in one.samples[:WRONG]]
    return Card([brief(repr(one.text[:WIDTH]), WIDTH), tokens(one)], [*texts, note(tokens(one))])


def _scores(scores: LabelScores) -> Card:
    count = len(scores.errors)
    failed = sum(reason is not None for reason in scores.errors)
    most = "up to " * scores.ragged
    what = f"log-probabilities of {most}{scores.logprobs.shape[1]:,} labels after {count:,} prompts"
    first = f"{what}, {failed:,} failed" if failed else what
    first_ones = {"logprobs": scores.logprobs[:ROWS], "errors": scores.errors[:ROWS]}
    head = replace(scores, **first_ones).frame()  # type: ignore[arg-type]
    values = head.astype(object).where(head.notna(), None)
    shown = table(["", *map(str, head)], [(i, *row) for i, *row in values.itertuples()], count)
    rows = [
        ", ".join(f"{name!r}: {brief(value)}" for name, value in zip(values, row, strict=True))
        for _, *row in values.head(3).itertuples(name=None)
    ]
    return Card([first, *rows], [note(first), shown])


def _texts(scores: TextScores) -> Card:
    count, failed = len(scores.errors), sum(reason is not None for reason in scores.errors)
    first = f"{count:,} texts" + (f", {failed:,} failed" if failed else "")
    if failed < count:
        first += f": perplexity {scores.perplexity:.4g}, {scores.bits_per_byte:.4g} bits per byte"
    head = scores.frame().head(ROWS).astype(object)
    values = head.where(head.notna(), None)
    shown = table(["", *map(str, head)], [(i, *row) for i, *row in values.itertuples()], count)
    return Card([first], [note(first), shown])


def _item(item: Item) -> Card:
    fields = [f"{name}: {brief(repr(value), WIDTH)}" for name, value in item.fields.items()]
    lines = [f"item {item.id}, answer {brief(repr(item.answer))}", *fields[: LINES - 1]]
    return Card(lines, [facts({"id": item.id, **item.fields, "answer": item.answer})])
