"""How sure is a model of answers in free text? Sample several, and count their meanings.

One answer per item is greedy; the signals should predict whether it is correct. The others are
sampled, and clustered by meaning. An answer that the task's grader cannot read is a separate
meaning: in a single cluster, unreadable answers would make a babbling model look sure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from workbench.agents import AgentCase, named
from workbench.agents.methods import check_samples, cluster, yes_or_no
from workbench.cases import prepare_cases
from workbench.engines.style import check_engine
from workbench.errors import InputError
from workbench.judge.templates import Pair, Template
from workbench.judge.votes import cast, fitting
from workbench.lazy import np, pd
from workbench.messages import text_of
from workbench.stats import mean
from workbench.store import digest
from workbench.types import Completion, Engine, Grade, Item, Metric, Report, Sampling, Style
from workbench.verdicts import accuracy, to_frame

NAN = float("nan")

Same = Callable[[Sequence[tuple[Item, str, str]]], Sequence[bool | None]]
"""Do two answers to an item mean the same? For many pairs at once; None means undecided."""

SAME = Template(
    "Question: {problem}\nOne answer: {a}\nAnother answer: {b}\nDo both answers mean the same?",
    choices=(" Yes", " No"),
    style="completion",
    name="same",
)


def sample_uncertainty(
    task: object, engine: Engine, count: int | None = None, seed: int = 0, *,
    samples: int = 10, temperature: float = 1.0, shots: int = 0,
    style: Style = "auto",
    same: Literal["grader"] | Same = "grader", p_true: bool = True,
) -> Report:  # fmt: skip
    """Answer every item once greedily and several times at random, all items together.

    Args:
        task, count, seed, shots, style: as in `evaluate`; `seed` draws the samples too.
        samples: answers per item in addition to the greedy one.
        temperature: for sampling; the reported log-probabilities are those without it.
        same: decides whether two answers mean the same: "grader", if the task accepts one as the
            other, or a function (see `judged`). The function is called in rounds, with pairs of
            all items at once: each unclustered answer with the first of them. Equal texts are
            clustered without it.
        p_true: also ask whether the greedy answer is correct.

    Returns:
        Accuracy of the greedy answers and of the most frequent ones, means of the signals, and one
        row per item:

        text, correct, parsed: of the greedy answer; error: why it or all samples failed.
        unknown: why a signal is NaN in a row that did not fail.
        length: characters of the question.
        n_samples, n_failed: samples that arrived, and those that failed and count nowhere else.
        n_unparsed: samples that arrived but could not be read.
        clusters: number of meanings; each unreadable sample is a separate one.
        majority_share: size of the largest readable cluster over all samples that arrived, so 1
            readable sample of 10 is no certainty; 0 if none is readable. In a tie the first wins.
        majority_text, majority_correct: the first answer of that cluster.
        entropy_discrete, entropy_weighted: see `discrete_entropy`, `semantic_entropy`; a sample's
            log-likelihood is the mean over its tokens.
        mean_logprob: mean over the greedy answer's tokens.
        p_true: P(yes) / (P(yes) + P(no)) for the greedy answer, with the prompt of
            `agents.methods.yes_or_no` (P(True) of Kadavath et al. 2022, arXiv 2207.05221, s. 4).

        The usage is that of `engine`, without that of a judging engine.

    Raises:
        InputError: fewer than 2 samples, a temperature at which all are equal, an invalid `same`
            or one that does not return a verdict per pair; or as `evaluate`.
    """
    check_samples(samples, temperature)
    check_engine(engine)
    if same != "grader" and not callable(same):
        raise InputError(f'same={same!r:.60}: give "grader", or a function such as judged(engine)')
    cases, provenance = prepare_cases(
        task, engine, "standard", count, 1, seed, shots=shots, style=style
    )
    # whether answers have log-probabilities; assumed for an engine that does not report it
    has: Any = getattr(engine, "has_logprobs", lambda chats: True)  # noqa: ARG005
    logprobs = 0 if has(chats=not isinstance(cases[0].prompt, str)) else None
    greedy = replace(cases[0].sampling, n=1, temperature=0.0, seed=None, logprobs=logprobs)
    own_seed = int.from_bytes(digest("uncertainty", seed)[:4], "big")
    sampling = replace(greedy, n=samples, temperature=float(temperature), seed=own_seed)
    before, prompts = engine.usage, [case.prompt for case in cases]
    firsts = engine.generate(prompts, greedy, errors="return")
    others = engine.generate(prompts, sampling, errors="return")
    answered = [_Answered(*three) for three in zip(cases, firsts, others, strict=True)]
    for one in answered:
        one.read(by_grader=same == "grader")
    done = [one for one in answered if one.error is None]
    if callable(same):
        _join(done, same)
    if p_true and done:
        _weigh(done, engine)
    rows = to_frame([one.row() for one in answered])
    rows = rows.astype({"clusters": "Int64", "n_unparsed": "Int64"})
    provenance |= {
        "sampling": asdict(sampling), "samples": samples, "temperature": temperature,
        "same": named(same), "p_true": p_true,  # type: ignore[arg-type]
        "engine": asdict(engine.info),
    }  # fmt: skip
    summary = tuple(_summary(rows, samples, p_true=p_true))
    return Report(summary, rows, engine.usage.since(before), provenance)


@dataclass(slots=True)
class _Answered:
    """An item with its answers.

    `groups` are indexes into `samples` (those that arrived) of readable ones with the same meaning,
    None if that is unknown; `right` are those of correct first answers of a group.
    """

    case: AgentCase
    greedy: Completion
    drawn: Completion
    error: str | None = None
    grade: Grade | None = None
    samples: list[Completion] = field(default_factory=list)
    unparsed: int | None = None
    groups: list[list[int]] | None = None
    right: set[int] = field(default_factory=set)
    p_true: float = NAN
    unknown: list[str] = field(default_factory=list)

    def read(self, *, by_grader: bool) -> None:
        """Grade the answers, and group those that are equal without a judge."""
        self.samples = [sample for sample in self.drawn.samples if sample.error is None]
        if self.greedy.error is not None:
            self.error = f"the greedy answer failed: {self.greedy.error}"
        elif not self.samples:
            self.error = f"all samples failed: {self.drawn.samples[0].error}"
        else:
            try:
                self._grade(by_grader)
            except Exception as failure:  # noqa: BLE001 - a user's code, of any kind
                self.error = f"the task's grader raised {type(failure).__name__}: {failure}"

    def _grade(self, by_grader: bool) -> None:
        task, item, texts = self.case.task, self.case.item, [one.text for one in self.samples]
        self.grade = task.grade(item, self.greedy.text)
        if by_grader:
            groups = cluster(task, item, texts)
        else:
            equal: dict[str, list[int]] = {}
            for place, text in enumerate(texts):
                if task.grade(item, text).extracted is not None:
                    equal.setdefault(text.strip(), []).append(place)
            groups = list(equal.values())
        firsts = [group[0] for group in groups]
        self.right = {place for place in firsts if task.grade(item, texts[place]).correct}
        self.unparsed = len(texts) - sum(map(len, groups))
        self.groups = groups

    def row(self) -> dict[str, Any]:
        item, prompt, done = self.case.item, self.case.prompt, self.error is None
        shown = prompt if isinstance(prompt, str) else text_of(prompt[-1]["content"])
        logprob = _mean_logprob(self.greedy) if done else NAN
        if done and math.isnan(logprob):
            self.unknown.append("mean_logprob: the answer came without log-probabilities")
        return {
            "id": item.id,
            "answer": item.answer,
            "text": self.greedy.text,
            "correct": bool(done and self.grade and self.grade.correct),
            "parsed": bool(done and self.grade and self.grade.parsed),
            "error": self.error,
            **self._meanings(),
            "mean_logprob": logprob,
            "p_true": self.p_true,
            "length": len(str(item.fields.get("question", shown))),
            "n_samples": len(self.samples),
            "n_failed": len(self.drawn.samples) - len(self.samples),
            "n_unparsed": self.unparsed if done else None,
            "unknown": "; ".join(self.unknown) or None,
        }

    def _meanings(self) -> dict[str, Any]:
        """The results from the samples; NaN or None if it is unknown which mean the same."""
        if self.error is not None or self.groups is None:
            lacking = dict.fromkeys(("majority_share", "entropy_discrete", "entropy_weighted"), NAN)
            return lacking | {"clusters": None, "majority_text": "", "majority_correct": False}
        n, parsed = len(self.samples), {place for group in self.groups for place in group}
        groups = [*self.groups, *([place] for place in range(n) if place not in parsed)]
        logliks = [_mean_logprob(sample) for sample in self.samples]
        if not (known := all(map(math.isfinite, logliks))):
            self.unknown.append("entropy_weighted: a sample came without log-probabilities")
        most = max(self.groups, key=len, default=[])  # max returns the first of equals
        return {
            "clusters": len(groups),
            "majority_share": len(most) / n,
            "majority_text": self.samples[most[0]].text if most else "",
            "majority_correct": bool(most) and most[0] in self.right,
            "entropy_discrete": discrete_entropy([len(group) for group in groups]),
            "entropy_weighted": semantic_entropy(groups, logliks) if known else NAN,
        }


def _mean_logprob(answer: Completion) -> float:
    """Mean over its tokens, NaN if unknown."""
    logprobs = [token.logprob for token in answer.logprobs or ()]
    known = logprobs and all(map(math.isfinite, logprobs))
    return math.fsum(logprobs) / len(logprobs) if known else NAN


def _join(answered: Sequence[_Answered], same: Same) -> None:
    """Join the groups of each item that mean the same: each joins the first group whose first text
    it equals.

    A round compares all remaining groups of every item with the first of them. The clusters are
    the same as with one comparison at a time.
    """
    left = [(one, one.groups) for one in answered if one.groups]
    for one, _ in left:
        one.groups = []
    while left:
        pairs = [
            (one.case.item, one.samples[first[0]].text, one.samples[other[0]].text)
            for one, (first, *others) in left
            for other in others
        ]
        verdicts = iter(_verdicts(same, pairs))
        following = []
        for one, (first, *others) in left:
            compared = [(other, next(verdicts)) for other in others]
            if any(alike is None for _, alike in compared):
                one.groups = None
                one.unknown.append("clusters: no verdict on whether two answers are the same")
                continue
            group = [*first, *(place for other, alike in compared if alike for place in other)]
            one.groups = [*(one.groups or []), group]
            if rest := [other for other, alike in compared if not alike]:
                following.append((one, rest))
        left = following


def _verdicts(same: Same, pairs: Sequence[tuple[Item, str, str]]) -> list[bool | None]:
    """The verdicts of `same`, checked; it is not called without pairs."""
    verdicts = same(pairs) if pairs else []
    if not hasattr(verdicts, "__len__") or len(verdicts) != len(pairs):
        raise InputError(
            f"same gave {verdicts!r:.60} for {len(pairs)} pairs: give a verdict for each"
        )
    for one in verdicts:
        if not isinstance(one, bool | np.bool_ | None):
            raise InputError(f"same gave {one!r:.60} for a pair: give True, False, or None")
    return [None if one is None else bool(one) for one in verdicts]


def _weigh(answered: Sequence[_Answered], engine: Engine) -> None:
    """Ask whether the greedy answers are correct, in one call."""
    scores = [yes_or_no(one.case, one.greedy.text) for one in answered]
    prompts = [score.prompt for score in scores]
    scored = engine.label_logprobs(prompts, scores[0].labels, errors="return")
    rows = zip(answered, scored.logprobs, scored.missing, scored.errors, strict=True)
    for one, logprobs, missing, error in rows:
        if error or missing.any() or logprobs.max() == -np.inf:
            reason = error or "the engine has no exact log-probability for a label"
            one.unknown.append(f"p_true: {reason}")
        else:
            one.p_true = float(np.exp(logprobs[0] - np.logaddexp.reduce(logprobs)))


def _summary(rows: pd.DataFrame, samples: int, *, p_true: bool) -> Iterator[Metric]:
    yield accuracy(rows)
    share = rows["majority_share"]
    lost = share.isna().map({True: "unknown", False: None})
    yield accuracy(
        rows.assign(correct=rows["majority_correct"], parsed=share > 0, error=lost),
        "majority accuracy",
    )
    entropy = math.log(samples)
    scales = {"majority_share": 1.0, "entropy_discrete": entropy, "entropy_weighted": entropy}
    for name, most in (scales | ({"p_true": 1.0} if p_true else {})).items():
        known = rows[name].dropna()
        title = f"mean {name}".replace("_", " ")
        metric = mean(title, known, 0.0, most) if len(known) else Metric(title, NAN, 0.0, most, 0)
        yield replace(metric, n_failed=len(rows) - len(known))


def discrete_entropy(counts: Sequence[int]) -> float:
    """Entropy in nats of the relative sizes of these clusters.

    Raises:
        InputError: there are none, or a size is not a whole number from 1.
    """
    if not len(counts) or any(not n >= 1 or n % 1 != 0 for n in counts):
        raise InputError(f"counts={counts!r:.60}: give the size of each cluster, at least 1")
    return _entropy(counts)


def semantic_entropy(clusters: Sequence[Sequence[int]], logliks: Sequence[float]) -> float:
    """Entropy in nats over meanings (Farquhar et al. 2024, Nature 630:625-630). The weight of a
    meaning is its samples' share of the total likelihood.

    Args:
        clusters: indexes into `logliks` of the samples of each meaning, each index once.
        logliks: log-likelihood of each sample divided by its number of tokens.

    Raises:
        InputError: an index is missing, duplicate or out of range, or a value is not finite.
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
    """Entropy of masses that are not normalised. `fsum` is exact, so their order has no effect."""
    total = math.fsum(masses)
    shares = [mass / total for mass in masses if mass > 0]  # a tiny one may underflow to 0
    # Rounding may exceed the bounds, and a sum of -0.0 must not be shown.
    return min(max(0.0, -math.fsum(p * math.log(p) for p in shares)), math.log(len(masses)))


