"""The results of an evaluation: its report, a verdict per row, a trace of all calls; saving."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from workbench import values
from workbench.agents import AgentCase, AgentOutcome, Ask
from workbench.agents.scheduler import CallRecord
from workbench.clusters import clustered_mean
from workbench.errors import InputError, log
from workbench.files import file_error
from workbench.lazy import pd
from workbench.messages import shown
from workbench.stats import FORMS, mean_share
from workbench.store import digest
from workbench.types import Completion, Grade, Item, Metric, Report, Task, Usage

THINKING = ("reasoning", "reasoning_tokens", "cut_thinking")
"""Columns about thinking."""
LONGEST_NAME = 60
"""Maximum characters in the name of a report's folder in a suite."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Evaluation(Report):
    """A `Report` with one row per item and run, and a trace of all calls.

    Rows have an item's fields and an agent's notes, unless a column of that name exists.

    Attributes:
        trace: one row for each answer to each call: id, run, round, call (its index in the round),
            kind ("ask" or "score"), prompt (a chat as JSON, without the data of images), sample,
            text (log-probabilities as JSON), finish_reason, error, prompt_tokens,
            completion_tokens, from_store; and, of a model that thinks, reasoning and
            reasoning_tokens.
    """

    trace: pd.DataFrame

    def clustered(self, field: str | None) -> Evaluation:
        """The same report, with the accuracy's interval for items that are alike by a field.

        Differences of such reports (`compare`) are clustered too. None is without clusters.

        Raises:
            InputError: as `clusters_of`.
        """
        found = accuracy(self.rows, self.summary[0].name, cluster=field)
        provenance = {**self.provenance, "cluster": field}
        return replace(self, summary=(found, *self.summary[1:]), provenance=provenance)

    def _write(self, folder: Path) -> None:
        super(Evaluation, self)._write(folder)
        self.trace.to_parquet(folder / "trace.parquet", index=False)


def to_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a frame for any file format: valid Unicode, and numbers or texts per column."""
    frame = pd.DataFrame([{name: _valid(v) for name, v in row.items()} for row in rows])
    for name in frame.columns[[kind.kind == "O" for kind in frame.dtypes]]:
        if len({*map(type, frame[name].dropna())}) > 1:
            frame[name] = frame[name].map(str, na_action="ignore")
    return frame


def without_unused(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame without the columns about thinking, if no answer has any."""
    about = [name for name in THINKING if name in frame]
    return frame if frame[about].any(axis=None) else frame.drop(columns=about)


def _valid(value: Any) -> Any:
    """A value without lone surrogates, which a server may send and files cannot hold."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def try_to_grade(task: Task, item: Item, text: str) -> tuple[Grade | None, str | None]:
    """The task's verdict, or the reason why there is none."""
    try:
        return task.grade(item, text), None
    except Exception as failure:  # noqa: BLE001 - a user's code, of any kind
        return None, f"the task's grader raised {type(failure).__name__}: {failure}"


def report_row(case: AgentCase, outcome: AgentOutcome, run: int) -> dict[str, Any]:
    item, answer, error = case.item, outcome.answer, outcome.error
    grade: Grade | None = None
    answers = [call.result for call in outcome.trace if isinstance(call.result, Completion)]
    samples = [sample for one in answers for sample in one.samples]
    cut = sum(sample.cut_thinking for sample in samples)
    if answer and (answer.text.strip() or not cut):  # without an answer, nothing is graded
        grade, error = try_to_grade(case.task, item, answer.text)
    noted = {**(grade.notes if grade else {}), **(answer.notes if answer else {})}
    about = {**item.fields, **noted}
    return {
        "id": item.id,
        "run": run,
        **{name: value for name, value in about.items() if name not in {"id", "run"}},
        "answer": item.answer,
        "text": answer.text if answer else "",
        "extracted": grade and grade.extracted,
        "correct": bool(grade and grade.correct),
        "parsed": bool(grade and grade.parsed),
        "error": error,
        "from_store": bool(samples) and all(sample.from_store for sample in samples),
        "calls": len(outcome.trace),
        "rounds": max((call.round for call in outcome.trace), default=0),
        "prompt_tokens": sum(one.prompt_tokens for one in answers),
        "completion_tokens": sum(sample.completion_tokens for sample in samples),
        "reasoning_tokens": sum(sample.reasoning_tokens or 0 for sample in samples),
        "cut_thinking": cut,
    }


def trace_rows(trace: Sequence[CallRecord]) -> Iterator[dict[str, Any]]:
    for place, record in enumerate(trace):
        call, result = record.call, record.result
        prompt = call.prompt if isinstance(call.prompt, str) else json.dumps(shown(call.prompt))
        kind = "ask" if isinstance(call, Ask) else "score"
        about = {"round": record.round, "call": place, "kind": kind, "prompt": str(prompt)}
        if not isinstance(result, Completion):
            failed = isinstance(result, Exception)
            text = "" if failed else json.dumps(result)
            error = str(result) if failed else None
            yield {**about, "sample": 0, "text": text, "error": error}
            continue
        for number, sample in enumerate(result.samples):
            yield {
                **about,
                "sample": number,
                "text": sample.text,
                "finish_reason": sample.finish_reason,
                "error": sample.error,
                "prompt_tokens": sample.prompt_tokens,
                "completion_tokens": sample.completion_tokens,
                "from_store": sample.from_store,
                "reasoning": sample.reasoning,
                "reasoning_tokens": sample.reasoning_tokens,
            }


