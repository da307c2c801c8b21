"""A limit on what calls cost, and estimates for calls that are not sent."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from workbench import values
from workbench.engines.base import BaseEngine
from workbench.engines.estimate import Estimate, Prices, estimated_tokens, money, most_tokens
from workbench.engines.requests import texts
from workbench.engines.style import check_engine
from workbench.errors import InputError
from workbench.store import digest
from workbench.types import Engine, Labels, Prompt, Sampling, Usage


@dataclass(frozen=True, slots=True)
class _Equal:
    """Positions of equal prompts, with the keys of their missing and stored answers."""

    places: list[int]
    missing: set[bytes]
    stored: set[bytes]
    prompt_tokens: int  # per prompt
    most_prompt_tokens: int
    most: int  # completion tokens per sample


def checked_limit(prices: Prices | None, max_cost: float | None) -> float | None:
    """A cost limit, checked.

    Raises:
        InputError: a limit without prices, or not a number from 0.
    """
    limit = values.optional("max_cost", max_cost, values.real, 0, math.inf)
    if limit is not None and prices is None:
        raise InputError(
            f"max_cost={limit:g}: set price_in and price_out too, the prices per million tokens "
            "in the same currency"
        )
    return limit


class Spending:
    """What calls to an engine may still cost, and have cost since this object was made.

    Args:
        prices: the prices of tokens; None if the cost does not matter.
        max_cost: no request is sent that could make the cost exceed this, assuming that all
            requests in flight generate as much as they may. A prompt that cannot be counted
            beforehand counts as its maximum (`estimate.most_tokens`).
        dry: nothing is sent: only stored answers are returned.

    Raises:
        InputError: a limit without prices, or not a number from 0.
    """

    def __init__(
        self,
        engine: Engine,
        prices: Prices | None = None,
        max_cost: float | None = None,
        *,
        dry: bool = False,
    ) -> None:
        check_engine(engine)
        self._engine, self._before = engine, engine.usage if prices else Usage()
        self.prices, self.dry = prices, values.flag("dry_run", dry)
        self.max_cost = checked_limit(prices, max_cost)
        self.declined = Estimate(0, 0, 0, counted=True, prices=prices)
        self._unreported = 0.0  # maximum cost of calls whose tokens the server does not report
        self._seen: set[bytes] = set()
        self._stored: set[bytes] = set()

    @property
    def limited(self) -> bool:
        """Whether some calls may be declined."""
        return self.dry or self.max_cost is not None

    @property
    def cost(self) -> float:
        """The cost so far; stored answers are free."""
        if self.prices is None:
            return 0.0
        used = self._engine.usage.since(self._before)
        return self.prices.cost(used.prompt_tokens, used.completion_tokens) + self._unreported

    def parts(
        self, prompts: Sequence[Prompt], how: Sampling | Labels
    ) -> Iterator[tuple[list[int], str | None]]:
        """Positions of prompts to send together, with the reason if they must not be sent.

        Send each part before taking the next: its size depends on the remaining budget. Equal
        prompts are in one part, so that all samples are those of a call without a limit.
        """
        if not self.limited:
            yield [*range(len(prompts))], None
            return
        rest, counted = self._equal(prompts, how)
        self._stored.update(*(one.stored for one in rest))
        while rest:
            room = left = max(0.0, (self.max_cost or 0.0) - self.cost)
            part: list[_Equal] = []
            for one in rest:
                if (cost := self._most(one)) <= left:
                    part.append(one)
                    left -= cost
            if not part:
                self._decline(rest, counted=counted)
                yield _places(rest), self._reason()
                return
            before = self._engine.usage
            yield _places(part), None
            used = self._engine.usage.since(before)
            if not used.prompt_tokens and used.requests > used.from_store + used.failed:
                self._unreported += room - left
            taken = {id(one) for one in part}
            rest = [one for one in rest if id(one) not in taken]

    def _equal(
        self, prompts: Sequence[Prompt], how: Sampling | Labels
    ) -> tuple[list[_Equal], bool]:
        places: dict[str, list[int]] = {}
        for place, text in enumerate(texts(prompts)):
            places.setdefault(text, []).append(place)
        firsts = [prompts[same[0]] for same in places.values()]
        if isinstance(self._engine, BaseEngine):
            keys = self._engine.lookup(prompts, how)
            tokens, counted = self._engine.count_tokens(firsts)
        else:  # an unknown implementation of `Engine`
            number = how.n if isinstance(how, Sampling) else 1
            keys = [dict.fromkeys((digest(p, k) for k in range(number)), False) for p in prompts]
            tokens, counted = [*map(estimated_tokens, firsts)], False
        most = how.max_tokens if isinstance(how, Sampling) else 1
        equal = []
        for same, first, length in zip(places.values(), firsts, tokens, strict=True):
            there = {key: stored for place in same for key, stored in keys[place].items()}
            stored = {key for key, known in there.items() if known}
            longest = length if counted else most_tokens(first)
            equal.append(_Equal(same, there.keys() - stored, stored, length, longest, most))
        return equal, counted

    def _most(self, one: _Equal) -> float:
        if not one.missing:
            return 0.0
        if self.dry or self.prices is None:
            return math.inf
        return len(one.missing) * self.prices.cost(one.most_prompt_tokens, one.most)

    def _decline(self, rest: Sequence[_Equal], *, counted: bool) -> None:
        if not getattr(self._engine, "has_store", False):
            self._seen.clear()  # without a store, repeated calls compute again
        for one in rest:
            new, asked = len(one.missing - self._seen), self.declined
            self._seen |= one.missing
            self.declined = replace(
                asked,
                requests=asked.requests + new,
                prompt_tokens=asked.prompt_tokens + new * one.prompt_tokens,
                completion_tokens=asked.completion_tokens + new * one.most,
                counted=asked.counted and counted,
            )

    def _reason(self) -> str:
        if self.dry:
            return "not sent: this is a dry run"
        again = "a higher one resumes" if getattr(self._engine, "has_store", False) else "raise it"
        return f"not sent: max_cost={self.max_cost:g}, {money(self.cost)} is spent; {again}"

    def estimate(self, *, further: bool) -> Estimate:
        """The calls that were not sent.

        Args:
            further: whether the answers would lead to more calls.
        """
        asked, minutes = self.declined, getattr(self._engine, "minutes", None)
        tokens = asked.prompt_tokens + asked.completion_tokens
        return replace(
            asked,
            in_store=len(self._stored),
            further=further and asked.requests > 0,
            minutes=minutes(asked.requests, tokens) if minutes else 0.0,
        )


def _places(groups: Sequence[_Equal]) -> list[int]:
    """Positions in order, since the order affects nothing else."""
    return sorted(place for one in groups for place in one.places)
