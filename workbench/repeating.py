"""Each experiment again, from what the provenance of its report names.

A part that cannot be had here, or that the report lacks, raises an error of ours that names it.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

from workbench.agents import AGENTS, Agent, BestOfN, MajorityVote, SelfRefine, named
from workbench.cases import as_task
from workbench.engines import ENGINES, open_engine
from workbench.errors import InputError
from workbench.evaluation import evaluate
from workbench.icm.annealing import Settings
from workbench.icm.claim import Claim, Wording
from workbench.icm.search import label_all, search
from workbench.icm.study import study
from workbench.icm.testbeds import Testbed
from workbench.lazy import pd
from workbench.tasks import TASKS, MultipleChoice, open_choices, open_task
from workbench.tasks.origin import Source, sums
from workbench.tasks.rows import is_path
from workbench.types import Engine, Report, Sampling, Task
from workbench.uncertainty.elicitation import elicit, join_reports
from workbench.uncertainty.sampling import sample_uncertainty
from workbench.values import is_missing

CLASSES: Mapping[str, Callable[..., Agent]] = {
    one.__name__: one for one in (MajorityVote, BestOfN, SelfRefine)
}
IN_MEMORY = "{} was custom code or rows in memory, which a report does not hold: pass it as {}=…"


class Saved(dict[str, Any]):
    """A provenance that names what it lacks."""

    def __missing__(self, name: str) -> Any:
        raise InputError(f"the report lacks {name!r}: an earlier version saved it")


@dataclass(frozen=True, slots=True)
class Again:
    """A report to repeat, and what the caller gives instead of its parts.

    Attributes:
        given: model, engine, task, agent and same: None, or what replaces the report's.
        options: of the engine, instead of the report's.
        folder: where the report is saved; None if it was not read from a folder.
        testbed: of a study in memory.
        notes: what is to be said of the comparison; filled as parts are opened.
    """

    then: Report
    given: Mapping[str, Any]
    options: Mapping[str, Any]
    store: str | Path | None
    folder: Path | None
    testbed: Testbed | None
    notes: list[str] = field(default_factory=list)

    @property
    def about(self) -> Saved:
        return Saved(self.then.provenance)

    @contextmanager
    def engine(self, info: Mapping[str, Any]) -> Iterator[Engine]:
        """The engine of a report, past the store, in the report's number format."""
        kind: Any = self.given["engine"] or info["engine"]
        if not isinstance(kind, str):
            yield kind
            return
        if kind not in ENGINES:
            raise InputError(IN_MEMORY.format(f"the engine {kind!r}", "engine"))
        if "options" not in info:
            self.notes.append("the report lacks the engine's options: the defaults are used")
        saved = info.get("options", {}) if kind == info["engine"] else {}
        options = {n: v for n, v in saved.items() if "." not in n} | dict(self.options)
        arguments = (self.given["model"] or info["model"], kind)
        opened = open_engine(*arguments, store=self.store, **options)
        if kind != "remote" and "dtype" not in options and opened.info.dtype != info["dtype"]:
            opened.close()  # "auto" is another format on this device
            options["dtype"] = info["dtype"]
            opened = open_engine(*arguments, store=self.store, **options)
        with opened:
            yield opened

    def source(self, source: Source | None, name: str) -> tuple[str, dict[str, Any]]:
        """What opens a task: its name or its file, which may have moved, and arguments."""
        if source is None and not {"source", "sources"} & self.about.keys():
            self.notes.append(f"the report lacks the task's source: {name} is opened by its name")
            return name, {}
        if source is None:
            raise InputError(IN_MEMORY.format(f"the task {name!r}", "task"))
        moved = self.given["task"] if is_path(source["name"]) else None
        return str(moved or source["name"]), dict(source["arguments"])

    def task(self) -> Task:
        """The task, opened from its source."""
        given, source = self.given["task"], self.about.get("source")
        if given is not None and not (isinstance(given, str | Path) and source):
            return as_task(given)
        name, arguments = self.source(source, self.about["task"])
        opens: Callable[..., Task] | None = TASKS.get(name)
        return opens(**arguments) if opens else open_task(name, **arguments)

    def choices(self) -> list[MultipleChoice]:
        """The tasks of six options."""
        given = self.given["task"]
        if given is not None and not isinstance(given, str | Path):
            return [*given] if isinstance(given, list | tuple) else [given]
        names = self.about["tasks"]
        each = zip(self.about.get("sources", [None] * len(names)), names, strict=True)
        found = [self.source(*one) for one in each]
        return [open_choices(name, **arguments) for name, arguments in found]

    def agent(self) -> str | Agent:
        """The agent, from a name such as "standard" or "MajorityVote(samples=8, …)"."""
        name = self.given["agent"] or self.about["agent"]
        if not isinstance(name, str) or name in AGENTS:
            return cast("str | Agent", name)
        try:
            call = cast("ast.Call", ast.parse(name, mode="eval").body)
            known = {str(one.arg): ast.literal_eval(one.value) for one in call.keywords}
            agent = CLASSES[cast("ast.Name", call.func).id](**known)
        except (SyntaxError, AttributeError, KeyError, ValueError, TypeError):
            agent = None
        if agent is None or named(agent) != name:
            raise InputError(IN_MEMORY.format(f"the agent {name!r:.80}", "agent"))
        return agent

    def bed(self) -> Testbed:
        """The claims of a study, from `claims.parquet`."""
        if self.testbed is not None:
            return self.testbed
        if self.folder is None or not (file := self.folder / "claims.parquet").exists():
            raise InputError("the study has no claims.parquet: pass the folder of one that has")
        rows = pd.read_parquet(file)
        claims, test = (tuple(claims_of(rows[rows["side"] == one])) for one in ("claims", "test"))
        return Testbed(self.about["testbed"], claims, test, self.wording())

    def wording(self) -> Wording:
        return Wording(**self.about["wording"])

    def with_source(self, now: Report) -> Report:
        """The report with the digests of the claims' files as they are here."""
        source = self.about.get("source") or {"name": "", "files": {}}
        files = sums(source["name"], *source.get("arguments", {}).values())
        if files != source["files"]:
            self.notes.append(f"{source['name']} is another here; the report's claims were used")
        here = self.about.get("source") and {**source, "files": files}
        return replace(now, provenance={**now.provenance, "source": here})

    def limits(self, now: Report) -> None:
        """Note what the comparison cannot show."""
        rows = self.then.rows
        if stored := int(rows["from_store"].sum()) if "from_store" in rows else 0:
            self.notes.append(f"{stored:,} rows of the report came from a store: other versions "
                              "may have computed them")  # fmt: skip
        infos = [one.provenance.get("engine", {}) for one in (self.then, now)]
        seedless = any("no seed" in text for one in infos for text in one.get("notes", ()))
        if seedless or ("sampling" in self.about and self.about.get("seed") is None):
            self.notes.append("sampled without a seed: the answers cannot be the same exactly")


