"""What a search makes as great as it can, and how freely it moves on the way there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from workbench.icm.claim import Labels
from workbench.icm.consistency import Pair, violated
from workbench.icm.orders import Scores

Schedule = Literal["paper", "code"]
Objective = Literal["log_odds", "log_prob"]

HOT, COLD = 10.0, 0.01
SAME = 0.05  # of the labels


def energy(
    labels: Labels,
    scores: Scores,
    related: Sequence[Pair],
    alpha: float,
    objective: Objective = "log_odds",
) -> float:
    """`alpha` × mean over labelled claims of how likely their label is − violated pairs.

    The likeliness is the log-odds of the label, or its log-probability; see `search`.
    """
    own = []
    for index, (true, false) in scores.items():
        mine, other = (true, false) if labels[index] else (false, true)
        own.append(mine - other if objective == "log_odds" else mine)
    return alpha * math.fsum(own) / len(own) - len(violated(related, labels))


def temperature(schedule: Schedule, iteration: int, accepted: int) -> float:
    """The temperature at an iteration (from 1) after so many accepted moves."""
    slow = 0.99 * math.log(iteration) if schedule == "paper" else 2 * math.log(1 + accepted)
    return max(COLD, HOT / (1 + slow))


def collapsed(share: float) -> bool:
    """Whether nearly all labels are the same, by the share of True; energies do not show it."""
    return not SAME < share < 1 - SAME
