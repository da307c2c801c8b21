"""What calls may send and cost, before anything is sent."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from workbench import values
from workbench.errors import InputError
from workbench.files import file_error
from workbench.messages import images_in, shown, text_of
from workbench.types import Prompt

CHARACTERS = 4  # per token, if tokens are not counted
FRAME = 64
"""Maximum tokens that a template adds per message, including a default system prompt."""
IMAGE_TOKENS = 1_000  # estimated
MOST_IMAGE_TOKENS = 50_000  # gpt-4o-mini counts up to 2,833 + 8 tiles of 5,667
MILLION = 1_000_000  # tokens: the unit of prices
TABLE = "WORKBENCH_PRICES"


def estimated_tokens(prompt: Prompt | Sequence[int]) -> int:
    """Estimated number of tokens in a prompt."""
    if isinstance(prompt, str):
        return 1 + len(prompt) // CHARACTERS
    chat = [text_of(message["content"]) for message in prompt if not isinstance(message, int)]
    images = IMAGE_TOKENS * len(images_in(prompt))
    return 1 + images + sum(map(len, chat)) // CHARACTERS if chat else len(prompt)


def most_tokens(prompt: Prompt) -> int:
    """An upper bound on a prompt's tokens: its bytes in UTF-8 and `FRAME` per message.

    Each token of a byte-level tokenizer has at least one byte. An image is `MOST_IMAGE_TOKENS`.
    """
    messages = [{"content": prompt}] if isinstance(prompt, str) else shown(prompt)
    parts = [str(part) for message in messages for part in message.values()]
    frames = FRAME * len(messages) + MOST_IMAGE_TOKENS * len(images_in(prompt))
    return frames + sum(len(one.encode("utf-8", "surrogatepass")) for one in parts)


@dataclass(frozen=True, slots=True)
class Prices:
    """The prices of a million tokens, in any currency."""

    price_in: float
    price_out: float

    @classmethod
    def of(cls, price_in: object, price_out: object, model: str = "") -> Prices | None:
        """Prices, checked; by default the model's in your table, and None if it has none.

        The table is the YAML or JSON file that the variable WORKBENCH_PRICES names: by model, the
        prices `in` and `out`. Nothing is looked up elsewhere.

        Raises:
            InputError: only one is set, one is not a number from 0, or the table is unreadable.
        """
        if price_in is None and price_out is None:
            if (listed := _listed(model)) is None:
                return None
            price_in, price_out = listed.get("in"), listed.get("out")
        if price_in is None or price_out is None:
            lost = "price_in" if price_in is None else "price_out"
            raise InputError(f"{lost} is not set: set both prices, 0 for what is free")
        return cls(
            values.real("price_in", price_in, 0, MILLION),
            values.real("price_out", price_out, 0, MILLION),
        )

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The cost in the currency of the prices."""
        return (self.price_in * prompt_tokens + self.price_out * completion_tokens) / MILLION


def _listed(model: str) -> Mapping[str, object] | None:
    """The model's row of the user's table of prices."""
    if not (path := os.environ.get(TABLE)):
        return None
    import yaml

    try:
        row = yaml.safe_load(Path(path).expanduser().read_text("utf-8")).get(model)
        return None if row is None else {"in": row["in"], "out": row["out"]}
    except (OSError, ValueError, AttributeError, KeyError, TypeError, yaml.YAMLError) as error:
        need = f"{model}: {{in: 0.15, out: 0.60}}, per million tokens"
        why = " ".join(file_error(path, error).split())
        raise InputError(f"{TABLE}, {why}: write {need}") from error


@dataclass(frozen=True, slots=True, repr=False)
class Estimate:
    """The maximum that calls will send, known before anything is sent.

    Attributes:
        requests: samples and label scores to compute; a server that accepts several prompts per
            request gets fewer.
        prompt_tokens: the sum over all requests.
        completion_tokens: the maximum that may be generated.
        minutes: the least time under the rate limits; 0 without them.
        in_store: samples and label scores that are stored, and cost nothing.
        counted: whether the model's tokenizer counted the prompts' tokens; else they are estimated.
        further: whether an agent makes more calls, depending on answers: then this is the minimum.
        prices: the prices of tokens, if known.
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
        """The maximum cost in the currency of the prices, without `further` calls."""
        if self.prices is None:
            return None
        return self.prices.cost(self.prompt_tokens, self.completion_tokens)

    def __str__(self) -> str:
        if not self.requests and self.in_store:
            return f"nothing to send: all {self.in_store:,} requests are in the store"
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
            text += f"; a cost of at most {money(self.cost)}, at {prices} per million tokens"
        if self.minutes:
            text += f", {self.minutes:.1f} minutes at the rate limits"
        if self.further:
            text += "; plus the agent's further calls, which depend on the answers"
        return text

    __repr__ = __str__


def money(amount: float) -> str:
    """An amount with two decimals; a small one with two significant digits."""
    return f"{amount:,.2f}" if amount >= 1 or not amount else f"{Decimal(f'{amount:.2g}'):f}"
