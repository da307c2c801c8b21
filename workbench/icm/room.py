"""Which demonstrations a prompt shows where the context does not hold all of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import median

from workbench.errors import EngineError
from workbench.icm.claim import Claim, Wording
from workbench.progress import quiet
from workbench.store import digest
from workbench.types import Engine, Sampling

OUTLIER = 4  # times the median length: such a demonstration would take the place of many


class Room:
    """What fits into the context, by tokens as the engine itself counts them.

    Each claim has a rank by chance, from the seed and its text alone. A prompt takes
    demonstrations by rank, each that fits beside those before it, and shows them in its own order.
    So all prompts show nearly the same ones and share prefixes; place in the file, labels, other
    claims and the engine's kind decide nothing; no length is favoured, but in the last room that
    the next one by rank is too long for. Those longer than `OUTLIER` times the median come after
    all others: one long claim takes no place from them.

    A text is counted after the end of a demonstration, where it will stand. The sum is above what
    the prompt has by the tokens of that end, and below it nowhere, unless tokens reach over seams.

    Attributes:
        unfit: claims, by index, that do not fit even alone, each with the reason.
    """

    def __init__(
        self,
        engine: Engine,
        claims: Sequence[Claim],
        wording: Wording,
        seed: int = 0,
        more: Sequence[str] = (),
    ) -> None:
        self.unfit: Mapping[int, str] = {}
        self._costs: Sequence[int] = ()  # none: all fits
        context = engine.info.context_length
        texts = [claim.text for claim in claims]
        solved = [wording.solved(claim, label) for label in (True, False) for claim in claims]
        queries, count = [*dict.fromkeys([*texts, *more])], len(texts)
        ends = sum(map(_bytes, wording.labels))
        if not context or sum(map(_bytes, solved)) + max(map(_bytes, queries)) + ends < context:
            return  # no token is shorter than a byte
        end = wording.labels[0] + wording.after
        after = [end + text for text in (*queries, *solved)]
        tokens, reasons = _counted(engine, [*wording.labels, end, *after])
        longest, before, asked = max(tokens[:2]), tokens[2], tokens[3 : 3 + len(queries)]
        self._left = {
            text: context - longest - used for text, used in zip(queries, asked, strict=True)
        }
        both = tokens[3 + len(queries) :]
        self._costs = [max(pair) - before for pair in zip(both[:count], both[count:], strict=True)]
        usual = [self._costs[i] for i, text in enumerate(texts) if self._left[text] >= 0]
        limit = OUTLIER * median(usual or self._costs)
        order = sorted(range(count), key=lambda i: (self._costs[i] > limit, digest(seed, texts[i])))
        self._rank = {index: rank for rank, index in enumerate(order)}
        self.unfit = {
            index: reasons[3 + index]
            or f"the claim has {asked[index] - before:,} tokens, the context holds {context:,} "
            "with its label: shorten it"
            for index, text in enumerate(texts)
            if not self.fits(text)
        }

    def fits(self, query: str) -> bool:
        """Whether a query fits into the context at all."""
        return not self._costs or self._left[query] >= 0

    def kept(self, shown: Sequence[int], query: str) -> Sequence[int]:
        """Those of the demonstrations, in their order, that the prompt for `query` shows."""
        if not self._costs or sum(map(self._costs.__getitem__, shown)) <= self._left[query]:
            return shown
        left, kept = self._left[query], set[int]()
        for index in sorted(shown, key=self._rank.__getitem__):
            if self._costs[index] <= left:
                left -= self._costs[index]
                kept.add(index)
        return [index for index in shown if index in kept]


def _counted(engine: Engine, texts: Sequence[str]) -> tuple[list[int], list[str | None]]:
    """Tokens of each text; why the server refuses it as too long, if it does not count it."""
    context = engine.info.context_length
    with quiet():
        rows = engine.generate(texts, Sampling(max_tokens=1), errors="return")
    tokens, reasons = list[int](), list[str | None]()
    for text, row in zip(texts, rows, strict=True):
        reason = row.error if row.prompt_tokens < context else None
        if reason and (_bytes(text) < context or not re.search("context|token", reason)):
            raise EngineError(f"the claim {text!r:.80} cannot be asked about: {reason}")
        tokens.append(context + 1 if reason else row.prompt_tokens)
        reasons.append(reason)
    return tokens, reasons


def _bytes(text: str) -> int:
    return len(text.encode())
