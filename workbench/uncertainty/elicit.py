"""Asking models for the log-probabilities of six options: a table from which all scores follow.

All prompts of all tasks go to a model in one call, and to several servers at the same time. What
was answered is in the engine's store: asked again, only the rest is computed.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from workbench.errors import EngineError, InputError
from workbench.progress import bars
from workbench.runs import commit
from workbench.stats import mean, proportion
from workbench.tasks.multiple_choice import MultipleChoice
from workbench.types import Engine, Item, LabelRow, Metric, Prompt, Report, Usage
from workbench.uncertainty.choices import LETTERS
from workbench.uncertainty.prompts import PROMPTS, OptionPrompt, labels, option_prompts
from workbench.uncertainty.report import joined_tables
from workbench.uncertainty.streams import scored_by_all

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("workbench")


@dataclass(frozen=True, slots=True)
class _Question:
    """An item as one prompt asks it."""

    task: str
    prompt: OptionPrompt
    item: Item
    text: Prompt


def elicit_options(
    items: Sequence[Item], engine: Engine, prompt: OptionPrompt = "base", *,
    demonstrations: Sequence[Item] = (), chat: bool = False, task: str = "own",
) -> Report:  # fmt: skip
    """What a model thinks of the six options of each item.

    Args:
        items: with six options (see `tasks.open_choices`), each with an id of its own.
        prompt: "base", "shared" or "task": see `uncertainty.prompts`.
        demonstrations: worked examples before each item.
        chat: ask through the model's chat template.
        task: what the table calls these items.

    Returns:
        As `elicit`.

    Raises:
        InputError: no items, or one that cannot be asked like this.
    """
    return elicit(
        [MultipleChoice(task, "qa", items, demonstrations)], [engine], [prompt], chat=chat
    )


def elicit(
    tasks: Sequence[MultipleChoice], engines: Sequence[Engine],
    prompts: Sequence[OptionPrompt] = PROMPTS, *,
    count: int | None = None, seed: int = 0, chat: bool = False,
) -> Report:  # fmt: skip
    """What several models think of several tasks, in several prompts.

    Engines of this process run one after the other, servers at the same time.

    Args:
        count: items of each task, chosen by `seed`; None is all.

    Returns:
        Of each model accuracy, mean letter mass, and the share of answers that lack a letter, over
        items (`n_failed` counts rows); a row for each model, task, prompt and item, in this order:
        model, task, prompt, id, group, answer, A to F (natural
        log-probabilities over the full vocabulary, -inf where an endpoint does not tell one, NaN
        where the row failed), mass (probability of the six letters together), missing (letters not
        told), length (characters of the item), error.

    Raises:
        InputError: no tasks, engines or prompts, two of one name, or items that cannot be asked.
        EngineError: no engine gave any answer.
    """
    import pandas as pd

    for what, listed in (("tasks", tasks), ("engines", engines), ("prompts", prompts)):
        if isinstance(listed, str) or not isinstance(listed, Sequence):
            raise InputError(f"{what}={listed!r:.60}: give a list of them")
    for task in tasks:
        if not isinstance(task, MultipleChoice):
            raise InputError(f"tasks: {task!r:.60} is none of `open_choices`")
    models = [engine.info.model for engine in engines]
    names = [task.name for task in tasks]
    for what, given in (("tasks", names), ("engines", models), ("prompts", prompts)):
        _check_different(what, given)
    questions = _questions(tasks, prompts, count, seed, chat=chat)
    before = [engine.usage for engine in engines]
    totals = {f"{len(names)} tasks": len(engines) * len(questions)} if len(names) > 1 else {}
    for name, asked in Counter(question.task for question in questions).items():
        totals[name] = len(engines) * asked
    texts = [question.text for question in questions]
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    with (
        bars(totals, "row") as shown,
        closing(scored_by_all(engines, texts, labels(chat))) as answers,
    ):
        for number, found in answers:
            question = questions[found.index]
            rows[number, found.index] = _row(models[number], question, found)
            for what in {next(iter(totals)), question.task}:
                shown[what].update()
    frame = pd.DataFrame(rows[key] for key in sorted(rows))
    spent = [engine.usage.since(mark) for engine, mark in zip(engines, before, strict=True)]
    provenance = {
        "tasks": names,
        "demonstrations": {task.name: len(task.demonstrations) for task in tasks},
        "prompts": list(prompts), "chat": chat, "count": count, "seed": seed,
        "engines": [asdict(engine.info) for engine in engines],
        "usage": [asdict(one) for one in spent],
        "commit": commit(),
    }  # fmt: skip
    if frame["error"].notna().all():
        raise EngineError(f"no question was answered; the first: {frame['error'].iloc[0]}")
    return Report(_summary(frame), frame, sum(spent, Usage()), provenance)


def joined(reports: Sequence[Report]) -> Report:
    """What several calls of `elicit` for the same questions found, such as one for each model.

    Raises:
        InputError: as `report.joined_tables`.
    """
    rows = joined_tables(reports)
    told = [report.provenance for report in reports]
    together = {name: [one for part in told for one in part[name]] for name in ("engines", "usage")}
    spent = sum((report.usage for report in reports), Usage())
    return Report(_summary(rows), rows, spent, {**told[0], **together})


def _check_different(what: str, given: Sequence[str]) -> None:
    if not given:
        raise InputError(f"{what} is empty: give 1 at least")
    name, times = Counter(given).most_common(1)[0]
    if times > 1:
        raise InputError(f"{what}: {times} are called {name!r}; give each once")


def _questions(
    tasks: Sequence[MultipleChoice], prompts: Sequence[OptionPrompt], count: int | None, seed: int,
    *, chat: bool,
) -> list[_Question]:  # fmt: skip
    found = []
    for task in tasks:
        items = task.items(count, seed)
        if not items:
            raise InputError(f"task {task.name} has no items: give 1 at least")
        for item in items:
            _check_item(item)
        _check_different(f"ids of {task.name}", [item.id for item in items])
        for prompt in prompts:
            texts = option_prompts(items, prompt, demonstrations=task.demonstrations, chat=chat)
            found += [
                _Question(task.name, prompt, *pair) for pair in zip(items, texts, strict=True)
            ]
    return found


def _check_item(item: Item) -> None:
    """Before anything is asked, what is needed when it was."""
    texts = {name: item.fields.get(name, "") for name in ("question", "context")}
    for name, value in ({"id": item.id} | texts).items():
        if not isinstance(value, str):
            raise InputError(f"item {item.id!r:.60}: {name}={value!r:.60} must be a text")
    if item.answer not in LETTERS:
        raise InputError(f"item {item.id!r:.60}: answer={item.answer!r:.60} must be one of A to F")


def _row(model: str, question: _Question, found: LabelRow) -> dict[str, Any]:
    import numpy as np

    item = question.item
    told = np.array(found.logprobs or [np.nan] * len(LETTERS), float)
    return {
        "model": model,
        "task": question.task,
        "prompt": question.prompt,
        "id": item.id,
        "group": str(item.fields.get("group", "")),
        "answer": item.answer,
        **dict(zip(LETTERS, told.tolist(), strict=True)),
        "mass": float(np.exp(told).sum()),
        "missing": int(np.isneginf(told).sum()),
        "length": len(item.fields["question"]) + len(item.fields.get("context", "")),
        "error": found.error,
    }


def _summary(rows: pd.DataFrame) -> tuple[Metric, ...]:
    """Of each model, over items: prompts ask the same ones."""
    import numpy as np

    found: list[Metric] = []
    models = list(dict.fromkeys(rows["model"]))
    for model in models:
        mine = rows[rows["model"] == model]
        done = mine[mine["error"].isna()]
        failed, before = len(mine) - len(done), "" if len(models) == 1 else f"{model}: "
        if done.empty:
            found.append(Metric(f"{before}accuracy", float("nan"), 0.0, 1.0, 0, failed))
            continue
        top = np.array(LETTERS)[done[list(LETTERS)].to_numpy(float).argmax(axis=1)]
        measured = {
            "accuracy": (top == done["answer"]).astype(float),
            "letter mass": done["mass"].clip(0, 1),
            "a letter is missing": (done["missing"] > 0).astype(float),
        }
        items = done[["task", "id"]].assign(**measured).groupby(["task", "id"]).mean()
        for name in measured:
            values = items[name]
            metric = (
                proportion(before + name, int(values.sum()), len(values))
                if values.isin([0.0, 1.0]).all()
                else mean(before + name, values, 0, 1)
            )
            found.append(replace(metric, n_failed=failed))
    return tuple(found)
