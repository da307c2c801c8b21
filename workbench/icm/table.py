"""A user's table with the labels found, as it came in."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import InputError
from workbench.icm.claim import Claim, Labels

if TYPE_CHECKING:
    import pandas as pd

    from workbench.icm.predictability import Scores
    from workbench.icm.report import ICMReport
    from workbench.icm.testbeds import Testbed

ADDED = ("icm_label", "icm_logprob_true", "icm_logprob_false", "icm_log_odds", "icm_error")
"""The columns that `joined` adds."""


def check_columns(testbed: Testbed) -> None:
    """Whether `joined` can add its columns, to be asked before a long search.

    Raises:
        InputError: the table has such a column already.
    """
    known = () if testbed.table is None else [*map(str, testbed.table.columns)]
    if both := [name for name in ADDED if name in known]:
        raise InputError(
            f"{testbed.name} has a column {both[0]!r} already, which would be lost: rename it, "
            f"and any other of {', '.join(ADDED)}"
        )


def joined(
    testbed: Testbed,
    claims: Sequence[Claim],
    labels: Labels,
    scores: Scores | Mapping[int, tuple[float, float]],
) -> pd.DataFrame:
    """The table of a testbed with the columns `ADDED`: every row, in its order, labelled or not.

    A row that is there twice has the label of its claim both times; that of a comparison says
    whether the first response is better.

    Args:
        testbed: of `read_claims`, or drawn from it.
        claims: those that were labelled, in any order.
        labels: theirs; None where the search did not come to a claim.
        scores: log-probabilities of true and false, in nats, by the claim's place in `claims`.

    Raises:
        InputError: the testbed is of no file, or has such columns already.
    """
    import pandas as pd

    if testbed.table is None:
        raise InputError(f"{testbed.name} was read from no file, so there is no table to join to")
    check_columns(testbed)
    rows: list[tuple[Any, ...]] = [(None, None, None, None, "held out")] * len(testbed.table)
    for places in testbed.places.values():
        for place in places:
            rows[place] = (None, None, None, None, "left out: not among the claims drawn")
    for index, (claim, label) in enumerate(zip(claims, labels, strict=True)):
        true, false = scores.get(index, (None, None))
        odds = None if true is None or false is None else true - false
        for place in testbed.places.get(claim.text, ()):
            rows[place] = (label, true, false, odds, "not reached" if label is None else None)
    added = pd.DataFrame(rows, columns=[*ADDED], dtype=object)
    added = added.astype({"icm_label": "boolean", **dict.fromkeys(ADDED[1:4], float)})
    return pd.concat([testbed.table, added], axis=1)


def with_table(testbed: Testbed, report: ICMReport) -> ICMReport:
    """The report with the rows of the user's file, if its claims are of one."""
    if testbed.table is None:
        return report
    table = joined(testbed, report.claims, report.labels, report.scores())
    for claim, reason in zip(report.claims, report.rows["error"], strict=True):
        if reason is not None:
            table.loc[[*testbed.places.get(claim.text, ())], "icm_error"] = reason
    return replace(report, table=table)


def save_table(frame: pd.DataFrame, path: str | Path) -> Path:
    """Write a table as .jsonl or .csv, in UTF-8, so that texts and numbers come back as they are.

    Raises:
        InputError: another ending, or the file cannot be written.
    """
    target = Path(path).expanduser()
    if target.suffix not in (".jsonl", ".csv"):
        raise InputError(f"{target}: labels are written as .jsonl or .csv")
    plain = frame.astype(object).where(frame.notna(), None)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix == ".csv":
            # Quotes around every text: a lone carriage return is then kept too.
            plain.map(_cell).to_csv(target, index=False, quoting=csv.QUOTE_NONNUMERIC)
        else:
            names = _distinct([*map(str, plain.columns)])
            rows = (dict(zip(names, row, strict=True)) for row in plain.itertuples(index=False))
            target.write_text("".join(f"{_line(row)}\n" for row in rows), "utf-8")
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error}") from error
    return target


def _distinct(names: Sequence[str]) -> list[str]:
    """The names of columns, those that come again with their number: an object has each once."""
    found: list[str] = []
    for name in names:
        number, own = 1, name
        while own in found:
            number, own = number + 1, f"{name}.{number + 1}"
        found.append(own)
    return found


def _line(value: object) -> str:
    """As JSON; half a character, which no file holds, as its escape."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=_plain)
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, default=_plain)
    except TypeError:  # keys that JSON has not
        own = value.items() if isinstance(value, Mapping) else ()
        plain = {str(k): v if isinstance(v, str | int | float | None) else str(v) for k, v in own}
        return json.dumps(plain or str(value), ensure_ascii=True)
    return text


def _cell(value: object) -> object:
    """Lists and objects as JSON, which a reader of CSV can take apart again."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return _line(value) if isinstance(value, dict | list | tuple) else value


def _plain(value: Any) -> object:
    """What JSON has no word for: NumPy's numbers and arrays as Python's, all else as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
