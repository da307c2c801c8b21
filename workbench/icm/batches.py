"""Whole data sets, batch after batch: each is searched with the labels of those before it shown.

The paper labels its data so (Wen et al. 2025, section 3.1, batches of 256): one search over all
claims would ask for each of them after all others, again and again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

from workbench.errors import InputError
from workbench.icm.claim import Claim, Wording
from workbench.icm.consistency import pairs, violated
from workbench.icm.journal import Journal
from workbench.icm.objective import energy
from workbench.icm.oracle import Oracle, Score
from workbench.icm.report import ICMReport, Result, make_report, said_by
from workbench.icm.search import search
from workbench.icm.settings import Settings
from workbench.icm.table import with_table
from workbench.icm.testbeds import Testbed, parts_of
from workbench.progress import one_bar
from workbench.types import Engine, Usage

COUNTED = ("prompts", "prompt_tokens", "computed_tokens")


def label_all(
    claims: Sequence[Claim] | Testbed,
    engine: Engine,
    *,
    batch_size: int = 128,
    wording: Wording | None = None,
    checkpoint: str | Path | None = None,
    **settings: Any,
) -> ICMReport:
    """Find labels of any number of claims, in batches.

    Each batch is a `search` of its own, with all labels found before shown first in its prompts.
    These never change, and the energy of a batch is that of its own claims. The first batch begins
    with `n_seeds` random labels; each later one with all its claims labelled as those before it
    predict: the energy is a mean, so a pool that grew from a few claims would refuse all that are
    less predictable than these. Where not all labels fit into the context, see `Oracle`.

    Args:
        batch_size: claims that are searched together, at most, see `split`.
        checkpoint: a folder with a journal for each batch. Killed and started again, batches that
            ended cost nothing, and the others end as they would have.
        settings: of `search`, such as `alpha` and `on_step`, the same for each batch.

    Returns:
        The report over all claims: scores within their batch, the energy of all, a history with
        the column `batch` (from 1); `provenance["batches"]` has the claims of each, by index.

    Raises:
        InputError, EngineError: as `search`; `batch_size` is no whole number from 1.
    """
    bed, before = claims if isinstance(claims, Testbed) else None, engine.usage
    known, put = parts_of(claims, wording)
    names = {field.name for field in fields(Settings)}
    if unknown := sorted({*settings} - names - {"on_step"}):
        raise InputError(f"{unknown[0]!r} is no setting of a search; there are {sorted(names)}")
    Settings(**{name: value for name, value in settings.items() if name in names})
    oracle = Oracle(engine, known, put, Journal(None, {}), seed=settings.get("seed", 0))
    there, found = oracle.fitting(), list[ICMReport]()
    parts = [[there[i] for i in one] for one in split([known[i] for i in there], batch_size)]
    labelled: list[tuple[Claim, bool]] = []
    with over(len(parts), "icm in batches", "batch") as step:
        for number, part in enumerate(parts, 1):
            path = None if checkpoint is None else Path(checkpoint) / f"batch-{number}.jsonl"
            one = search(
                [known[i] for i in part], engine, wording=put, after=labelled, everyone=True,
                checkpoint=path, **settings,
            )  # fmt: skip
            labelled += one.labelled()
            found.append(one)
            step()
    usage = engine.usage.since(before)
    return with_table(bed, _joined(known, parts, found, oracle.unfit, engine=engine, usage=usage))


@contextmanager
def over(count: int, what: str, unit: str) -> Iterator[Callable[[], object]]:
    """A bar over parts that have bars of their own, if there are several; yields a step of it."""
    if count < 2:
        yield lambda: None
        return
    with one_bar(count, what, unit) as bar:
        yield lambda: bar.update(1)


def split(claims: Sequence[Claim], batch_size: int) -> list[list[int]]:
    """The claims, by index, in batches of whole groups: each goes into the first that has room.

    A group that is larger than `batch_size` is a batch of its own.

    Raises:
        InputError: `batch_size` is no whole number from 1.
    """
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise InputError(f"batch_size={batch_size!r}: must be a whole number from 1")
    groups: dict[str, list[int]] = {}
    for index, claim in enumerate(claims):
        groups.setdefault(claim.group, []).append(index)
    parts: list[list[int]] = []
    for group in groups.values():
        room = (part for part in parts if len(part) + len(group) <= batch_size)
        if (part := next(room, None)) is None:
            parts.append(part := [])
        part += group
    return parts


def _joined(
    claims: tuple[Claim, ...],
    parts: Sequence[Sequence[int]],
    found: Sequence[ICMReport],
    unfit: Mapping[int, str],
    *,
    engine: Engine,
    usage: Usage,
) -> ICMReport:
    """One report of all batches, as if it were that of one search."""
    settings = dict(found[0].provenance)
    alpha, objective = settings["alpha"], settings["objective"]
    labels: list[bool | None] = [None] * len(claims)
    scores: dict[int, Score] = {}
    for part, one in zip(parts, found, strict=True):
        scores |= {part[place]: score for place, score in one.scores().items()}
        for index, label in zip(part, one.labels, strict=True):
            labels[index] = label
    final, related = tuple(labels), pairs(claims, settings["consistency"])
    total = energy(final, scores, related, alpha, objective)
    left = [f"left out, as the context does not hold them: {len(unfit)} of {len(claims)} claims"]
    result = Result(
        final,
        scores,
        related,
        total,
        (total + len(violated(related, final))) / alpha,
        _history(parts, found),
        reduce(add, (one.cost for one in found)),
        said_by("batch", {number: one.notes for number, one in enumerate(found, 1)})
        + left * bool(unfit),
        unfit,
    )
    kept = {name: settings[name] for name in (*(f.name for f in fields(Settings)), "wording")}
    return make_report(claims, result, engine, usage, kept | {"batches": [*map(list, parts)]})


def _history(parts: Sequence[Sequence[int]], found: Sequence[ICMReport]) -> list[dict[str, Any]]:
    """All rows with their batch, claims by their index among all, and sums over all until then."""
    spent: dict[str, Any] = dict.fromkeys((*COUNTED, "seconds"), 0)
    rows: list[dict[str, Any]] = []
    for number, (part, one) in enumerate(zip(parts, found, strict=True), 1):
        ends = dict(spent)
        for values in one.history.to_dict("records"):
            row = {str(name): value for name, value in values.items()}
            claim = -1 if row["claim"] < 0 else part[row["claim"]]
            ends = {name: spent[name] + row[name] for name in spent}
            rows.append({"batch": number, **row, "claim": claim, **ends})
        spent = ends | {name: spent[name] + getattr(one.cost, name) for name in COUNTED}
    return rows
