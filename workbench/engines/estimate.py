"""What calls will ask for and may cost, before anything is sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from workbench import values
from workbench.errors import InputError
from workbench.types import Prompt

CHARACTERS = 4  # of a prompt, in a token: where nobody counts them
FRAME = 64
"""Tokens that a template puts around a message at most; a default system prompt has room in it."""
MILLION = 1_000_000  # tokens, that prices are for


def estimated_tokens(prompt: Prompt | Sequence[int]) -> int:
    """About how many tokens a prompt has."""
    if isinstance(prompt, str):
        return 1 + len(prompt) // CHARACTERS
    chat = [message["content"] for message in prompt if not isinstance(message, int)]
    return 1 + sum(map(len, chat)) // CHARACTERS if chat else len(prompt)


def most_tokens(prompt: Prompt) -> int:
    """A limit that no prompt's tokens exceed: its bytes in UTF-8 and `FRAME` for each message.

    A tokenizer that works on bytes has no token without one.
    """
    messages = [{"content": prompt}] if isinstance(prompt, str) else prompt
    parts = [str(part) for message in messages for part in message.values()]
    return FRAME * len(messages) + sum(len(one.encode("utf-8", "surrogatepass")) for one in parts)


@dataclass(frozen=True, slots=True)
class Prices:
    """What tokens cost, in any currency, for a million of them."""

    price_in: float
    price_out: float

    @classmethod
    def of(cls, price_in: object, price_out: object) -> Prices | None:
        """Prices as they are given, None for none.

        Raises:
            InputError: one alone, or one that is no number from 0.
        """
        if price_in is None and price_out is None:
            return None
        if price_in is None or price_out is None:
            lost = "price_in" if price_in is None else "price_out"
            raise InputError(f"{lost} is not given: give both prices, 0 for what is free")
        return cls(
            values.real("price_in", price_in, 0, MILLION),
            values.real("price_out", price_out, 0, MILLION),
        )

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """In the currency of the prices."""
        return (self.price_in * prompt_tokens + self.price_out * completion_tokens) / MILLION


@dataclass(frozen=True, slots=True, repr=False)
class Estimate:
    """What calls will ask for at most: known before anything is sent.

    Attributes:
        requests: samples and label scores to come; a server that takes several prompts in a request
            gets fewer.
        prompt_tokens: of all requests.
        completion_tokens: the most that may be generated.
        minutes: what the rate limits make of that; 0 without them.
        in_store: samples and label scores that the store has, and that cost nothing.
        counted: the prompts' tokens are counted by the model's tokenizer, not by their length.
        further: an agent's later calls depend on answers that are not there: this is the least.
        prices: what tokens cost, where that is known.
    """

    requests: int
    prompt_tokens: int
    completion_tokens: int
    minutes: float = 0.0
    in_store: int = 0
    counted: bool = False
    further: bool = False
    prices: Prices | None = None

    @property
    def cost(self) -> float | None:
        """At most, in the currency of the prices; without `further` calls."""
        if self.prices is None:
            return None
        return self.prices.cost(self.prompt_tokens, self.completion_tokens)

    def __str__(self) -> str:
        if not self.requests and self.in_store:
            return f"nothing is to be asked: all {self.in_store:,} requests are in the store"
        most = "" if self.further else "at most "
        text = (
            f"{most}{self.requests:,} requests, {'' if self.counted else 'about '}"
            f"{self.prompt_tokens:,} prompt tokens and at most {self.completion_tokens:,} "
            "completion tokens"
        )
        if self.in_store:
            text += f"; {self.in_store:,} others are in the store"
        if self.cost is not None and self.prices is not None:
            prices = f"{money(self.prices.price_in)} and {money(self.prices.price_out)}"
            text += f"; a cost of at most {money(self.cost)}, at {prices} a million tokens"
        if self.minutes:
            text += f", {self.minutes:.1f} minutes at the rate limits"
        if self.further:
            text += "; and what the agent asks next, which depends on the answers"
        return text

    __repr__ = __str__


def money(amount: float) -> str:
    """Two places, or two digits of a small amount."""
    return f"{amount:,.2f}" if amount >= 1 or not amount else f"{Decimal(f'{amount:.2g}'):f}"
