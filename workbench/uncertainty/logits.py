"""Logits of six options with the right answers: checked, normalised, split, scored for sets.

Logits are float [n, 6], answers int [n], 0 to 5. A letter that a server does not report is -inf:
its probability is 0, and it is in no set.

LAC scores a letter with 1 - p (Sadinle, Lei and Wasserman 2019, JASA 114:223-234), APS with the
total probability of the letters down to it, likeliest first (Romano, Sesia and Candès 2020,
NeurIPS), here without its random part.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from workbench import values
from workbench.errors import InputError
from workbench.lazy import ArrayLike, NDArray
from workbench.tasks.options import LETTERS

Score = Literal["lac", "aps"]
Rule = Literal["ye2024", "exact"]
MIN_CALIBRATION = 10
"""Minimum items for a calibration; with fewer, sets at the usual levels contain all letters."""
_EXCHANGES = (
    (0, 1), (2, 3), (4, 5), (0, 3), (1, 2), (0, 1), (2, 3), (2, 5), (3, 4), (0, 2), (1, 3), (0, 1),
    (2, 3), (4, 5),
)  # fmt: skip


def check_logits(logits: ArrayLike, answers: ArrayLike) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Both as arrays, the logits in their own precision.

    Args:
        logits: [n, 6], -inf for a missing letter.
        answers: [n], letters or their indexes from 0.

    Raises:
        InputError: wrong shapes, NaN or +inf, a row without any letter, an answer that is not a
            letter, or the same answer in all rows.
    """
    try:
        scores = np.asarray(logits)
    except ValueError as error:  # rows of different lengths
        raise InputError(f"logits are not a table [n, {len(LETTERS)}]: {error}") from error
    if not scores.size:
        raise InputError("logits are empty: there is nothing to score")
    if scores.ndim != 2 or scores.shape[1] != len(LETTERS):
        raise InputError(
            f"logits of shape {scores.shape}: give [n, {len(LETTERS)}], a column for each of "
            f"{', '.join(LETTERS)}; the last two are I don't know and None of the above"
        )
    if not np.issubdtype(scores.dtype, np.floating):
        raise InputError(f"logits of type {scores.dtype}: give floating-point numbers")
    if scores.dtype.itemsize < 4:  # half precision saves memory, but is too coarse to compute with
        scores = scores.astype(np.float32)
    for bad, what in (
        (np.isnan(scores).any(axis=1), "NaN"),
        (np.isposinf(scores).any(axis=1), "+inf"),
        (np.isneginf(scores).all(axis=1), "no letter at all"),
    ):
        if bad.any():
            raise InputError(f"logits: row {int(bad.argmax())} has {what}; leave failed rows out")
    return scores, _places(answers, len(scores))


