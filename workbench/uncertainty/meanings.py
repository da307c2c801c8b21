"""Which answers in free text mean the same, and how spread out their meanings are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from workbench.errors import InputError
from workbench.judge.templates import Pair, Template
from workbench.judge.votes import cast
from workbench.types import Engine, Item, Sampling

Same = Callable[[Sequence[tuple[Item, str, str]]], Sequence[bool | None]]
"""Do two answers to an item mean the same? For many pairs at once; None where it cannot be told."""

SAME = Template(
    "Question: {problem}\nOne answer: {a}\nAnother answer: {b}\nDo both answers mean the same?",
    choices=(" Yes", " No"),
    style="completion",
    name="same",
)

Texts = tuple[Item, Sequence[str], list[list[int]]]
"""An item, answers to it, and the places of those that are equal for sure, group by group."""


def discrete_entropy(counts: Sequence[int]) -> float:
    """Entropy in nats of the shares that clusters of these sizes have.

    Raises:
        InputError: there are none, or one is no whole number from 1.
    """
    if not len(counts) or any(not n >= 1 or n % 1 != 0 for n in counts):
        raise InputError(f"counts={counts!r:.60}: give the size of each cluster, 1 at least")
    return _entropy(counts)


def semantic_entropy(clusters: Sequence[Sequence[int]], logliks: Sequence[float]) -> float:
    """Entropy in nats over meanings (Farquhar et al. 2024, Nature 630:625-630): a meaning has the
    share of the likelihood that its samples have of that of all.

    Args:
        clusters: places in `logliks` of the samples of each meaning, each place once.
        logliks: log-likelihood of each sample over its number of tokens.

    Raises:
        InputError: a place is missing, twice or none, or a log-likelihood is not finite.
    """
    places = sorted(place for group in clusters for place in group)
    if not places or places != list(range(len(logliks))) or not all(map(len, clusters)):
        raise InputError(
            f"clusters={clusters!r:.60} for {len(logliks)} samples: give each of their places, "
            "from 0, once"
        )
    if not all(map(math.isfinite, logliks)):
        raise InputError(f"logliks={logliks!r:.60}: give finite numbers; leave other samples out")
    most = max(logliks)
    weights = [math.exp(loglik - most) for loglik in logliks]
    return _entropy([math.fsum(weights[place] for place in group) for group in clusters])


def _entropy(masses: Sequence[float]) -> float:
    """Of masses not normalised. `fsum` is exact, so that their order cannot break a tie."""
    total = math.fsum(masses)
    shares = [mass / total for mass in masses if mass > 0]  # a far less likely one may be 0
    # Rounding may leave the scale, and a sum of nothing but -0.0 is not to be shown.
    return min(max(0.0, -math.fsum(p * math.log(p) for p in shares)), math.log(len(masses)))


def judged(engine: Engine, template: Template = SAME) -> Same:
    """A model as the judge of whether two answers to a question mean the same.

    It must say so in both orders, which is one batch of prompts a round.

    Args:
        template: its first choice means that they do; for a chat model one in the style "chat".

    Raises:
        InputError: the template is not for two answers and two choices.
    """
    fits = isinstance(template, Template) and template.compares and len(template.choices) == 2
    if not fits:
        raise InputError(f"template={template!r:.80}: give a Template with {{a}}, {{b}}, 2 choices")

    def same(pairs: Sequence[tuple[Item, str, str]]) -> list[bool | None]:
        shown = [Pair(_problem(item), a, b) for item, a, b in pairs]
        values = [pair.values(swapped=swapped) for swapped in (False, True) for pair in shown]
        votes, _ = cast(engine, template, [*map(template.fill, values)], Sampling(), "logprob")
        places = [vote.choice for (vote,) in votes]
        orders = zip(places[: len(shown)], places[len(shown) :], strict=True)
        return [False if 1 in both else None if None in both else True for both in orders]

    same.__name__ = f"judged({engine.info.model}, template {template.digest})"  # for the provenance
    return same


def _problem(item: Item) -> str:
    return str(item.fields.get("question") or item.fields.get("problem") or item.id)


def joined(answers: Sequence[Texts], same: Same) -> list[list[list[int]] | None]:
    """For each item its groups joined where they mean the same: each with the first one whose first
    text it equals. None where `same` could not tell.

    A round asks what is left of every item about the first of it, which gives the same clusters as
    one text after the other would.
    """
    found: list[list[list[int]] | None] = [[] for _ in answers]
    left = {number: groups for number, (_, _, groups) in enumerate(answers) if groups}
    while left:
        pairs = []
        for number, (first, *others) in left.items():
            item, texts, _ = answers[number]
            pairs += [(item, texts[first[0]], texts[other[0]]) for other in others]
        verdicts = iter(_verdicts(same, pairs))
        for number, (first, *others) in list(left.items()):
            told = [(other, next(verdicts)) for other in others]
            unknown = any(equal is None for _, equal in told)
            mine = [*first, *(place for other, equal in told if equal for place in other)]
            found[number] = None if unknown else [*(found[number] or []), mine]
            left[number] = [] if unknown else [other for other, equal in told if not equal]
        left = {number: groups for number, groups in left.items() if groups}
    return found


def _verdicts(same: Same, pairs: Sequence[tuple[Item, str, str]]) -> list[bool | None]:
    """What `same` says, if it is a verdict a pair; it is not asked about none."""
    import numpy as np

    told = same(pairs) if pairs else []
    if not hasattr(told, "__len__") or len(told) != len(pairs):
        raise InputError(f"same gave {told!r:.60} for {len(pairs)} pairs: give a verdict for each")
    for one in told:
        if not isinstance(one, bool | np.bool_ | None):
            raise InputError(f"same gave {one!r:.60} for a pair: give True, False, or None")
    return [None if one is None else bool(one) for one in told]
