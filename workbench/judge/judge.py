"""A judge: one or several engines, and a template. It judges existing texts.

The texts can come from anywhere, such as the rows of a saved report (`cases_of`), so another judge
or rubric can score the same answers without generating them again. Verdicts are kept in the
judging engine's store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from workbench.engines.source import EMBEDDED
from workbench.errors import InputError
from workbench.judge.templates import Case, Pair, Template, builtin
from workbench.judge.votes import SIDES, Ballot, Mode, Row, Vote, both, cast, fitting
from workbench.lazy import pd
from workbench.runs import commit
from workbench.stats import Share, balanced_accuracy, kappa, mean, mean_share, paired_shares
from workbench.types import Engine, Metric, Report, Sampling, Usage

Judged = TypeVar("Judged", Case, Pair)
COUNTS = {"pointwise": (2,), "pairwise": (2, 3)}  # allowed numbers of choices
NAN = float("nan")


@dataclass(frozen=True, slots=True)
class _Answers:
    """The votes on every prompt, with the facts for a report."""

    ballots: list[Ballot]
    usage: Usage
    provenance: dict[str, Any]

    def report(self, summary: Sequence[Metric], rows: list[Row], **types: str) -> Report:
        frame = pd.DataFrame(rows).astype(types)
        return Report(tuple(summary), frame, self.usage, self.provenance)


class Judge:
    """A judge with one engine, or with the majority vote of several.

    Args:
        engines: one or several. Each answers `samples` times for each case.
        template: a `Template` or the path of a template file; by default a built-in one, as a chat
            or a completion, whichever the engine supports.
        samples: verdicts of each engine on each case; more than one needs `temperature` above 0.
        temperature, seed, max_tokens: as in `Sampling`; a reasoning model needs many tokens.

    Raises:
        InputError: an argument or the template file is invalid.
    """

    def __init__(
        self,
        engines: Engine | Sequence[Engine],
        template: Template | str | Path | None = None,
        *,
        samples: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
        max_tokens: int = 1024,
    ) -> None:
        self._engines = tuple(engines) if isinstance(engines, Sequence) else (engines,)
        if not self._engines or not all(hasattr(e, "label_logprobs") for e in self._engines):
            raise InputError(f"engines={engines!r} must be an engine, or a list of at least one")
        if len({id(engine) for engine in self._engines}) < len(self._engines):
            raise InputError("engines holds one engine twice: set samples to ask it several times")
        self._sampling = Sampling(
            n=samples, temperature=temperature, seed=seed, max_tokens=max_tokens
        )
        if isinstance(template, str | Path):
            template = Template.load(template)
        if not isinstance(template, Template | None):
            raise InputError(f"template={template!r} must be a Template or the path of a file")
        self._template = template

    def pointwise(self, cases: Sequence[Case], mode: Mode = "generate") -> Report:
        """Judge whether each answer is correct.

        Args:
            cases: each with or without a `reference`; `gold` is True or False, if known.
            mode: "generate" generates the verdict, restricted to the choices if the engine can;
                "logprob" takes the likelier choice and reports its probability. It costs only the
                prompt's tokens.

        Returns:
            A `Report`. Rows: `verdict` (True, False or missing), `probability` of accepting
            ("logprob": mean over the judges), `votes` and `texts` (by judge, then by sample), and
            the reason for a missing verdict: `error` (all calls failed) or `unparsed` (no readable
            verdict, or a tie). Summary: the share accepted and, with gold, balanced accuracy and
            Cohen's kappa, over the cases with a verdict, with the number of the others.

        Raises:
            InputError: no cases, an unknown mode, a gold value or template of the wrong kind.
        """
        cases = _checked(cases, Case, lambda gold: isinstance(gold, bool), "True or False")
        asked = self._ask("pointwise", [case.values() for case in cases], mode)
        rows = []
        for index, (case, ballot) in enumerate(zip(cases, asked.ballots, strict=True)):
            accepting = ballot.chances[0] if ballot.chances else None
            rows.append(_given(case, index) | ballot.row((True, False), probability=accepting))
        summary = [_share("accepted", rows, [row["verdict"] for row in rows]), *_agreement(rows)]
        return asked.report(summary, rows, verdict="boolean", gold="boolean", probability="Float64")

    def rubric(self, cases: Sequence[Case], mode: Mode = "generate") -> Report:
        """Score each answer on the template's scale.

        Args:
            cases: `gold` is a score of the scale, if known.
            mode: as in `pointwise`.

        Returns:
            A `Report` as from `pointwise`. Rows: `score` is the mean of the votes or, with
            "logprob", of the scores weighted by their probability (Liu et al. 2023, G-Eval,
            equation 1); `verdict` is the score of most votes, missing at a tie. Summary: mean
            score and, with gold, balanced accuracy and kappa with quadratic weights of `verdict`.

        Raises:
            InputError: as `pointwise`, or the template's choices are not numbers.
        """
        scale = self._chosen(self._engines[0], "rubric").scale
        cases = _checked(
            cases, Case, lambda gold: type(gold) is not bool and gold in scale, f"one of {scale}"
        )
        asked = self._ask("rubric", [case.values() for case in cases], mode)
        rows = []
        for index, (case, ballot) in enumerate(zip(cases, asked.ballots, strict=True)):
            row = ballot.row(scale, score=ballot.score(scale))
            rows.append(_given(case, index) | row)
        known = [row["score"] for row in rows if row["score"] is not None]
        failed = sum(row["error"] is not None for row in rows)
        name, low, high = "mean score", min(scale), max(scale)
        metric = mean(name, known, low, high) if known else Metric(name, NAN, low, high, 0)
        metric = replace(metric, n_failed=failed, n_unparsed=len(rows) - failed - len(known))
        types = {"verdict": "Float64", "gold": "Float64", "score": "Float64"}
        return asked.report([metric, *_agreement(rows, power=2)], rows, **types)

    def pairwise(self, pairs: Sequence[Pair], mode: Mode = "generate") -> Report:
        """Judge which of two answers is better. Each pair is shown in both orders.

        Args:
            pairs: `gold` is "a", "b" or "tie", if known.
            mode: as in `pointwise`.

        Returns:
            A `Report` as from `pointwise`. Rows: `verdict_ab` and `verdict_ba` with `a` or `b`
            shown first; `verdict` is their verdict if they agree, else "tie", and missing if one
            is missing; `probability` that `a` is better (plus half the probability of a tie), mean
            of both orders. Summary: shares of wins and ties, agreement of the two orders, how often
            the answer shown first wins (over pairs where both orders chose a side; 0.5 is no bias)
            and, with gold, balanced accuracy and kappa.

        Raises:
            InputError: as `pointwise`.
        """
        pairs = _checked(pairs, Pair, lambda gold: gold in SIDES, f"one of {SIDES}")
        shown = [pair.values() for pair in pairs] + [pair.values(swapped=True) for pair in pairs]
        asked = self._ask("pairwise", shown, mode)
        half = len(pairs)
        orders = zip(pairs, asked.ballots[:half], asked.ballots[half:], strict=True)
        rows = [_given(pair, i) | both(ab, ba) for i, (pair, ab, ba) in enumerate(orders)]
        names = {"a": "a wins", "b": "b wins", "tie": "ties"}
        verdicts = [row["verdict"] for row in rows]
        shares = [_share(names[x], rows, [v and v == x for v in verdicts]) for x in SIDES]
        agree = [row["verdict"] and row["verdict_ab"] == row["verdict_ba"] for row in rows]
        shares += [_share("agreement of both orders", rows, agree), _first(rows)]
        return asked.report([*shares, *_agreement(rows)], rows, probability="Float64")

    def _chosen(self, engine: Engine, kind: str) -> Template:
        if (template := self._template) is None:
            tiny = kind == "pointwise" and engine.info.model == EMBEDDED
            template = builtin("tiny" if tiny else kind)  # the form that it was trained on
            if not getattr(engine, "has_chat", True):  # a base model
                template = template.as_text()
        template = fitting(template, engine)
        if template.compares is not (kind == "pairwise"):
            need = "{a} and {b}" if kind == "pairwise" else "{candidate}"
            raise InputError(f"template {template.name}: {kind} needs one with {need}")
        if kind in COUNTS and len(template.choices) not in COUNTS[kind]:
            raise InputError(
                f"template {template.name}: {kind} needs "
                f"{' or '.join(map(str, COUNTS[kind]))} choices, not {template.choices!r}"
            )
        return template

    def _ask(self, kind: str, values: Sequence[Mapping[str, str | None]], mode: Mode) -> _Answers:
        """Collect every engine's votes on every prompt."""
        if mode not in ("generate", "logprob"):
            raise InputError(f'mode={mode!r} must be "generate" or "logprob"')
        if mode == "logprob" and self._sampling.n > 1:
            raise InputError(
                f'samples={self._sampling.n}: mode="logprob" has only one; set samples to 1'
            )
        templates = [self._chosen(engine, kind) for engine in self._engines]
        votes: list[list[Vote]] = [[] for _ in values]
        usage, outputs = Usage(), []
        for engine, template in zip(self._engines, templates, strict=True):
            prompts, before = [template.fill(one) for one in values], engine.usage
            found, used = cast(engine, template, prompts, self._sampling, mode)
            outputs.append(used)
            for mine, new in zip(votes, found, strict=True):
                mine.extend(new)
            usage += engine.usage.since(before)
        provenance = {
            "judge": kind,
            "mode": mode,
            "templates": [{"name": t.name, "digest": t.digest} for t in templates],
            "outputs": outputs,
            "sampling": asdict(self._sampling),
            "engines": [asdict(engine.info) for engine in self._engines],
            "commit": commit(),
        }
        return _Answers([Ballot(tuple(mine)) for mine in votes], usage, provenance)


