"""The whole mental model on one page: what engines accept and what they return.

A prompt is text (completion) or a list of messages (chat). An `Engine` turns prompts and a
`Sampling` into `Completion`s, or prompts and labels into `LabelScores`. Nothing here computes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, Protocol

from workbench import values
from workbench.browsing import Browsable
from workbench.errors import InputError
from workbench.export import Exports
from workbench.lazy import Figure, pd
from workbench.reprs import Shown
from workbench.scores import LabelRow, LabelScores, TextScores, TokenScores, Unit
from workbench.stats import Metric

if TYPE_CHECKING:
    from pathlib import Path


__all__ = [
    "MOST_SAMPLES", "Completion", "Engine", "EngineInfo", "Errors", "Grade", "Item", "LabelRow",
    "LabelScores", "Labels", "Message", "Metric", "Prompt", "PromptStyle", "Report", "Sampling",
    "Style", "Task", "TextScores", "TokenLogprob", "TokenScores", "Unit", "Usage",
]  # fmt: skip

Message = Mapping[str, Any]  # role and content: a text, or parts, as in `messages`
Prompt = str | Sequence[Message]
Labels = Iterable[str] | Iterable[Iterable[str]]  # for all prompts, or a list per prompt
Errors = Literal["raise", "return"]
PromptStyle = Literal["completion", "chat"]
Style = Literal["auto", "completion", "chat"]
MOST_SAMPLES = 1_000_000  # maximum per prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to continue a prompt; the defaults are greedy.

    Attributes:
        max_tokens: maximum number of tokens to generate per sample.
        temperature: 0 is greedy.
        top_p, top_k, min_p: truncation of the distribution; `None` is off.
        n: samples per prompt; more than one needs a temperature above 0.
        seed: makes samples repeatable; each sample's seed is derived from it, the prompt and the
            sample's index.
        stop: texts that end a sample and are not part of it.
        logprobs: how many of the likeliest tokens to report at each position; 0 is only the
            log-probability of the chosen token.
        choices, regex, json_schema: structured output; at most one of them. If `max_tokens` cuts
            an answer before it is complete, the row fails.
        ignore_eos: continue past the model's end token, up to `max_tokens`, to measure speed.
        max_reasoning_tokens: maximum number of tokens of thinking in an answer to a chat: the end
            of thinking is forced after them, and the answer follows. None is no limit besides
            `max_tokens`, which is for thinking and answer together.

    Numbers and columns of NumPy and pandas become plain Python values.

    Raises:
        InputError: a value has the wrong type or is out of its range.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float | None = None
    n: int = 1
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    choices: tuple[str, ...] | None = None
    regex: str | None = None
    json_schema: Mapping[str, Any] | None = None
    ignore_eos: bool = False
    max_reasoning_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, (check, *limits) in _FIELDS.items():
            object.__setattr__(self, name, check(name, getattr(self, name), *limits))
        if self.top_p == 0:
            values.refuse("top_p", self.top_p, "above 0 and at most 1")
        if self.choices is not None and not 0 < len(self.choices) == len(set(self.choices)):
            need = "None, or at least one text and none twice"
            values.refuse("choices", self.choices, need)
        if self.n > 1 and self.temperature == 0:
            raise InputError(f"n={self.n} greedy samples would be equal; set temperature above 0")
        if sum(x is not None for x in (self.choices, self.regex, self.json_schema)) > 1:
            raise InputError("choices, regex and json_schema exclude each other: set only one")

    def canonical(self) -> dict[str, Any]:
        """The fields that affect a sample's text, as JSON-ready values (without `n` and `seed`)."""
        unset = {"max_reasoning_tokens"} if self.max_reasoning_tokens is None else set[str]()
        skip = {"n", "seed"} | unset  # so that keys of earlier versions stay
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in skip}