def judged(engine: Engine, template: Template = SAME) -> Same:
    """A model that judges whether two answers to a question mean the same.

    It must agree in both orders, which are one batch of prompts per round.

    Args:
        template: its first choice means "the same"; a chat model needs one in the style "chat".

    Raises:
        InputError: the template is not for two answers and two choices.
    """
    fits = isinstance(template, Template) and template.compares and len(template.choices) == 2
    if not fits:
        raise InputError(f"template={template!r:.80}: give a Template with {{a}}, {{b}}, 2 choices")

    def same(pairs: Sequence[tuple[Item, str, str]]) -> list[bool | None]:
        shown = [
            Pair(str(item.fields.get("question") or item.fields.get("problem") or item.id), a, b)
            for item, a, b in pairs
        ]
        values = [pair.values(swapped=swapped) for swapped in (False, True) for pair in shown]
        asked = fitting(template, engine)
        votes, _ = cast(engine, asked, [*map(asked.fill, values)], Sampling(), "logprob")
        places = [vote.choice for (vote,) in votes]
        orders = zip(places[: len(shown)], places[len(shown) :], strict=True)
        return [False if 1 in both else None if None in both else True for both in orders]

    same.__name__ = f"judged({engine.info.model}, template {template.digest})"  # for the provenance
    return same