def _checked(
    cases: object, kind: type[Judged], fits: Callable[[Any], bool], need: str
) -> list[Judged]:
    name = kind.__name__
    if not isinstance(cases, Sequence) or isinstance(cases, str) or not cases:
        raise InputError(f"{cases!r:.80} must be a list of at least one {name}")
    for index, case in enumerate(cases):
        if not isinstance(case, kind):
            raise InputError(f"case {index} is {case!r:.80}: make it a {name}(…)")
        if case.gold is not None and not fits(case.gold):
            raise InputError(f"case {index}: gold={case.gold!r} must be {need}, or None")
    return list(cases)


def _given(case: Case | Pair, index: int) -> Row:
    given = {field.name: getattr(case, field.name) for field in fields(case)}
    return {"id": given.pop("id") or str(index)} | given


def _share(name: str, rows: Sequence[Row], flags: Sequence[bool | None]) -> Metric:
    """The share of true flags among the known ones; failed and unparsed rows are counted apart."""
    failed, unparsed = _missing(rows)
    known = [flag for flag in flags if flag is not None]
    return mean_share(name, known, n_failed=failed, n_unparsed=unparsed)


def _missing(rows: Sequence[Row]) -> tuple[int, int]:
    """How many rows failed, and how many lack a verdict for another reason."""
    failed = sum(row["error"] is not None for row in rows)
    return failed, sum(row["unparsed"] is not None for row in rows)


