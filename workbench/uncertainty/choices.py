"""Log-probabilities of six options with the right ones: checked, normalised, split in two.

Logits are float [n, 6]; answers int [n], 0 to 5. A letter that a server did not tell is -inf: its
probability is 0, and it can be in no set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

LETTERS = tuple("ABCDEF")
LEAST = 10
"""Items that a calibration needs: with fewer, sets at the usual levels hold everything."""


def checked(logits: ArrayLike, answers: ArrayLike) -> tuple[NDArray[Any], NDArray[np.int64]]:
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
    told = np.asarray(answers)
    if told.dtype.kind == "O" and all(isinstance(one, int) for one in told.flat):
        told = told.astype(np.int64)
    if told.shape != (n,):
        raise InputError(f"answers of shape {told.shape} for {n} rows of logits: give one a row")
    if told.dtype.kind in "UO":
        known = {letter: place for place, letter in enumerate(LETTERS)}
        told = np.array([known.get(str(letter), -1) for letter in told], np.int64)
    elif told.dtype.kind not in "iu":
        raise InputError(f"answers of type {told.dtype}: give letters, or their places from 0")
    wrong = (told < 0) | (told >= len(LETTERS))
    if wrong.any():
        row = int(wrong.argmax())
        raise InputError(
            f"answers: row {row} has {str(np.asarray(answers)[row])!r}, none of A to F"
        )
    if n > 1 and (told == told[0]).all():
        raise InputError(
            f"all {n} answers are {LETTERS[int(told[0])]}: that measures a habit, not knowledge; "
            "shuffle the options"
        )
    return told.astype(np.int64)


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Probabilities over the six letters alone, [n, 6], in the precision of `logits`."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def halves(n: int, calibration: float, split_seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rows to calibrate on and rows to test on, at random, as scikit-learn's
    `train_test_split(range(n), train_size=calibration, random_state=split_seed)` takes them.

    Raises:
        InputError: `calibration` is no share, `split_seed` no seed, or a part is too small.
    """
    if not isinstance(calibration, float) or not 0 < calibration < 1:
        raise InputError(f"calibration={calibration!r}: give a share between 0 and 1")
    if not isinstance(split_seed, int | np.integer) or not 0 <= split_seed < 2**32:
        raise InputError(f"split_seed={split_seed!r}: give a whole number from 0")
    size = int(n * calibration)
    if size < LEAST or n - size < 1:
        raise InputError(
            f"{size} items of {n} to calibrate on (calibration={calibration}), at least {LEAST} "
            "are needed and 1 to test on: give more items"
        )
    order = np.random.RandomState(split_seed).permutation(n)
    return order[n - size :], order[: n - size]
