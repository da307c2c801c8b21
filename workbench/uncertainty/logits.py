"""Logits of six options with the right ones: checked, normalised, split in two, scored for sets.

Logits are float [n, 6]; answers int [n], 0 to 5. A letter that a server leaves out is -inf: its
probability is 0, and it can be in no set.

LAC scores a letter by 1 - p (Sadinle, Lei and Wasserman 2019, JASA 114:223-234), APS by the mass of
the letters down to it, likeliest first (Romano, Sesia and Candès 2020, NeurIPS), here without its
random part.
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
"""Items that a calibration needs: with fewer, sets at the usual levels hold everything."""
_EXCHANGES = (
    (0, 1), (2, 3), (4, 5), (0, 3), (1, 2), (0, 1), (2, 3), (2, 5), (3, 4), (0, 2), (1, 3), (0, 1),
    (2, 3), (4, 5),
)  # fmt: skip


def check_logits(logits: ArrayLike, answers: ArrayLike) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Both as arrays, the logits in their own precision.

    Args:
        logits: [n, 6], -inf where a letter is missing.
        answers: [n], letters or their places from 0.

    Raises:
        InputError: other shapes, NaN or +inf, a row without any letter, an answer that is no
            letter, or the same answer throughout.
    """
    try:
        scores = np.asarray(logits)
    except ValueError as error:  # rows of different lengths
        raise InputError(f"logits are no table [n, {len(LETTERS)}]: {error}") from error
    if not scores.size:
        raise InputError("logits are empty: there is nothing to score")
    if scores.ndim != 2 or scores.shape[1] != len(LETTERS):
        raise InputError(
            f"logits of shape {scores.shape}: give [n, {len(LETTERS)}], a column for each of "
            f"{', '.join(LETTERS)}; the last two are I don't know and None of the above"
        )
    if not np.issubdtype(scores.dtype, np.floating):
        raise InputError(f"logits of type {scores.dtype}: give floating-point numbers")
    if scores.dtype.itemsize < 4:  # halves are kept for room, not for computing
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
        raise InputError(f"answers of shape {places.shape} for {n} rows of logits: give one a row")
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
            f"answers: row {row} has {str(np.asarray(answers)[row])!r}, none of A to F"
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
    """Rows to calibrate on and rows to test on, at random, as scikit-learn's
    `train_test_split(range(n), train_size=calibration, random_state=split_seed)` takes them.

    Raises:
        InputError: `calibration` is no share, `split_seed` no seed, or a part is too small.
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
    """Score - 1 of each letter [n, 6], and of the right one as calibration takes it [n].

    Less 1, since near a score of 1 floats are coarse, and near 0 they are not.
    """
    published = rule == "ye2024"
    below = logits - logits.max(axis=1, keepdims=True)  # else some would not fit into float32
    p = softmax(below.astype(np.float32 if published else np.float64))
    if score == "lac":
        cells = -p.astype(np.float64)
    elif published:
        order = _published_order(p)
        masses = np.cumsum(np.take_along_axis(p, order, axis=1), axis=1)
        cells = np.empty(p.shape)
        np.put_along_axis(cells, order, masses.astype(np.float64) - 1, axis=1)
    else:
        # Less the mass of the less likely letters: the mass down to a letter itself rounds to 1 for
        # many letters of a confident model, and such ties between items make sets larger. Equally
        # likely letters have one score: their order is not chance.
        others = p[:, None, :]
        cells = -np.where(others < p[:, :, None], others, 0).sum(axis=2)
    # One that is too small for a float is as good as missing, and not the last of all the mass.
    cells[softmax(below.astype(np.float64)) == 0] = np.inf
    own = cells[np.arange(len(cells)), answers]
    if published and score == "lac":  # there 1 - p is rounded for calibration, but p is compared
        own = (own.astype(np.float32) + np.float32(1)).astype(np.float64) - 1
    return cells, own


def _published_order(p: NDArray[np.float32]) -> NDArray[np.int64]:
    """Letters of each row, likeliest first, and equally likely ones as in the published tables.

    There the order is `np.argsort(p)[::-1]` on a processor with AVX2 or AVX-512, a bitonic sort:
    it compares these places, and exchanges them where the first holds more. Other processors leave
    equals in another order, and one row in seven of the published logits has equals.
    """
    keys, order = p.T.copy(), np.repeat(np.arange(p.shape[1])[:, None], len(p), axis=1)
    for i, j in _EXCHANGES:
        rows = np.flatnonzero(keys[i] > keys[j])
        for table in (keys, order):
            table[i, rows], table[j, rows] = table[j, rows], table[i, rows]
    return order[::-1].T


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