def _first(rows: Sequence[Row]) -> Metric:
    """How often the side shown first wins: 1/2, plus half of the difference between how often it
    and the side shown second win both orders of a pair."""
    name = "first position wins"
    orders = [(row["verdict_ab"], row["verdict_ba"]) for row in rows]
    if not (sided := [order for order in orders if {*order} <= {"a", "b"}]):
        return Metric(name, NAN, 0.0, 1.0, 0, *_missing(rows))
    twice = ([order == one for order in sided] for one in (("a", "b"), ("b", "a")))
    more = paired_shares(name, *twice)
    value, low, high = (0.5 + x / 2 for x in (more.value, more.low, more.high))
    return Share(name, value, low, high, len(sided), *_missing(rows))


def _agreement(rows: Sequence[Row], power: int | None = None) -> list[Metric]:
    """Agreement of verdict and gold, over the rows that have both."""
    known = [row for row in rows if row["gold"] is not None]
    done = [row for row in known if row["verdict"] is not None]
    names = ("balanced accuracy", "Cohen's kappa")
    if not known:
        return []
    if not done:
        found = [Metric(names[0], NAN, 0.0, 1.0, 0), Metric(names[1], NAN, -1.0, 1.0, 0)]
    else:
        verdicts, gold = [row["verdict"] for row in done], [row["gold"] for row in done]
        right = [verdict == true for verdict, true in zip(verdicts, gold, strict=True)]
        found = [
            balanced_accuracy(names[0], right, gold),
            kappa(names[1], verdicts, gold, power=power),
        ]
    failed, unparsed = _missing(known)
    return [replace(metric, n_failed=failed, n_unparsed=unparsed) for metric in found]
