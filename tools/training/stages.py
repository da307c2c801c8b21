"""What the training text consists of, and how that changes over the training.

First what is right, and drills of what no example of a whole task teaches; then the tasks, with
fewer and fewer helps; then documents as long as the context.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shares:
    """How often each kind of document comes, relative to the others (see `text`)."""

    equations: int = 0
    claims: int = 0
    stories: int = 0
    chats: int = 0
    options: int = 0
    verdicts: int = 0
    other: int = 0
    drills: int = 0
    reading: int = 0
    holders: int = 0
    stated: int = 0
    echoes: int = 0
    events: int = 0


@dataclass(frozen=True, slots=True)
class Stage:
    """Lasts until `until` of all steps; rows have `length` tokens.

    Helps: `remarks` follow labelled claims (see `claims.document`) and numbers to choose from, and
    say whether they are right; `working` shows the numbers that decide, before an option or a
    verdict. `constant` is the share of claims documents that call everything alike.
    """

    until: float
    shares: Shares
    length: int = 256
    constant: float = 0.5
    remarks: float = 0.15
    working: float = 0.25


# From 0.60 to 0.79 are attempts, in the middle of the one training, to teach finding a number by
# the name of its holder (reading, holders, echoes). None did, but the weights were trained so.
STAGES = (
    Stage(
        0.10,
        Shares(equations=26, claims=26, stories=18, chats=2, other=1, drills=27),
        constant=0.1, remarks=0.5, working=0.0,
    ),
    Stage(
        0.15,
        Shares(equations=3, claims=5, stories=5, drills=87),
        constant=0.1, remarks=0.5, working=0.0,
    ),
    Stage(
        0.50,
        Shares(equations=5, claims=32, stories=18, chats=5, options=18, verdicts=13, other=1,
               drills=8),
        constant=0.25, remarks=0.4, working=0.4,
    ),
    Stage(
        0.60,
        Shares(equations=4, claims=38, stories=20, chats=5, options=18, verdicts=12, other=1,
               drills=2),
        working=0.15,
    ),
    Stage(
        0.66,
        Shares(equations=2, claims=20, stories=14, chats=3, options=24, verdicts=6, other=1,
               reading=30),
        working=0.5,
    ),
    Stage(
        0.68,
        Shares(equations=4, claims=34, stories=20, chats=5, options=22, verdicts=8, other=1,
               reading=6),
    ),
    Stage(
        0.72,
        Shares(equations=1, claims=12, stories=8, chats=2, options=10, verdicts=3, other=1,
               reading=9, holders=54),
        working=0.5,
    ),
    Stage(
        0.7555,
        Shares(equations=3, claims=32, stories=18, chats=5, options=21, verdicts=7, other=1,
               reading=8, holders=5),
    ),
    Stage(
        0.79,
        Shares(equations=1, claims=14, stories=9, chats=2, options=8, verdicts=4, other=1,
               reading=3, holders=15, stated=8, echoes=35),
    ),
    Stage(
        0.8222,
        Shares(equations=3, claims=32, stories=18, chats=5, options=13, verdicts=7, other=1,
               reading=4, holders=6, stated=9, echoes=2),
    ),
    Stage(
        0.90,
        Shares(equations=3, claims=32, stories=18, chats=5, options=11, verdicts=7, other=1,
               reading=5, stated=9, events=9),
    ),
    Stage(
        1.00,
        Shares(equations=3, claims=38, stories=20, chats=7, options=10, verdicts=9, other=2,
               reading=1, stated=5, events=5),
        length=2048, constant=0.65, remarks=0.0, working=0.05,
    ),
)  # fmt: skip


def stage_at(progress: float) -> Stage:
    """The stage that `progress` (0 to 1) falls into."""
    return next((stage for stage in STAGES if progress < stage.until), STAGES[-1])