# How each field is checked and normalised, in the order of the fields.
_FIELDS: dict[str, tuple[Any, ...]] = {
    "max_tokens": (values.whole, 1),
    "temperature": (values.real, 0, 100),
    "top_p": (values.real, 0, 1),
    "top_k": (values.optional, values.whole, 1),
    "min_p": (values.optional, values.real, 0, 1),
    "n": (values.whole, 1, MOST_SAMPLES),
    "seed": (values.optional, values.whole, 0, 2**64 - 1),
    "stop": (values.texts,),
    "logprobs": (values.optional, values.whole, 0),
    "choices": (values.optional, values.texts),
    "regex": (values.optional, values.text),
    "json_schema": (values.optional, values.json_object),
    "ignore_eos": (values.flag,),
    "max_reasoning_tokens": (values.optional, values.whole, 0),
}


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One generated token, its natural log-probability, and the likeliest tokens at its position.

    `top` has the requested number of tokens, the likeliest first; the generated token need not be
    among them. A token is its id, or its text if a server sends no ids.
    """

    token_id: int | str
    logprob: float
    top: tuple[tuple[int | str, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Completion(Shown):
    """One answer. With `n > 1` it is `samples[0]`, and `samples` has all of them.

    `reasoning` is the model's thinking, if it is separated from the answer, and `reasoning_tokens`
    are those of the `completion_tokens` that it has; None if a server does not report them.
    `cached_tokens` is None if the engine does not report it for a row.
    """

    text: str
    finish_reason: Literal["stop", "length", "error"]
    token_ids: tuple[int, ...] | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int | None = None
    error: str | None = None
    reasoning: str | None = None
    from_store: bool = False
    reasoning_tokens: int | None = 0
    _samples: tuple[Completion, ...] = field(default=(), repr=False)

    @property
    def samples(self) -> tuple[Completion, ...]:
        """All samples of the prompt, this one first."""
        return self._samples or (self,)

    @property
    def cut_thinking(self) -> bool:
        """Whether `max_tokens` ended it while the model was thinking: it has no answer."""
        thought = self.reasoning or self.reasoning_tokens
        return self.finish_reason == "length" and bool(thought) and not self.text.strip()


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class EngineInfo(Shown):
    """An engine's facts, precise enough to load the same model again.

    `failovers` has each time that another engine took over because one was lost. `notes` has
    each oddity of the answers or their source once. A `context_length` of 0 is unknown. `options`
    are those of `open_engine`, without secrets.
    """

    engine: str
    model: str
    revision: str
    device: str
    dtype: str
    context_length: int
    versions: Mapping[str, str]
    why: str
    failovers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Usage(Shown):
    """What an engine has done since it was opened. Stored rows cost no tokens.

    `reasoning_tokens` are those of the completion tokens that are known to be thinking.
    `cached_tokens` is None if a server does not report it.
    """

    requests: int = 0
    from_store: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int | None = 0
    retries: int = 0
    rate_limit_hits: int = 0
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        """The sum, with the higher peak memory; None in one of them is None in the sum."""
        peak = max(self.peak_memory_bytes, other.peak_memory_bytes)
        return self._each(operator.add, other, peak)

    def since(self, before: Usage) -> Usage:
        """The usage after `before` (the peak memory stays the highest so far)."""
        return self._each(operator.sub, before, self.peak_memory_bytes)

    def _each(self, combine: Callable[[Any, Any], Any], other: Usage, peak: int) -> Usage:
        names = [f.name for f in fields(self) if f.name != "peak_memory_bytes"]
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in names}
        new: dict[str, Any] = {
            name: None if None in pair else combine(*pair) for name, pair in pairs.items()
        }
        return Usage(**new, peak_memory_bytes=peak)

    @property
    def computed_tokens(self) -> int:
        """Tokens that the model computed (an upper bound if cached tokens are unknown)."""
        return self.prompt_tokens - (self.cached_tokens or 0) + self.completion_tokens

    @property
    def cache_hit_rate(self) -> float | None:
        """Share of prompt tokens found in the prefix cache; None if unknown."""
        if self.cached_tokens is None:
            return None
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


class Engine(Protocol):
    """The interface of all engines, which all keep the same rules; see `open_engine`."""

    @property
    def info(self) -> EngineInfo: ...
    @property
    def usage(self) -> Usage: ...
    def generate(
        self, prompts: Iterable[Prompt], sampling: Sampling = ..., *, errors: Errors = ...
    ) -> list[Completion]: ...
    def stream(
        self, prompts: Iterable[Prompt], sampling: Sampling = ...
    ) -> Generator[tuple[int, Completion], None, None]: ...
    def label_logprobs(
        self, prompts: Iterable[Prompt], labels: Labels, *, errors: Errors = ...
    ) -> LabelScores: ...
    def close(self) -> None: ...
    def __enter__(self) -> Engine: ...
    def __exit__(self, *exc: object) -> None: ...


@dataclass(frozen=True, slots=True, repr=False)
class Item(Shown):
    """One question of a task; prompts are made from its `fields`."""

    id: str
    fields: Mapping[str, Any]
    answer: str


@dataclass(frozen=True, slots=True)
class Grade:
    """A verdict on one response. `correct` is None if no answer could be read from it.

    `notes` are further numbers by name, which become columns of a report's rows.
    """

    correct: bool | None
    extracted: str | None
    parsed: bool
    notes: Mapping[str, float] = field(default_factory=dict)


class Task(Protocol):
    """Items, the prompts made from them, and a grader that accepts every gold answer.

    `sampling` is how to answer: the maximum length, and where an answer ends. `difficulty` is the
    field that separates easy items from hard ones; "" if there is none.
    """

    name: str
    split: str
    difficulty: str
    sampling: Sampling

    def items(self, count: int | None = None, seed: int = 0) -> list[Item]: ...
    def prompt(self, item: Item, shots: int = 0, style: PromptStyle = "completion") -> Prompt: ...
    def grade(self, item: Item, text: str) -> Grade: ...


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Report(Exports, Browsable):
    """The result of every experiment: headline numbers, one row per item, usage and provenance."""

    summary: tuple[Metric, ...]
    rows: pd.DataFrame
    usage: Usage
    provenance: Mapping[str, Any]

    def wrong(self) -> pd.DataFrame:
        """The rows with a wrong answer, unreadable ones included; without rows that failed.

        Raises:
            InputError: the rows have no verdicts.
        """
        if "correct" not in self.rows:
            have = ", ".join(map(str, self.rows.columns))
            raise InputError(
                f"this report has no verdicts, a column `correct`: see its rows ({have:.200})"
            )
        wrong = self.rows["correct"].eq(False).fillna(value=False).astype(bool)
        return self.rows[wrong & self.rows["error"].isna() if "error" in self.rows else wrong]

    def save(
        self, folder: str | Path, figure: Figure | None = None, *, inspect: bool = False
    ) -> Path:
        """Write `summary.json`, `rows.parquet` and, with a `figure`, `figure.png`.

        The folder appears only when it is complete. With `inspect` it has `inspect.eval` too, for
        `inspect view --log-dir FOLDER`.

        Raises:
            InputError: the folder exists; and as `export`, with `inspect`.
        """
        from pathlib import Path

        from workbench.files import new_folder
        from workbench.plots.theme import PICTURE

        given = Path(folder)
        if given.resolve().exists():
            raise InputError(f"{given} exists already: choose another folder for this report")
        with new_folder(given) as part:
            self._write(part)
            if figure is not None:
                figure.savefig(part / "figure.png", **PICTURE)
            if inspect:
                self.export(part / "inspect.eval")
        return given

    def reproduce(self, **given: Any) -> Any:
        """Run it again, past the store, and compare: see `reproduction.reproduce`."""
        return import_module("workbench.reproduction").reproduce(self, **given)

    def _write(self, folder: Path) -> None:
        """Write all files but the figure."""
        import json

        summary = {
            "summary": [asdict(metric) for metric in self.summary],
            "forms": [metric.form for metric in self.summary],
            "usage": asdict(self.usage),
            "provenance": dict(self.provenance),
        }
        self.rows.to_parquet(folder / "rows.parquet", index=False)
        (folder / "summary.json").write_text(json.dumps(summary, indent=1, default=str) + "\n")
