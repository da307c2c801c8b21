"""What labels are worth: a model shown them judges claims that are held out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from workbench.errors import EngineError, InputError
from workbench.evaluation import accuracy
from workbench.icm.claim import Claim, Labelled, Wording, check_claims
from workbench.icm.report import ICMReport
from workbench.icm.scorer import Scorer
from workbench.runs import commit
from workbench.types import Engine, LabelScores, Prompt, Report, Usage


def evaluate_labels(
    report_or_labels: ICMReport | Labelled,
    test_claims: Sequence[Claim],
    engine: Engine,
    *,
    wording: Wording | None = None,
) -> Report:
    """Test accuracy: held-out claims, each judged after all labelled ones as demonstrations.

    This is not *label accuracy*, how many of the labels themselves are right.

    Args:
        report_or_labels: what `search` found, or claims with labels; an empty list is zero-shot.
        test_claims: held out; those without gold are judged, but do not count.
        wording: None is that of the report.

    Returns:
        A `Report` with "test accuracy" and the share judged True, one row a test claim. Where not
        all demonstrations fit into the context, `scorer.ContextFit` says which are shown; the
        provenance has the mean, the least and the most of a prompt. A test claim that does not fit
        even alone is a row that failed.

    Raises:
        InputError: no test claims, one of them is among the labelled ones, or a label is missing.
        EngineError: no claim could be judged.
    """
    if isinstance(report_or_labels, ICMReport):
        wording = wording or Wording(**report_or_labels.provenance["wording"])
        shown = report_or_labels.labelled()
    else:
        shown = report_or_labels
    wording, test = wording or Wording(), check_claims(test_claims, "test_claims")
    claims, labels = _parted(shown)
    known = {claim.text for claim in claims}
    for claim in test:
        if claim.text in known:
            raise InputError(f"the test claim {claim.text!r:.80} is a demonstration too: drop it")
    before, prompts = engine.usage, [claim.text for claim in test]
    settings: dict[str, Any] = {"demonstrations": 0, "labelled": len(claims)}
    if claims:
        scorer = Scorer(engine, claims, wording, more=prompts)
        prompts = [scorer.prompt(labels, range(len(claims)), text) for text in prompts]
        counts = scorer.shown_counts
        settings |= {
            "demonstrations": counts.mean,
            "demonstrations_least": counts.least,
            "demonstrations_most": counts.most,
        }
    return _judged(test, prompts, wording.labels, engine, before=before, settings=settings)


def evaluate_chat(
    test_claims: Sequence[Claim], engine: Engine, *, wording: Wording | None = None
) -> Report:
    """Test accuracy without demonstrations, each claim put as a question through the chat template.

    Raises:
        InputError: no test claims, or the model has no chat template.
        EngineError: no claim could be judged.
    """
    wording, test = wording or Wording(), check_claims(test_claims, "test_claims")
    prompts = [
        [{"role": "user", "content": wording.chat.replace("{claim}", claim.text)}] for claim in test
    ]
    before, settings = engine.usage, {"demonstrations": 0, "chat": True}
    return _judged(test, prompts, wording.chat_labels, engine, before=before, settings=settings)


def _parted(shown: Labelled) -> tuple[tuple[Claim, ...], tuple[bool, ...]]:
    """Claims and their labels, if there is one for each."""
    import numpy as np

    for pair in shown:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], bool | np.bool)):
            raise InputError(f"{pair!r:.80} must be a claim with its label: (Claim, True or False)")
    claims = check_claims([claim for claim, _ in shown]) if shown else ()
    return claims, tuple(bool(label) for _, label in shown)


def _judged(
    test: Sequence[Claim],
    prompts: Sequence[Prompt],
    labels: tuple[str, str],
    engine: Engine,
    *,
    before: Usage,
    settings: dict[str, Any],
) -> Report:
    import pandas as pd

    scores = engine.label_logprobs(prompts, labels, errors="return")
    rows = pd.DataFrame([_row(claim, scores, i) for i, claim in enumerate(test)])
    if rows["error"].notna().all():
        raise EngineError(f"no test claim could be judged. First: {rows['error'].iloc[0]}")
    told = rows[rows["answer"].notna()]
    verdicts = rows.assign(correct=rows["verdict"].fillna(value=False).astype(bool))
    summary = [accuracy(told, "test accuracy")] if len(told) else []
    summary.append(accuracy(verdicts, "judged True"))
    provenance = {**settings, "test_claims": len(test), "engine": asdict(engine.info)}
    provenance["commit"] = commit()
    return Report(tuple(summary), rows, engine.usage.since(before), provenance)


def _row(claim: Claim, scores: LabelScores, index: int) -> dict[str, Any]:
    true, false = (float(value) for value in scores.logprobs[index])
    error = scores.errors[index]
    known = math.isfinite(true) and math.isfinite(false) and not scores.missing[index].any()
    if error is None and not known:
        error = "a label's log-probability is missing: an engine that scores labels is needed"
    verdict = None if error else true > false
    return {
        "id": claim.text,
        "group": claim.group,
        "answer": None if claim.gold is None else str(claim.gold),
        "verdict": verdict,
        "log_odds": None if error else true - false,
        "correct": bool(verdict is not None and verdict is claim.gold),
        "parsed": True,
        "error": error,
    }
