"""Scores of letters, the threshold that calibration finds for them, and the sets that follow.

LAC scores a letter by 1 - p (Sadinle, Lei and Wasserman 2019, JASA 114:223-234), APS by the mass of
the letters down to it, likeliest first (Romano, Sesia and Candès 2020, NeurIPS), here without its
random part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from workbench.uncertainty.choices import LETTERS, softmax

if TYPE_CHECKING:
    from numpy.typing import NDArray

Score = Literal["lac", "aps"]
Rule = Literal["ye2024", "exact"]
BOTH: tuple[Score, ...] = ("lac", "aps")
ROOT = len(LETTERS) ** 0.5
"""What a guess over all letters has as its set size, in UAcc: the most that UAcc can be."""
EXCHANGES = (
    (0, 1), (2, 3), (4, 5), (0, 3), (1, 2), (0, 1), (2, 3), (2, 5), (3, 4), (0, 2), (1, 3), (0, 1),
    (2, 3), (4, 5),
)  # fmt: skip
"""Places that a bitonic sort of six compares, and exchanges where the first holds more."""


@dataclass(frozen=True, slots=True, eq=False)
class Sets:
    """The sets that one score gives for the test rows.

    Attributes:
        threshold: the highest score in a set; inf: too few items, or too many truths missing.
        coverage: share of sets that hold the right letter.
        set_size: mean number of letters.
        uacc: accuracy times sqrt(6) / set_size (Ye et al. 2024).
        sets: bool [n_test, 6]; where no letter was in, the likeliest one was put there.
        empty: sets without a letter before that.
        covered_before: coverage before that, the one that conformal prediction speaks of.
    """

    score: Score
    threshold: float
    coverage: float
    set_size: float
    uacc: float
    sets: NDArray[np.bool_]
    empty: int
    covered_before: float


def scored(
    logits: NDArray[Any], answers: NDArray[np.int64], score: Score, rule: Rule
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Score - 1 of each letter [n, 6], and of the right one as calibration takes it [n].

    Less 1, since near a score of 1 floats are coarse, and near 0 they are not.
    """
    published = rule == "ye2024"
    below = logits - logits.max(axis=1, keepdims=True)  # else some would not fit into float32
    p = softmax(below.astype(np.float32 if published else np.float64))
    if score == "lac":
        cells = -p.astype(np.float64)
    elif published:
        cells = _down_to(p)
    else:
        cells = -_beneath(p)
    # One that is too small for a float is as good as missing, and not the last of all the mass.
    cells[softmax(below.astype(np.float64)) == 0] = np.inf
    own = cells[np.arange(len(cells)), answers]
    if published and score == "lac":  # there 1 - p is rounded for calibration, but p is compared
        own = (own.astype(np.float32) + np.float32(1)).astype(np.float64) - 1
    return cells, own


def _down_to(p: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mass of the letters down to each one, likeliest first, less 1."""
    order = _published_order(p)
    masses = np.cumsum(np.take_along_axis(p, order, axis=1), axis=1)
    cells = np.empty(p.shape)
    np.put_along_axis(cells, order, masses.astype(np.float64) - 1, axis=1)
    return cells


def _published_order(p: NDArray[np.float32]) -> NDArray[np.int64]:
    """Letters of each row, likeliest first, and equally likely ones as in the published tables.

    There the order is `np.argsort(p)[::-1]` on a processor with AVX2 or AVX-512, which sorts six
    numbers by these exchanges. Other processors leave equals in another order, and one row in
    seven of the published logits has equals.
    """
    keys, order = p.T.copy(), np.repeat(np.arange(p.shape[1])[:, None], len(p), axis=1)
    for i, j in EXCHANGES:
        rows = np.flatnonzero(keys[i] > keys[j])
        for table in (keys, order):
            table[i, rows], table[j, rows] = table[j, rows], table[i, rows]
    return order[::-1].T


def _beneath(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mass of the letters less likely than each one: 1 less the mass down to it and its equals.

    That mass itself rounds to 1 for many letters of a confident model, and such ties between items
    make sets larger. Equally likely letters have one score: their order is not chance.
    """
    others = p[:, None, :]
    return np.asarray(np.where(others < p[:, :, None], others, 0).sum(axis=2))


def threshold(own: NDArray[np.float64], alpha: float, rule: Rule) -> float:
    """The threshold, less 1 as the scores are: inf where there are too few scores for `alpha`.

    The k-th smallest of n scores, k = ceil((n + 1)(1 - alpha)). NumPy's quantile of level k / n
    with method "higher", which the published benchmark takes, is the one after it if there is one.
    """
    n = len(own)
    slack = 1e-9 if rule == "exact" else 0.0  # 100 * (1 - 0.45) is above 55 in floats
    k = max(1, math.ceil((n + 1) * (1 - alpha) - slack))
    if k > n:
        return math.inf
    place = k - 1 if rule == "exact" else min(k, n - 1)
    return float(np.partition(own, place)[place])


def sets_of(
    score: Score, cells: NDArray[np.float64], answers: NDArray[np.int64],
    predicted: NDArray[np.int64], cut: float,
) -> Sets:  # fmt: skip
    sets = cells <= cut
    rows = np.arange(len(sets))
    before = float(sets[rows, answers].mean())
    empty = ~sets.any(axis=1)
    sets[empty, predicted[empty]] = True
    size = float(sets.sum(axis=1).mean())
    return Sets(
        score=score,
        threshold=1 + cut,
        coverage=float(sets[rows, answers].mean()),
        set_size=size,
        uacc=float((predicted == answers).mean()) * ROOT / size,
        sets=sets,
        empty=int(empty.sum()),
        covered_before=before,
    )