def _places(answers: ArrayLike, n: int) -> NDArray[np.int64]:
    places = np.asarray(answers)
    if places.shape != (n,):
        raise InputError(
            f"answers of shape {places.shape} for {n} rows of logits: give one per row"
        )
    if places.dtype.kind == "O" and all(isinstance(one, int) for one in places):
        places = places.astype(np.int64)
    if places.dtype.kind in "UO":
        known = {letter: place for place, letter in enumerate(LETTERS)}
        places = np.array([known.get(str(letter), -1) for letter in places], np.int64)
    elif places.dtype.kind not in "iu":
        raise InputError(f"answers of type {places.dtype}: give letters, or their places from 0")
    wrong = (places < 0) | (places >= len(LETTERS))
    if wrong.any():
        row = int(wrong.argmax())
        raise InputError(
            f"answers: row {row} has {str(np.asarray(answers)[row])!r}, not one of A to F"
        )
    if n > 1 and (places == places[0]).all():
        raise InputError(
            f"all {n} answers are {LETTERS[int(places[0])]}: that measures a habit, not knowledge; "
            "shuffle the options"
        )
    return places.astype(np.int64)


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Probabilities over the six letters alone, [n, 6], in the precision of `logits`."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def split_rows(n: int, calibration: float, split_seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rows to calibrate on and rows to test on, at random, the same as scikit-learn's
    `train_test_split(range(n), train_size=calibration, random_state=split_seed)`.

    Raises:
        InputError: `calibration` is not a share, `split_seed` not a seed, or a part is too small.
    """
    calibration = values.real("calibration", calibration, 0, 1, above=True)
    split_seed = values.whole("split_seed", split_seed, 0, 2**32 - 1)
    size = int(n * calibration)
    if size < MIN_CALIBRATION or n - size < 1:
        raise InputError(
            f"{size} items of {n} to calibrate on (calibration={calibration}), at least "
            f"{MIN_CALIBRATION} are needed and 1 to test on: give more items"
        )
    order = np.random.RandomState(split_seed).permutation(n)
    return order[n - size :], order[: n - size]


def conformal_scores(
    logits: NDArray[Any], answers: NDArray[np.int64], score: Score, rule: Rule
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Score - 1 of each letter [n, 6], and of the right one as used in the calibration [n].

    Minus 1, because floats are coarse near a score of 1 and fine near 0.
    """
    published = rule == "ye2024"
    below = logits - logits.max(axis=1, keepdims=True)  # large ones would overflow float32
    p = softmax(below.astype(np.float32 if published else np.float64))
    if score == "lac":
        cells = -p.astype(np.float64)
    elif published:
        order = _published_order(p)
        masses = np.cumsum(np.take_along_axis(p, order, axis=1), axis=1)
        cells = np.empty(p.shape)
        np.put_along_axis(cells, order, masses.astype(np.float64) - 1, axis=1)
    else:
        # Minus the mass of the less likely letters: the mass down to a letter itself rounds to 1
        # for many letters of a confident model, and such ties between items make sets larger.
        # Equally likely letters have the same score: their order must not depend on chance.
        others = p[:, None, :]
        cells = -np.where(others < p[:, :, None], others, 0).sum(axis=2)
    # A probability that underflows counts as missing.
    cells[softmax(below.astype(np.float64)) == 0] = np.inf
    own = cells[np.arange(len(cells)), answers]
    if published and score == "lac":  # it rounds 1 - p for calibration, but compares p
        own = (own.astype(np.float32) + np.float32(1)).astype(np.float64) - 1
    return cells, own


def _published_order(p: NDArray[np.float32]) -> NDArray[np.int64]:
    """Letters of each row, likeliest first; equally likely ones as in the published tables.

    The published order is `np.argsort(p)[::-1]` on a processor with AVX2 or AVX-512, which is a
    bitonic sort: it compares these positions, and swaps them if the first holds more. Other
    processors order ties differently, and one row in seven of the published logits has ties.
    """
    keys, order = p.T.copy(), np.repeat(np.arange(p.shape[1])[:, None], len(p), axis=1)
    for i, j in _EXCHANGES:
        rows = np.flatnonzero(keys[i] > keys[j])
        for table in (keys, order):
            table[i, rows], table[j, rows] = table[j, rows], table[i, rows]
    return order[::-1].T


def threshold(own: NDArray[np.float64], alpha: float, rule: Rule) -> float:
    """The threshold, minus 1 like the scores; inf if there are too few scores for `alpha`.

    The k-th smallest of n scores, k = ceil((n + 1)(1 - alpha)). The published benchmark takes
    NumPy's quantile of level k / n with method "higher", which is the next one, if there is one.
    """
    n = len(own)
    slack = 1e-9 if rule == "exact" else 0.0  # 100 * (1 - 0.45) is above 55 in floats
    k = max(1, math.ceil((n + 1) * (1 - alpha) - slack))
    if k > n:
        return math.inf
    place = k - 1 if rule == "exact" else min(k, n - 1)
    return float(np.partition(own, place)[place])
