"""Log-probabilities: of labels after prompts, of whole texts, and of tokens after tokens.

All are natural logarithms over the full vocabulary. No value is ever NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

from workbench import values
from workbench.errors import InputError
from workbench.lazy import NDArray, np, pd
from workbench.reprs import Shown

Unit = Literal["sum", "token", "byte"]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class LabelScores(Shown):
    """Log-probability of each label as the continuation of each prompt.

    Attributes:
        logprobs: float64 [n_prompts, n_labels], natural logarithm; -inf where missing. With labels
            per prompt, the width is that of the longest list, and shorter rows end in -inf.
        upper: float64 [n_prompts, n_labels], an upper bound (equal where exact). For a label of
            several tokens, a diffusion engine has only a lower bound, and returns that as both.
        missing: bool [n_prompts, n_labels], True where a label has no exact value.
        errors: for each prompt the reason of its failure, or None.
        labels: the labels, or a tuple of labels per prompt.
        tokens: int64 [n_prompts, n_labels], each label's number of tokens; 0 where it is unknown
            (an answer stored by an earlier version) or where there is no label.
    """

    logprobs: NDArray[np.float64]
    upper: NDArray[np.float64]
    missing: NDArray[np.bool_]
    errors: tuple[str | None, ...]
    labels: tuple[str, ...] | tuple[tuple[str, ...], ...] = ()
    tokens: NDArray[np.int64] | None = None

    def labels_of(self, index: int) -> tuple[str, ...]:
        """The labels of the prompt at `index`."""
        return cast("tuple[str, ...]", self.labels[index] if self.ragged else self.labels)

    @property
    def ragged(self) -> bool:
        """Whether each prompt has its own labels."""
        return bool(self.labels) and not isinstance(self.labels[0], str)

    def per(self, unit: Unit) -> NDArray[np.float64]:
        """The log-probabilities, divided by each label's length.

        Papers on multiple choice use all three: "sum" is the log-probability itself, "token" its
        mean per token (as in Brown et al. 2020, arXiv 2005.14165, section 2.4), "byte" its mean per
        UTF-8 byte, which does not depend on the tokenizer.

        Returns:
            float64 [n_prompts, n_labels]; -inf where `logprobs` is.

        Raises:
            InputError: an unknown unit, or token counts that are unknown.
        """
        values.choice("unit", unit, "sum", "token", "byte")
        if unit == "sum":
            return self.logprobs.copy()
        there = self.logprobs > -np.inf
        if unit == "token":
            sizes = np.zeros(there.shape, int) if self.tokens is None else self.tokens
            if (there & (sizes == 0)).any():
                raise InputError(
                    "the labels' token counts are unknown: these scores were stored by an earlier "
                    'version, or come from a server without a tokenizer; use "byte", or score '
                    "again with another store"
                )
        else:
            sizes = np.zeros(there.shape, int)
            for index in range(len(sizes)):
                lengths = [len(label.encode("utf-8", "replace")) for label in self.labels_of(index)]
                sizes[index, : len(lengths)] = lengths
        scores = np.full(there.shape, -np.inf)
        scores[there] = self.logprobs[there] / sizes[there]
        return scores

    def frame(self) -> pd.DataFrame:
        """`logprobs` with the labels as columns; failed rows are NaN, with the reason in `error`.

        The column `error` exists only if some rows failed. Labels that are unknown, or that differ
        from prompt to prompt, are named 0, 1, ...
        """
        columns = None if self.ragged else list(self.labels) or None
        table = pd.DataFrame(self.logprobs, columns=columns)
        failed = [reason is not None for reason in self.errors]
        if any(failed):
            table[failed] = math.nan
            errors = pd.Series(self.errors, dtype=object)
            table.insert(table.shape[1], "error", errors, allow_duplicates=True)
        return table


@dataclass(frozen=True, slots=True)
class LabelRow:
    """Scores of all labels for the prompt at `index`, or the reason of its failure.

    `upper` bounds them where some are missing (-inf); None means that all are exact. `lengths` are
    the labels' numbers of tokens, if known. For the tokens of a continuation, there is a score per
    token, and `greedy` is whether each of them is the likeliest.
    """

    index: int
    logprobs: tuple[float, ...] | None
    prompt_tokens: int = 0
    cached_tokens: int | None = 0
    error: str | None = None
    upper: tuple[float, ...] | None = None
    lengths: tuple[int, ...] | None = None
    greedy: bool | None = None


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Log-probability of each token of a continuation, or the reason of its failure.

    `greedy` is whether each token is the likeliest one after those before it.
    """

    logprobs: tuple[float, ...] | None
    greedy: bool
    error: str | None = None

    @property
    def total(self) -> float:
        """Log-probability of the whole continuation; -inf if it failed."""
        return -math.inf if self.logprobs is None else math.fsum(self.logprobs)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TextScores(Shown):
    """Log-probability of each whole text.

    Attributes:
        logprobs: float64 [n_texts], natural logarithm, summed over the text's tokens; -inf if it
            failed.
        tokens: int64 [n_texts], each text's number of tokens.
        bytes: int64 [n_texts], each text's number of UTF-8 bytes.
        token_logprobs: each text's log-probability per token; empty if it failed.
        errors: for each text the reason of its failure, or None.
    """

    logprobs: NDArray[np.float64]
    tokens: NDArray[np.int64]
    bytes: NDArray[np.int64]
    token_logprobs: tuple[tuple[float, ...], ...]
    errors: tuple[str | None, ...]

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability per token, over all texts that did not fail."""
        return math.exp(-self._mean(self.tokens))

    @property
    def bits_per_byte(self) -> float:
        """Mean negative base-2 log-probability per UTF-8 byte, over all that did not fail.

        It does not depend on the tokenizer (Gao et al. 2020, arXiv 2101.00027, section 3.1).
        """
        return -self._mean(self.bytes) / math.log(2)

    def _mean(self, sizes: NDArray[np.int64]) -> float:
        done = [error is None for error in self.errors]
        if not any(done):
            raise InputError(f"all {len(done)} texts failed. First: {self.errors[0]}")
        return float(self.logprobs[done].sum() / sizes[done].sum())

    def frame(self) -> pd.DataFrame:
        """A row per text: logprob, tokens, bytes, perplexity (per token) and bits_per_byte.

        Failed rows are NaN, with the reason in `error`, which exists only if some rows failed.
        """
        failed = [error is not None for error in self.errors]
        logprobs = np.where(failed, np.nan, self.logprobs)
        columns: dict[str, object] = {
            "logprob": logprobs,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "perplexity": np.exp(-logprobs / np.maximum(self.tokens, 1)),
            "bits_per_byte": -logprobs / np.maximum(self.bytes, 1) / math.log(2),
        }
        if any(failed):
            columns["error"] = pd.Series(self.errors, dtype=object)
        return pd.DataFrame(columns)
