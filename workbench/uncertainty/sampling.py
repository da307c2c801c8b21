"""How sure is a model of answers in free text? It answers several times: how many meanings come?

One answer an item is greedy, and its correctness is what the signals are to predict; the others are
sampled, and joined where they mean the same. What the task's grader reads nothing from is a meaning
of its own: as one they would make a model that babbles look sure.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from workbench.agents import AgentCase, named
from workbench.agents.methods import check_samples, cluster, yes_or_no
from workbench.errors import InputError
from workbench.evaluation import accuracy, prepare_cases, to_frame
from workbench.stats import mean
from workbench.store import digest
from workbench.types import Completion, Engine, Grade, Metric, Report, Task
from workbench.uncertainty.meanings import Same, Texts, discrete_entropy, joined, semantic_entropy
from workbench.uncertainty.selective import selective_report

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

log = logging.getLogger("workbench")
NAN = float("nan")

SIGNALS = {
    "majority share": ("majority_share", 1),
    "semantic entropy": ("entropy_weighted", -1),
    "discrete entropy": ("entropy_discrete", -1),
    "mean log-probability": ("mean_logprob", 1),
    "p(true)": ("p_true", 1),
}
"""The column of each, and its sign where higher is surer."""


def sample_uncertainty(
    task: Task | str, engine: Engine, count: int | None = None, seed: int = 0, *,
    samples: int = 10, temperature: float = 1.0, shots: int = 0,
    style: Literal["completion", "chat"] = "completion",
    same: Literal["grader"] | Same = "grader", p_true: bool = True,
) -> Report:  # fmt: skip
    """Answer every item once greedily and several times at random, all items together.

    Args:
        task, count, seed, shots, style: as in `evaluate`; `seed` draws the samples too.
        samples: answers an item beside the greedy one.
        temperature: at which they are sampled; log-probabilities are the model's own all the same.
        same: what joins two answers: "grader", where the task would take one for the other, or a
            function (see `judged`). It is asked in rounds, about pairs of all items at once:
            each answer not joined yet beside the first of these. Equal texts it is not asked about.
        p_true: ask also whether the greedy answer is correct.

    Returns:
        Accuracy of the greedy answers and of the most frequent ones, means of the signals, and one
        row an item:

        text, correct, parsed: of the greedy answer; error: why it or all samples failed.
        unknown: why a signal of a row that did not fail is NaN.
        length: characters of the question.
        n_samples, n_failed: samples that came, and those that did not and count nowhere else.
        n_unparsed: of those that came, the ones that nothing could be read from.
        clusters: meanings, each unreadable sample one of its own.
        majority_share: largest cluster of readable samples over all that came: 1 readable of 10 is
            no certainty; 0 where none is. Of equal ones the first given counts.
        majority_text, majority_correct: the first answer of that cluster.
        entropy_discrete, entropy_weighted: see `discrete_entropy`, `semantic_entropy`; a sample's
            log-likelihood is the mean over its tokens.
        mean_logprob: of the greedy answer's tokens.
        p_true: P(yes) / (P(yes) + P(no)) for the greedy answer, in the form of
            `agents.methods.yes_or_no` (P(True) of Kadavath et al. 2022, arXiv 2207.05221, s. 4).

        The usage is that of `engine`, not of another one that judges.

    Raises:
        InputError: fewer than 2 samples, a temperature that makes them alike, a `same` that is none
            or gives something else than a verdict a pair, or as `evaluate`.
    """
    check_samples(samples, temperature)
    if same != "grader" and not callable(same):
        raise InputError(f'same={same!r:.60}: give "grader", or a function such as judged(engine)')
    cases, provenance = prepare_cases(
        task, engine, "standard", count, 1, seed, shots=shots, style=style
    )
    greedy = replace(cases[0].sampling, n=1, temperature=0.0, seed=None, logprobs=0)
    own = int.from_bytes(digest("uncertainty", seed)[:4], "big")
    drawn = replace(greedy, n=samples, temperature=float(temperature), seed=own)
    before, prompts = engine.usage, [case.prompt for case in cases]
    firsts = engine.generate(prompts, greedy, errors="return")
    others = engine.generate(prompts, drawn, errors="return")
    answered = [_Answered(*three) for three in zip(cases, firsts, others, strict=True)]
    for one in answered:
        one.read(by_grader=same == "grader")
    done = [one for one in answered if one.error is None]
    if callable(same):
        for one, groups in zip(done, joined([one.texts() for one in done], same), strict=True):
            one.groups = groups
            if groups is None:
                one.unknown.append("clusters: no verdict on whether two answers are the same")
    if p_true and done:
        _trust(done, engine)
    rows = to_frame([one.row() for one in answered])
    rows = rows.astype({"clusters": "Int64", "n_unparsed": "Int64"})
    told = {"sampling": asdict(drawn), "samples": samples, "temperature": temperature}
    provenance |= told | {"same": named(same), "p_true": p_true}  # type: ignore[arg-type]
    summary = tuple(_summary(rows, samples, p_true=p_true))
    return Report(summary, rows, engine.usage.since(before), provenance)


@dataclass(slots=True)
class _Answered:
    """An item with its answers. `groups` are places in `came` of readable samples of one meaning,
    `right` those of their first ones that are right."""

    case: AgentCase
    greedy: Completion
    drawn: Completion
    error: str | None = None
    grade: Grade | None = None
    came: list[Completion] = field(default_factory=list)
    unparsed: int | None = None
    groups: list[list[int]] | None = None
    right: set[int] = field(default_factory=set)
    p_true: float = NAN
    unknown: list[str] = field(default_factory=list)

    def read(self, *, by_grader: bool) -> None:
        """Grade the answers, and put together those that are equal without asking."""
        self.came = [sample for sample in self.drawn.samples if sample.error is None]
        if self.greedy.error is not None:
            self.error = f"the greedy answer failed: {self.greedy.error}"
        elif not self.came:
            self.error = f"all samples failed: {self.drawn.samples[0].error}"
        else:
            try:
                self._grade(by_grader)
            except Exception as failure:  # noqa: BLE001 - a user's code, of any kind
                self.error = f"the task's grader raised {type(failure).__name__}: {failure}"

    def _grade(self, by_grader: bool) -> None:
        task, item, texts = self.case.task, self.case.item, [one.text for one in self.came]
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

    def texts(self) -> Texts:
        return self.case.item, [sample.text for sample in self.came], self.groups or []

    def row(self) -> dict[str, Any]:
        item, prompt, done = self.case.item, self.case.prompt, self.error is None
        shown = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        logprob = _loglik(self.greedy) if done else NAN
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
            "n_samples": len(self.came),
            "n_failed": len(self.drawn.samples) - len(self.came),
            "n_unparsed": self.unparsed if done else None,
            "unknown": "; ".join(self.unknown) or None,
        }

    def _meanings(self) -> dict[str, Any]:
        """What the samples tell; nothing of it where it is not known which mean the same."""
        if self.error is not None or self.groups is None:
            found = dict.fromkeys(("majority_share", "entropy_discrete", "entropy_weighted"), NAN)
            return found | {"clusters": None, "majority_text": "", "majority_correct": False}
        read = {place for group in self.groups for place in group}
        groups = [*self.groups, *([place] for place in range(len(self.came)) if place not in read)]
        logliks = [_loglik(sample) for sample in self.came]
        known = all(map(math.isfinite, logliks))
        if not known:
            self.unknown.append("entropy_weighted: a sample came without log-probabilities")
        most = max(self.groups, key=len, default=[])  # max takes the first of equals
        return {
            "clusters": len(groups),
            "majority_share": len(most) / len(self.came),
            "majority_text": self.came[most[0]].text if most else "",
            "majority_correct": bool(most) and most[0] in self.right,
            "entropy_discrete": discrete_entropy([len(group) for group in groups]),
            "entropy_weighted": semantic_entropy(groups, logliks) if known else NAN,
        }


def _loglik(answer: Completion) -> float:
    """Mean over its tokens, NaN where that is not known."""
    told = [token.logprob for token in answer.logprobs or ()]
    return math.fsum(told) / len(told) if told and all(map(math.isfinite, told)) else NAN


def _trust(answered: Sequence[_Answered], engine: Engine) -> None:
    """Have the greedy answers weighed, all at once."""
    import numpy as np

    asked_for = [yes_or_no(one.case, one.greedy.text) for one in answered]
    prompts = [score.prompt for score in asked_for]
    found = engine.label_logprobs(prompts, asked_for[0].labels, errors="return")
    rows = zip(answered, found.logprobs, found.missing, found.errors, strict=True)
    for one, logprobs, missing, error in rows:
        if error or missing.any() or logprobs.max() == -np.inf:
            reason = error or "a label has no exact log-probability here"
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


def signals(report: Report | pd.DataFrame) -> dict[str, NDArray[Any]]:
    """The signals of a report (or its rows) by name, [n] each, higher is surer.

    They are of the same rows: those that did not fail and lack none of the signals. A signal that
    no row has is left out.

    Raises:
        InputError: there are no such rows.
    """
    rows, columns = _complete(report)
    return {
        name: sign * rows[column].to_numpy(float)
        for name, (column, sign) in SIGNALS.items()
        if column in columns
    }


def selective(report: Report | pd.DataFrame, resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """How well each signal tells right greedy answers from wrong: `selective_report` on them, with
    its random numbers and the question's length beside them.

    Raises:
        InputError: as `signals` and `selective_report`.
    """
    rows, _ = _complete(report)
    return selective_report(signals(rows), rows["correct"], lengths=rows["length"],
                            resamples=resamples, seed=seed)  # fmt: skip


def _complete(report: Report | pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    rows = report.rows if isinstance(report, Report) else report
    done = rows[rows["error"].isna()]
    columns = [column for column, _ in SIGNALS.values() if done[column].notna().any()]
    kept = done.dropna(subset=columns)
    if not columns or kept.empty:
        raise InputError(f"{len(rows)} rows, none with signals: `error` and `unknown` say why")
    if less := len(done) - len(kept):
        log.warning("%d of %d rows are left out: they lack a signal (`unknown`)", less, len(done))
    return kept, columns
