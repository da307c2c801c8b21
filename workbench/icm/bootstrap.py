"""The cheapest rival of a search: all claims labelled at once, again and again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from workbench.icm.claim import Claim, Labels, Wording, check_claims
from workbench.icm.consistency import Pair, Rule, pairs
from workbench.icm.journal import Journal
from workbench.icm.oracle import Cost, Oracle
from workbench.icm.orders import Scores, by_halves
from workbench.progress import one_bar
from workbench.types import Engine


@dataclass(frozen=True, slots=True)
class Bootstrapped:
    """The labels, after how many rounds, at what cost; `settled` if a last one changed nothing.

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
    """Label claims from what the model says without examples, then from all labels at once.

    At first the half of the claims with the greater log-odds is true. In each round every claim is
    judged after all others with their labels, and takes what is likelier. After each, claims that
    exclude each other take the labels that go together and are likeliest.

    Raises:
        InputError: as `search`.
        EngineError: a claim could not be scored.
    """
    known = check_claims(claims)
    related = pairs(known, consistency)
    oracle = Oracle(engine, known, wording or Wording(), Journal(None, {}))
    everyone = oracle.fitting()
    if oracle.unfit:
        fitting = [known[index] for index in everyone]
        found = bootstrap(fitting, engine, rounds=rounds, consistency=consistency, wording=wording)
        given = dict(zip(everyone, found.labels, strict=True))
        return replace(found, labels=tuple(map(given.get, range(len(known)))))
    nothing: Labels = (None,) * len(known)
    first = dict(enumerate(oracle.score([oracle.prompt(nothing, (), i) for i in everyone])))
    odds = {index: true - false for index, (true, false) in first.items()}
    middle = median(odds.values())
    labels = _mended({i: value - middle for i, value in odds.items()}, related)
    done, settled = 0, False
    with one_bar(rounds, "bootstrapping", "round") as bar:
        while done < rounds and not settled:
            queries = [(others, index) for index, others in by_halves(everyone)]
            prompts = [oracle.prompt(labels, *query) for query in queries]
            scores: Scores = dict(
                zip((index for _, index in queries), oracle.score(prompts), strict=True)
            )
            new = _mended({index: true - false for index, (true, false) in scores.items()}, related)
            settled, labels, done = new == labels, new, done + 1
            bar.update(1)
    return Bootstrapped(labels, done, settled, oracle.cost)


def _mended(odds: dict[int, float], related: Sequence[Pair]) -> tuple[bool, ...]:
    """The labels with the greatest sum of log-odds of those that violate no pair.

    All claims of a group are related, so that at most one answer is true in it. Where that cannot
    do, as with two pairs of comparisons in one group, the fewest pairs are violated.
    """
    labels = [odds[index] > 0 for index in range(len(odds))]
    start: dict[int, int] = {}
    groups: dict[int, list[Pair]] = {}
    for pair in related:  # those of the first claim of a group come first
        start[pair.second] = start.setdefault(pair.first, pair.first)
        groups.setdefault(start[pair.first], []).append(pair)
    for inside in groups.values():
        for index, label in _likeliest(odds, inside).items():
            labels[index] = label
    return tuple(labels)


def _likeliest(odds: dict[int, float], inside: Sequence[Pair]) -> dict[int, bool]:
    """The labels of one group: the claims of one answer are true, or none is."""
    alike = {index: {index} for pair in inside for index in (pair.first, pair.second)}
    for pair in inside:
        if pair.kind == "implication":
            alike[pair.first].add(pair.second)
            alike[pair.second].add(pair.first)
    either = [{pair.first, pair.second} for pair in inside if pair.kind == "asymmetry"]

    def worth(true: set[int]) -> tuple[int, float]:
        return -sum(true.isdisjoint(ends) for ends in either), sum(odds[i] for i in true)

    best = max([set[int](), *alike.values()], key=worth)
    return {index: index in best for index in alike}