def claims_of(rows: pd.DataFrame) -> list[Claim]:
    """The claims in a report's rows; ids that are only their places are left out."""
    own = not pd.api.types.is_integer_dtype(rows["id"])
    names = ["text", "group", "answer_key", "gold", *(["id"] if own else [])]
    each = rows[names].astype(object).to_dict("records")
    known = [{n: None if is_missing(v) else v for n, v in row.items()} for row in each]
    return [Claim(**cast("dict[str, Any]", row)) for row in known]


def _evaluate(again: Again) -> Report:
    about, task, agent = again.about, again.task(), again.agent()
    with again.engine(about["engine"]) as engine:
        return evaluate(
            task, engine, agent, about["count"], about["num_runs"], about.get("seed") or 0,
            shots=about["shots"], style=about["style"], prompt=about.get("prompt"),
            sampling=Sampling(**about["sampling"]), cluster=about.get("cluster"),
        )  # fmt: skip


def _sample(again: Again) -> Report:
    about, task, same = again.about, again.task(), again.given["same"] or again.about["same"]
    if isinstance(same, str) and same != "grader":
        raise InputError(IN_MEMORY.format(f"same={same!r:.80}", "same"))
    with again.engine(about["engine"]) as engine:
        return sample_uncertainty(
            task, engine, about["count"], about.get("seed") or 0, samples=about["samples"],
            temperature=about["temperature"], shots=about["shots"], style=about["style"],
            same=cast("Any", same), p_true=about["p_true"],
        )  # fmt: skip


def _elicit(again: Again) -> Report:
    about, tasks, infos, reports = again.about, again.choices(), again.about["engines"], []
    if len(infos) > 1 and (again.given["model"] or again.given["engine"]):
        raise InputError(f"the report has {len(infos)} models: model and engine replace only one")
    for info in infos:
        with again.engine(info) as engine:
            one = elicit(tasks, [engine], about["prompts"], count=about["count"],
                         seed=about["seed"], chat=about["chat"])  # fmt: skip
        reports.append(replace(one, rows=one.rows.assign(model=info["model"])))
    return join_reports(reports)


def _search(again: Again) -> Report:
    about, claims = again.about, claims_of(again.then.rows)
    if about.get("after"):
        raise InputError(f"{about['after']} labels were given as after=…: no report holds them")
    settings = {name.name: about[name.name] for name in fields(Settings)}
    settings |= {"wording": again.wording()}
    with again.engine(about["engine"]) as engine:
        if "batches" in about:
            found = label_all(claims, engine, batch_size=about["batch_size"], **settings)
        else:
            found = search(claims, engine, everyone=about.get("everyone", False), **settings)
    return again.with_source(found)


def _study(again: Again) -> Report:
    about, bed = again.about, again.bed()
    settings = {one.name: about[one.name] for one in fields(Settings) if one.name in about}
    with again.engine(about["engine"]) as engine:
        done = study(bed, engine, count=about["count"], batch_size=about["batch_size"],
                     seeds=about["seeds"], methods=about["methods"], **settings)  # fmt: skip
    return again.with_source(done)


@dataclass(frozen=True, slots=True)
class Kind:
    """An experiment: the names in the provenance that show it, the columns that name its rows,
    and how it runs again."""

    marks: set[str]
    columns: tuple[str, ...]
    run: Callable[[Again], Report]

    def key(self, report: Report) -> list[str]:
        """The columns that name a row; without the run if there is one."""
        several = "run" in report.rows and int(report.rows["run"].max()) > 0
        return [name for name in self.columns if name != "run" or several]


KINDS = {
    "elicit": Kind({"engines", "prompts"}, ("model", "task", "prompt", "id"), _elicit),
    "sample_uncertainty": Kind({"p_true", "samples"}, ("id",), _sample),
    "study": Kind({"testbed", "methods"}, ("method", "seed", "id"), _study),
    "search": Kind({"n_seeds", "wording"}, ("id",), _search),
    "evaluate": Kind({"agent", "sampling"}, ("id", "run"), _evaluate),
}


def kind_of(report: Report) -> Kind:
    """The experiment of a report, by its provenance.

    Raises:
        InputError: it cannot be repeated.
    """
    for kind in KINDS.values():
        if kind.marks <= report.provenance.keys():
            return kind
    known = ", ".join(KINDS)
    raise InputError(f"no experiment that can be repeated: pass a report of one of {known}")
