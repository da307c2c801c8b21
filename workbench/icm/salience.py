"""Are the labels found more coherent than labels that know nothing? No gold is needed to ask.

Coherence alone is no sign of truth: where all claims have the same label, each predicts the others,
and the energy of such a collapsed search can be that of a good one. So it is compared with what
such labels have on the same claims.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from workbench.errors import InputError
from workbench.icm.claim import Relation, Wording, relations, violated
from workbench.icm.predictability import Reference, Scores, collapsed, energy
from workbench.icm.report import ICMReport
from workbench.icm.scorer import Scorer
from workbench.progress import one_bar
from workbench.stats import difference
from workbench.types import Engine

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

DRAWS = 2  # of random labels


def salience(report: ICMReport, engine: Engine, *, seed: int = 0) -> pd.DataFrame:
    """Energies of the labels found and of others on the same claims, all in the claims' own order.

    Each of the others takes a leave-one-out pass. Of a report in batches it is the first batch,
    which no labels stand before.

    Args:
        report: of a search or of `label_all`; its energy's settings are taken over.
        engine: the one that it was made with.
        seed: of the random labels, of which the mean over 2 draws counts.

    Returns:
        A row for the labels found, inverted, all true, all false and random: labels, energy (nats),
        inconsistencies, below (energy found minus this one), low, high (its 95 % interval, paired
        over claims; claims are judged after each other, so it is a little too narrow), labels_true
        (share of True).

    Raises:
        InputError: fewer than 2 claims have a label.
        EngineError: a claim could not be scored.
    """
    import pandas as pd

    parts = report.provenance.get("batches") or [range(len(report.claims))]
    there = [index for index in parts[0] if report.labels[index] is not None]
    if len(there) < 2:
        raise InputError(f"{len(there)} claims have a label: 2 at least are compared")
    claims = [report.claims[index] for index in there]
    wording = Wording(**report.provenance["wording"])
    chosen = {name: report.provenance[name] for name in ("seed", "scores")}
    order = Reference(Scorer(engine, claims, wording, **chosen))
    related = relations(claims, report.provenance["consistency"])
    known, found = report.scores(), [bool(report.labels[index]) for index in there]
    values = {"found": _values(report, found, {i: known[j] for i, j in enumerate(there)}, related)}
    others = _others(found, seed)
    with one_bar(len(others), "salience", "pass") as bar:
        for name, labels in others:
            mine = _values(report, labels, order.all(tuple(labels)), related)
            mine = mine / DRAWS if name == "random" else mine
            values[name] = values[name] + mine if name in values else mine
            bar.update(1)
    table = pd.DataFrame(_row(name, values["found"], own) for name, own in values.items())
    share = sum(found) / len(found)
    return table.assign(labels_true=[share, 1 - share, 1.0, 0.0, 0.5])


def _others(found: Sequence[bool], seed: int) -> list[tuple[str, list[bool]]]:
    rng = random.Random(f"salience-{seed}")
    labelings = [("inverted", [not label for label in found])]
    labelings += [("all true", [True] * len(found)), ("all false", [False] * len(found))]
    return labelings + [("random", [rng.random() < 0.5 for _ in found]) for _ in range(DRAWS)]


def _values(
    report: ICMReport, labels: Sequence[bool], scores: Scores, related: Sequence[Relation]
) -> NDArray[np.float64]:
    """What each claim adds to the energy if there were just this one, and the violated pairs."""
    import numpy as np

    alpha, objective = report.provenance["alpha"], report.provenance["objective"]
    every = tuple(labels)
    own = [energy(every, {i: score}, (), alpha, objective) for i, score in scores.items()]
    return np.array([*own, len(violated(related, every))])


def _row(name: str, found: NDArray[np.float64], own: NDArray[np.float64]) -> dict[str, Any]:
    apart = difference(name, found[:-1], own[:-1])
    broken = own[-1] - found[-1]
    return {
        "labels": name, "energy": own[:-1].mean() - own[-1], "inconsistencies": own[-1],
        "below": apart.value + broken, "low": apart.low + broken, "high": apart.high + broken,
    }  # fmt: skip


def stands_out(table: pd.DataFrame) -> tuple[bool, str]:
    """Whether the labels found are more coherent than random and inverted ones, and a sentence.

    The same label for all claims is no such rival: each predicts the next in any context, so that
    good labels can have less energy. Labels that are nearly all the same never stand out.

    Args:
        table: of `salience`.
    """
    rows = {str(name): own.iloc[0] for name, own in table.groupby("labels")}
    rival = min(("inverted", "random"), key=lambda name: float(rows[name]["low"]))
    same = max(("all true", "all false"), key=lambda name: float(rows[name]["energy"]))
    found, near, flat = (f"{float(rows[name]['energy']):.1f}" for name in ("found", rival, same))
    share = float(rows["found"]["labels_true"])
    if collapsed(share):
        return False, (
            f"{share:.0%} of the labels found are True, nearly all the same: do not believe them, "
            f"however coherent (energy {found}, {same} {flat})"
        )
    if rows[rival]["low"] <= 0:
        return False, (
            f"the labels found (energy {found}) do not stand out from {rival} ones ({near}): their "
            "coherence is no reason to believe them"
        )
    said = f"the labels found (energy {found}) stand out from random and inverted ones ({near})"
    if rows[same]["low"] <= 0:
        said += (
            f"; {same} is as coherent ({flat}), so that another seed may end there: compare some"
        )
    return True, said
