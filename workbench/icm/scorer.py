"""Score claims after labelled demonstrations; the answers are counted and kept in a journal."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from operator import add
from statistics import fmean, median
from typing import Literal, NamedTuple

from workbench.engines.tokens import SegmentedPrompt
from workbench.errors import EngineError, InputError, log
from workbench.icm.claim import Claim, Labelled, Labels, Wording
from workbench.icm.journal import Journal
from workbench.lazy import NDArray, np
from workbench.progress import quiet
from workbench.store import digest
from workbench.types import Engine, Sampling, Usage

TrueFalse = tuple[float, float]
"""Natural log-probability of true and of false as the label of a claim."""

ScoreKind = Literal["exact", "top20"]
TOP, EPS = 20, 1e-5  # number of likeliest tokens, and a constant added to their sum
NEITHER = (math.log(EPS), math.log(EPS))
"""The scores if neither label is among the likeliest tokens: log-odds of 0, as published."""
OUTLIER = 4  # times the median length; a longer demonstration would displace many others


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of prompts.

    Attributes:
        prompts, prompt_tokens: number of prompts, and their tokens.
        computed_tokens: tokens that were not in the prefix cache (or in the response store).
        seconds: time spent by the engine.
    """

    prompts: int = 0
    prompt_tokens: int = 0
    computed_tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*map(add, astuple(self), astuple(other)))

    @classmethod
    def of(cls, prompts: int, used: Usage) -> Cost:
        """The cost of prompts with this usage of an engine."""
        return cls(prompts, used.prompt_tokens, used.computed_tokens, round(used.seconds, 3))


class ShownCounts(NamedTuple):
    """How many of `of` available demonstrations the prompts showed: minimum, mean, maximum."""

    least: int
    mean: float
    most: int
    of: int


def compute_logprobs_batched(
    prompts: Sequence[str], labels: Sequence[str], engine: Engine
) -> NDArray[np.float64]:
    """`engine.label_logprobs`, with every value required: float64 [n_prompts, n_labels].

    Raises:
        InputError: as `engine.label_logprobs`.
        EngineError: a label has no exact value for some prompt; it never counts as 0.
    """
    scores = engine.label_logprobs(prompts, labels, errors="return")
    wrong = scores.missing | ~np.isfinite(scores.logprobs)
    if not wrong.any():
        return scores.logprobs
    index, label = (int(place[0]) for place in np.nonzero(wrong))
    reason = scores.errors[index] or (
        f"the log-probability of {labels[label]!r} is missing: an engine that scores labels "
        "exactly is needed (vLLM in this process or a vLLM server); a search has scores='top20' too"
    )
    raise EngineError(
        f"{int(wrong.any(axis=1).sum())} of {len(prompts)} prompts could not be scored. First, "
        f"prompt {index} (…{prompts[index][-60:]!r}): {reason}",
        results=scores,
    )


def compute_top_logprobs(
    prompts: Sequence[str], labels: tuple[str, str], engine: Engine
) -> NDArray[np.float64]:
    """log(1e-5 + sum of p over those of the 20 likeliest tokens that contain the label).

    Natural logarithm, float64 [n_prompts, 2]. A token counts for a label if it contains the label's
    text, in any case, and not the other label's (`solution_extraction.py` of Wen et al. 2025). Use
    it for endpoints without exact label scores.

    Raises:
        EngineError: a prompt failed or has no log-probabilities; it never counts as 0.
        InputError: the engine returns token ids and has no tokenizer.
    """
    rows = engine.generate(prompts, Sampling(max_tokens=1, logprobs=TOP), errors="return")
    words = [label.strip().lower() for label in labels]
    mass = np.zeros((len(rows), 2))
    for index, row in enumerate(rows):
        if row.error is not None or not row.logprobs or not row.logprobs[0].top:
            raise EngineError(
                f"prompt {index} of {len(prompts)} (…{prompts[index][-60:]!r}) could not be "
                f"scored: {row.error or 'the reply has no likeliest tokens'}",
                results=rows,
            )
        for token, logprob in row.logprobs[0].top:
            text = _token_text(token, engine).lower()
            holds = [word in text for word in words]
            if sum(holds) == 1:
                mass[index, holds.index(True)] += math.exp(logprob)
    return np.log(EPS + mass)