def accuracy(rows: pd.DataFrame, name: str = "accuracy", *, cluster: str | None = None) -> Metric:
    """Share of right answers among the rows that did not fail; unparsed ones are wrong.

    With several runs per item, it is the mean of the items' shares, with the interval of that
    mean; `n` counts items, `n_failed` and `n_unparsed` count rows. With `cluster`, the interval is
    for items that are alike where that column is the same (`clusters.clustered_mean`).

    Raises:
        InputError: as `clusters_of`.
    """
    done = rows[rows["error"].isna()]
    missing = {"n_failed": len(rows) - len(done), "n_unparsed": int((~done["parsed"]).sum())}
    shares = done["correct"].astype(float)
    if cluster is not None or ("run" in rows and rows["run"].max()):
        shares = shares.groupby(done["id"]).mean()
    return shares_by(name, shares, clusters_of(rows, cluster), **missing)


def clusters_of(rows: pd.DataFrame, field: str | None) -> pd.Series[str] | None:
    """The value of a field of each item, by id; None without a field.

    Raises:
        InputError: the rows have no such column, or an item has none or several values.
    """
    if field is None:
        return None
    values.known("column to cluster by", field, map(str, rows.columns))
    found = rows[field].astype("string").groupby(rows["id"]).agg(["first", "nunique", "count"])
    if len(wrong := found[(found["nunique"] != 1) | (found["count"] < rows.groupby("id").size())]):
        many = f"{wrong['nunique'].iloc[0]} values of" if wrong["nunique"].iloc[0] > 1 else "no"
        raise InputError(f"item {wrong.index[0]!r} has {many} {field!r}: it cannot be a cluster")
    return found["first"]


def shares_by(
    name: str, shares: pd.Series[float], clusters: pd.Series[str] | None, **missing: Any
) -> Metric:
    """`mean_share` of the items' shares (by id), or with `clusters` (by id) `clustered_mean`."""
    if clusters is None or shares.empty:
        return mean_share(name, shares, **missing)
    return replace(clustered_mean(name, shares, clusters[shares.index]), **missing)


def accuracy_by(rows: pd.DataFrame, field: str, *, cluster: str | None = None) -> list[Metric]:
    """The accuracy of each group of rows, sorted by the groups' names."""
    return [accuracy(part, str(name), cluster=cluster) for name, part in rows.groupby(field)]


def load(folder: str | Path) -> Report:
    """A saved report: its `summary.json` and `rows.parquet`, and an evaluation's trace.

    Raises:
        InputError: a file is missing, or its format is not a report's.
    """
    place = Path(folder).expanduser()
    try:
        saved = json.loads((place / "summary.json").read_text(encoding="utf-8"))
        rows = pd.read_parquet(place / "rows.parquet")
        numbers = saved["summary"]
        forms = chain(saved.get("forms", ()), repeat("number"))  # older reports have none
        pairs = zip(numbers, forms, strict=False)
        summary = tuple(FORMS.get(form, Metric)(**number) for number, form in pairs)
        report = Report(summary, rows, Usage(**saved["usage"]), saved["provenance"])
        if not (place / "trace.parquet").exists():
            return report
        trace = pd.read_parquet(place / "trace.parquet")
        return Evaluation(summary, rows, report.usage, report.provenance, trace)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file_error(place / 'summary.json', error)}; {place} holds no report: pass a folder "
            "with a saved report"
        ) from error


def kept_place(folder: str | Path | None, name: str) -> Path | None:
    """The path of a suite's report of that name, which may be too long for a folder name."""
    if folder is None:
        return None
    plain = re.sub(r"[^\w.,=() -]", "_", name)
    if plain != name or len(name) > LONGEST_NAME:
        plain = f"{plain[:LONGEST_NAME]} {digest(name).hex()[:8]}"
    return Path(folder).expanduser() / plain


def keep(report: Evaluation, place: Path) -> None:
    """Save a report, and replace an existing one."""
    shutil.rmtree(place.resolve(), ignore_errors=True)  # removes nothing if it is a link
    report.save(place)


def load_kept(place: Path, name: str, wanted: Mapping[str, Any]) -> Evaluation | None:
    """The saved report, if it exists, has these settings, and no row failed.

    Raises:
        InputError: it has other settings, another model or other items.
    """
    if not place.exists():
        return None
    report = load(place)
    if not isinstance(report, Evaluation):
        raise InputError(f"{place} has no trace.parquet: remove the folder to compute it again")
    there, here = (_settings(one) for one in (report.provenance, wanted))
    # The digest of the items differs whenever a prompt does: a prompt is the better reason.
    for setting, value in sorted(here.items(), key=lambda pair: pair[0] == "items"):
        if there.get(setting) != value:
            raise InputError(
                f"{place} has {setting}={there.get(setting)!r}, but here it is {value!r}: give "
                "this suite another name, or remove the folder"
            )
    if report.rows["error"].isna().all():
        return report
    log.info("suite: %s has failed rows, which are tried again", name)
    return None


def _settings(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that affect the answers, as read from a file."""
    model = {name: provenance["engine"][name] for name in ("model", "revision")}
    # `items` has what a source gives; clusters change intervals alone
    unlike = {"cluster", "engine", "commit", "style_why", "cost", "source"}
    others = {name: v for name, v in provenance.items() if name not in unlike}
    if sampling := others.get("sampling"):  # earlier reports lack later fields
        others["sampling"] = {name: v for name, v in sampling.items() if v is not None}
    settings: dict[str, Any] = json.loads(json.dumps(model | others, default=str))
    return settings
