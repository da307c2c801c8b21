"""Compare a search with its alternatives, on the same claims and the same test."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from workbench.engines.vllm import VLLMEngine
from workbench.errors import EngineError, InputError
from workbench.icm.annealing import Step
from workbench.icm.claim import (
    Claim,
    Labelled,
    Labels,
    Rule,
    Wording,
    check_claims,
    consistent_labels,
    relations,
)
from workbench.icm.compare import (
    AUROC,
    ONCE,
    discrimination,
    evaluate_chat,
    evaluate_labels,
    method_table,
    seed_notes,
    verdict_row,
    verdicts,
)
from workbench.icm.predictability import by_halves
from workbench.icm.report import ICMReport, said_by
from workbench.icm.scorer import Cost, Scorer
from workbench.icm.search import checked_settings, label_all, search
from workbench.icm.testbeds import Testbed
from workbench.lazy import pd
from workbench.progress import one_bar
from workbench.runs import commit
from workbench.stats import Share
from workbench.types import Engine, Report, Usage

METHODS = (
    "majority class", "zero-shot", "zero-shot chat", "random labels", "bootstrapping", "ICM",
    "golden labels",
)  # fmt: skip
"""All methods; the last four show labelled claims to the model."""
GOLD_NEEDED = ("majority class", "golden labels")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ICMStudy(Report):
    """A `Report`; `rows` has one row per method, seed and test claim.

    Attributes:
        methods: one row per method, see `compare.method_table`.
        runs: one row per method and seed; `methods` is made from it.
        searches: the report of each search, in the order of the seeds.
        notes: caveats to know before quoting a number.
        testbed: all claims; saved as `claims.parquet`, in their order, to repeat the study.
    """

    methods: pd.DataFrame
    runs: pd.DataFrame
    searches: tuple[ICMReport, ...]
    notes: tuple[str, ...]
    testbed: Testbed

    def _write(self, folder: Path) -> None:
        Report._write(self, folder)
        self.methods.to_csv(folder / "methods.csv", index=False)
        self.runs.to_csv(folder / "runs.csv", index=False)
        sides = {"claims": self.testbed.claims, "test": self.testbed.test}
        each = [asdict(one) | {"side": side} for side, claims in sides.items() for one in claims]
        pd.DataFrame(each).astype({"gold": "boolean"}).to_parquet(folder / "claims.parquet")
        for found in self.searches:
            part = folder / f"search-{found.provenance['seed']}"
            part.mkdir()
            found._write(part)


@dataclass(frozen=True, slots=True)
class Bootstrapped:
    """Labels, number of rounds and cost; `settled` if the last round changed nothing.

    A claim that does not fit into the context has no label, as in a search.
    """

    labels: Labels
    rounds: int
    settled: bool
    cost: Cost


def bootstrap(
    claims: Sequence[Claim],
    engine: Engine,
    *,
    rounds: int = 10,
    consistency: Rule = "auto",
    wording: Wording | None = None,
) -> Bootstrapped:
    """Label claims with the model's zero-shot answers, then repeatedly from all other labels.

    It is the cheapest alternative to a search. At first the half of the claims with the greater
    log-odds is true. In each round every claim is judged after all others with their labels, and
    gets the likelier label. Then claims that exclude each other get consistent labels.

    Raises:
        InputError: as `search`.
        EngineError: a claim could not be scored.
    """
    known = check_claims(claims)
    related = relations(known, consistency)
    scorer = Scorer(engine, known, wording or Wording())
    there = scorer.fitting()
    if scorer.unfit:
        fitting = [known[index] for index in there]
        done = bootstrap(fitting, engine, rounds=rounds, consistency=consistency, wording=wording)
        labels_of = dict(zip(there, done.labels, strict=True))
        return replace(done, labels=tuple(map(labels_of.get, range(len(known)))))

    def log_odds(labels: Labels, queries: Sequence[tuple[int, Sequence[int]]]) -> dict[int, float]:
        scores = scorer.score([scorer.prompt(labels, others, i) for i, others in queries])
        both = zip(queries, scores, strict=True)
        return {index: true - false for (index, _), (true, false) in both}

    odds = log_odds((None,) * len(known), [(index, ()) for index in there])
    middle = median(odds.values())
    labels = consistent_labels({i: value - middle for i, value in odds.items()}, related)
    done_rounds, settled = 0, False
    with one_bar(rounds, "bootstrapping", "round") as bar:
        while done_rounds < rounds and not settled:
            new = consistent_labels(log_odds(labels, [*by_halves(there)]), related)
            settled, labels, done_rounds = new == labels, new, done_rounds + 1
            bar.update(1)
    return Bootstrapped(labels, done_rounds, settled, scorer.cost)


def study(
    testbed: Testbed,
    engine: Engine,
    *,
    count: int | None = None,
    batch_size: int | None = None,
    seeds: Sequence[int] = (0,),
    methods: Sequence[str] = METHODS,
    checkpoints: str | Path | None = None,
    on_step: Callable[[Step], object] | None = None,
    **settings: Any,
) -> ICMStudy:
    """Run the search and its alternatives; each method's labels are tested on the same claims.

    Args:
        testbed: claims and test claims.
        count: claims to draw for each seed; None is all.
        batch_size: label them in batches, see `label_all`; None is one search.
        seeds: each draws claims, random labels and a search.
        methods: some of `METHODS`. Those that need gold labels are left out if there are none, and
            the chat if the model has no chat template.
        checkpoints: a folder for the journal of each search.
        settings: of `search`, such as `alpha`.

    Raises:
        InputError: an unknown method or setting, no seeds, no gold test labels, or no method left.
        EngineError: a claim could not be scored.
    """
    _check(testbed, seeds, methods, settings)
    chosen, notes = _possible(testbed, methods, settings)
    before, bench = engine.usage, _Bench(engine, checkpoints, on_step, batch_size, settings)
    with one_bar(len(seeds) * len(chosen), "study", "method") as bar:
        for seed in seeds:
            bed = testbed.draw(count, seed)
            for method in chosen:
                if method not in ONCE:
                    bench.run(method, bed, [seed])
                elif seed == seeds[0]:
                    bench.run(method, bed, seeds)
                bar.update(1)
    if not bench.rows:
        raise InputError(f"methods={list(methods)!r}: none is left. {'; '.join(bench.notes)}")
    used = engine.usage.since(before)
    rows, runs = pd.concat(bench.rows, ignore_index=True), pd.DataFrame(bench.runs)
    table = method_table(rows, runs)
    notes += bench.notes + verdicts(rows, table) + seed_notes(rows, runs) + _on_costs(engine, used)
    if bench.searches:
        notes += said_by("seed", {one.provenance["seed"]: one.notes for one in bench.searches})
    provenance = {
        "testbed": testbed.name, "count": count, "batch_size": batch_size, "seeds": list(seeds),
        "methods": list(chosen), **settings, "wording": asdict(testbed.wording), "notes": notes,
        "source": testbed.source, "engine": asdict(engine.info), "commit": commit(),
    }  # fmt: skip
    columns = table[["method", "value", "low", "high", "n", "n_failed"]]
    summary = tuple(
        Share(f"{name}: test accuracy", *values)
        for name, *values in columns.itertuples(index=False, name=None)
    )
    return ICMStudy(
        summary, rows, used, provenance, table, runs, tuple(bench.searches), tuple(notes), testbed,
    )  # fmt: skip


def _check(
    testbed: Testbed, seeds: Sequence[int], methods: Sequence[str], settings: dict[str, Any]
) -> None:
    if not testbed.test or any(claim.gold is None for claim in testbed.test):
        raise InputError(f"{testbed.name}: a study needs test claims with gold labels")
    if not isinstance(seeds, Sequence) or not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds={seeds!r}: give at least 1, all different")
    unknown = sorted({*methods} - {*METHODS})
    if unknown or not methods:
        raise InputError(f"methods={unknown or methods!r}: give some of {', '.join(METHODS)}")
    for seed in seeds:
        checked = checked_settings(settings, seed=seed)
    relations(testbed.claims, checked.consistency)


def _possible(
    testbed: Testbed, methods: Sequence[str], settings: dict[str, Any]
) -> tuple[list[str], list[str]]:
    chosen, notes = [method for method in METHODS if method in methods], list[str]()
    if any(claim.gold is None for claim in testbed.claims):
        left = [method for method in chosen if method in GOLD_NEEDED]
        notes = [f"{method}: left out, as not all claims have gold labels" for method in left]
        chosen = [method for method in chosen if method not in left]
    if not chosen:
        raise InputError(f"methods={list(methods)!r}: none is left. {'; '.join(notes)}")
    if settings.get("consistency") == "gold_key_replication" and "bootstrapping" in chosen:
        notes.append("bootstrapping: consistency was judged by the gold labels, which leaked in")
    return chosen, notes


def _on_costs(engine: Engine, used: Usage) -> list[str]:
    """Notes on costs in the table that are not those of each method alone."""
    notes = []
    if used.from_store:
        notes.append(
            f"{used.from_store} of {used.requests} answers came from the response store and cost "
            "nothing: costs are those of the rest"
        )
    if used.cached_tokens is None:
        notes.append("the server does not report cached tokens: the true costs may be lower")
    elif used.cached_tokens and not isinstance(engine, VLLMEngine):
        notes.append(
            "this engine's prefix cache cannot be emptied: what one method computed is free for "
            "the next"
        )
    return notes


@dataclass(slots=True)
class _Bench:
    """Runs methods; collects a frame of verdicts and a row of facts for each run."""

    _engine: Engine
    _checkpoints: str | Path | None
    _on_step: Callable[[Step], object] | None
    _batch_size: int | None
    _settings: dict[str, Any]
    rows: list[pd.DataFrame] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    searches: list[ICMReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def run(self, method: str, bed: Testbed, seeds: Sequence[int]) -> None:
        """Run a method for these seeds, or once if it does not depend on them."""
        seed = seeds[0]
        self._forget()
        labelled, finding = self._labelled(method, bed, seed)
        self._forget()
        before = self._engine.usage
        try:
            rows = self._judged(method, bed, labelled)
        except (InputError, EngineError) as error:  # a server may refuse each chat
            if method != "zero-shot chat":
                raise
            self.notes.append(f"{method}: left out ({error})")
            return
        spent = self._engine.usage.since(before)
        used = Cost.of(spent.requests, spent)
        facts: dict[str, Any] = {
            "method": method,
            "seed": seed,
            "labels": len(labelled),
            "label_accuracy": _mean(
                label is claim.gold for claim, label in labelled if claim.gold is not None
            ),
            "labels_true": _mean(label for _, label in labelled),
        }
        auroc = discrimination("", rows["log_odds"], rows["answer"] == "True")
        facts |= dict(zip(AUROC, (auroc.value, auroc.low, auroc.high), strict=True))
        for name, cost in (("finding", finding), ("test", used)):
            facts |= {f"{name}_{key}": value for key, value in asdict(cost).items()}
        self.runs.append(facts)
        self.rows += [rows.assign(method=method, seed=one) for one in seeds]

    def _forget(self) -> None:
        """Empty the prefix cache, so that no method benefits from the prompts of another."""
        if isinstance(self._engine, VLLMEngine):
            self._engine.llm.reset_prefix_cache()

    def _labelled(self, method: str, bed: Testbed, seed: int) -> tuple[Labelled, Cost]:
        """The labels that a method shows (empty for some methods), and their cost."""
        if method == "ICM":
            found = self._search(bed, seed)
            return found.labelled(), found.cost
        if method == "bootstrapping":
            rule = self._settings.get("consistency", "auto")
            done = bootstrap(bed.claims, self._engine, consistency=rule, wording=bed.wording)
            both = zip(bed.claims, done.labels, strict=True)
            return [(claim, label) for claim, label in both if label is not None], done.cost
        rng = random.Random(f"random-labels-{seed}")
        if method == "random labels":
            return [(claim, rng.random() < 0.5) for claim in bed.claims], Cost()
        if method == "golden labels":
            return [(claim, bool(claim.gold)) for claim in bed.claims], Cost()
        return [], Cost()

    def _search(self, bed: Testbed, seed: int) -> ICMReport:
        path = self._checkpoints and Path(self._checkpoints) / f"{bed.name}-seed-{seed}"
        options = {"wording": bed.wording, "seed": seed, "on_step": self._on_step, **self._settings}
        if self._batch_size is None:
            journal = path and path.with_name(f"{path.name}.jsonl")
            found = search(bed, self._engine, checkpoint=journal, **options)
        else:
            found = label_all(
                bed, self._engine, batch_size=self._batch_size, checkpoint=path, **options
            )
        self.searches.append(found)
        return found

    def _judged(self, method: str, bed: Testbed, labelled: Labelled) -> pd.DataFrame:
        if method == "zero-shot chat":
            return evaluate_chat(bed.test, self._engine, wording=bed.wording).rows
        if method != "majority class":
            return evaluate_labels(labelled, bed.test, self._engine, wording=bed.wording).rows
        gold = [claim.gold for claim in bed.claims]
        verdict = 2 * sum(map(bool, gold)) > len(gold)
        return pd.DataFrame([verdict_row(claim, verdict) for claim in bed.test])


def _mean(values: Iterable[bool]) -> float | None:
    known = list(values)
    return sum(known) / len(known) if known else None