def _token_text(token: int | str, engine: Engine) -> str:
    if isinstance(token, str):
        return token
    if (tokenizer := getattr(engine, "tokenizer", None)) is None:
        raise InputError(
            "scores='top20' needs the text of each token, and this server returns token ids: use "
            "scores='exact', which such a server has"
        )
    return str(tokenizer.decode([token]))


SCORES = {"exact": compute_logprobs_batched, "top20": compute_top_logprobs}


class ContextFit:
    """Selects the demonstrations that fit into the context, by the engine's own token counts.

    Each claim has a random rank, which depends only on the seed and its text. A prompt takes
    demonstrations by rank, each that still fits, and shows them in its own order. So all prompts
    show nearly the same ones and share prefixes. The position in the file, labels, other claims
    and the kind of engine have no effect. Length has an effect only in the last space, if the next
    one by rank is too long for it. Demonstrations longer than `OUTLIER` times the median come
    last, so that a single long claim does not displace others.

    A text's tokens are counted after the end of a demonstration, as in the prompt. The sum exceeds
    the prompt's tokens by those of that end. It is never below them unless tokens cross a seam.

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
        self._costs: Sequence[int] = ()  # empty: everything fits
        context, count = engine.info.context_length, len(claims)
        texts = [claim.text for claim in claims]
        solved = [wording.solved(claim, label) for label in (True, False) for claim in claims]
        queries = [*dict.fromkeys([*texts, *more])]
        ends = sum(map(_bytes, wording.labels))
        if not context or sum(map(_bytes, solved)) + max(map(_bytes, queries)) + ends < context:
            return  # a token has at least one byte
        end = wording.labels[0] + wording.after
        after = [end + text for text in (*queries, *solved)]
        tokens, reasons = _counted(engine, [*wording.labels, end, *after])
        longest, before, asked = max(tokens[:2]), tokens[2], tokens[3 : 3 + len(queries)]
        both = tokens[3 + len(queries) :]
        self._left = {
            text: context - longest - used for text, used in zip(queries, asked, strict=True)
        }
        self._costs = [max(pair) - before for pair in zip(both[:count], both[count:], strict=True)]
        usual = [self._costs[i] for i, text in enumerate(texts) if self.fits(text)]
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
        """Whether a query fits into the context."""
        return not self._costs or self._left[query] >= 0

    def select(self, shown: Sequence[int], query: str) -> Sequence[int]:
        """The demonstrations, in order, that the prompt for `query` shows."""
        if not self._costs or sum(map(self._costs.__getitem__, shown)) <= self._left[query]:
            return shown
        left, chosen = self._left[query], set[int]()
        for index in sorted(shown, key=self._rank.__getitem__):
            if self._costs[index] <= left:
                left -= self._costs[index]
                chosen.add(index)
        return [index for index in shown if index in chosen]


def _counted(engine: Engine, texts: Sequence[str]) -> tuple[list[int], list[str | None]]:
    """The tokens of each text, or the reason why the server refuses it as too long."""
    context = engine.info.context_length
    with quiet():
        rows = engine.generate(texts, Sampling(max_tokens=1), errors="return")
    reasons = [row.error if row.prompt_tokens < context else None for row in rows]
    for text, reason in zip(texts, reasons, strict=True):
        if reason and (_bytes(text) < context or not re.search("context|token", reason)):
            raise EngineError(f"the claim {text!r:.80} cannot be scored: {reason}")
    tokens = [
        context + 1 if reason else row.prompt_tokens
        for row, reason in zip(rows, reasons, strict=True)
    ]
    return tokens, reasons


def _bytes(text: str) -> int:
    return len(text.encode())


class Scorer:
    """Scores claims with an engine.

    A prompt has labelled claims and the claim to score, which is never cut. If not all
    demonstrations fit into the model's context, `ContextFit` selects them.

    Args:
        journal: keeps the answers, and returns those that it has.
        more: texts to score in addition to the claims.
        after: claims with given labels; they come first in each prompt and never change.
        seed: selects the demonstrations that are left out.
        scores: "exact", or the published "top20".
    """

    def __init__(
        self,
        engine: Engine,
        claims: Sequence[Claim],
        wording: Wording,
        journal: Journal | None = None,
        *,
        more: Sequence[str] = (),
        after: Labelled = (),
        seed: int = 0,
        scores: ScoreKind = "exact",
    ) -> None:
        self.cost, self._neither = Cost(), 0
        self._engine, self._journal, self._labels = engine, journal or Journal(), wording.labels
        self._compute = SCORES[scores]
        self._count, self._given = len(claims), tuple(bool(label) for _, label in after)
        every = [*claims, *(claim for claim, _ in after)]  # in this order, so that indices stay
        self._texts = [claim.text for claim in every]
        self._solved = [
            {label: wording.solved(claim, label) for label in (True, False)} for claim in every
        ]
        self._fit = ContextFit(engine, every, wording, seed, more)
        self._counts: Counter[tuple[int, int]] = Counter()

    @property
    def unfit(self) -> Mapping[int, str]:
        """Claims, by index, that do not fit into the context even alone, each with the reason."""
        return self._fit.unfit

    def fitting(self) -> list[int]:
        """The claims that fit; logs a warning if some do not, or not all demonstrations.

        Raises:
            InputError: none fits.
        """
        there = [index for index in range(len(self._texts)) if index not in self.unfit]
        if not there:
            raise InputError(f"no claim fits into the context; the first: {self.unfit[0]}")
        if self.unfit:
            index, reason = next(iter(self.unfit.items()))
            log.warning(
                "icm: %d of %d claims do not fit into the context and are left out; the first, "
                "%r…: %s", len(self.unfit), len(self._texts), self._texts[index][:60], reason,
            )  # fmt: skip
        others = ([i for i in there if i != one] for one in there)
        texts = (self._texts[one] for one in there)
        shown = [len(self._fit.select(*pair)) for pair in zip(others, texts, strict=True)]
        if min(shown) < len(there) - 1:
            log.warning(
                "icm: the context holds %.1f of %d demonstrations on average (%d to %d)",
                fmean(shown), len(there) - 1, min(shown), max(shown),
            )  # fmt: skip
        return [index for index in there if index < self._count]

    @property
    def shown_counts(self) -> ShownCounts:
        """Demonstrations per prompt, over those prompts so far that had the most to show."""
        of, _ = max(self._counts, default=(0, 0))
        counts = {n: times for (most, n), times in self._counts.items() if most == of} or {0: 1}
        return ShownCounts(min(counts), fmean(counts, counts.values()), max(counts), of)

    def notes(self) -> list[str]:
        """Notes for the reader on the prompts so far."""
        notes, shown = list[str](), self.shown_counts
        if self.unfit:
            notes.append(
                "left out, as the context does not hold them: "
                f"{len(self.unfit)} of {len(self._texts)} claims"
            )
        if shown.least < shown.of:
            notes.append(
                f"each claim was asked about after {shown.mean:.1f} of its {shown.of} "
                f"demonstrations on average ({shown.least} to {shown.most}): the model's context "
                "holds no more"
            )
        if self._neither:
            notes.append(
                f"for {self._neither:,} of {self.cost.prompts:,} prompts neither label was among "
                "the likeliest tokens: they count as undecided, as published"
            )
        return notes

    def prompt(self, labels: Labels, shown: Sequence[int], target: int | str) -> str:
        """The labelled claims `shown`, then the target: a claim's index or its text."""
        text = target if isinstance(target, str) else self._texts[target]
        shown = [*range(self._count, len(self._texts)), *shown] if self._given else shown
        chosen = self._fit.select(shown, text)
        if self._fit.fits(text):
            self._counts[len(shown), len(chosen)] += 1
        labels += self._given
        return SegmentedPrompt([*(self._solved[i][bool(labels[i])] for i in chosen), text])

    def score(self, prompts: list[str]) -> list[TrueFalse]:
        """The scores of whole prompts, from the journal or the engine.

        Raises:
            EngineError: a prompt could not be scored.
        """
        asked = digest(prompts, list(self._labels)).hex()[:32]
        answer = self._journal.answer(asked)
        if answer is None or len(answer["scores"]) != len(prompts):
            before = self._engine.usage
            with quiet():
                values = self._compute(prompts, self._labels, self._engine)
            cost = Cost.of(len(prompts), self._engine.usage.since(before))
            answer = {"scores": values.tolist(), "cost": astuple(cost)}
            self._journal.add(asked, answer)
        self.cost += Cost(*answer["cost"])
        scores = [(float(true), float(false)) for true, false in answer["scores"]]
        self._neither += scores.count(NEITHER)
        return scores
