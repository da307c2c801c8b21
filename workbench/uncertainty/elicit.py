"""Asking models for the log-probabilities of six options: a table from which all scores follow.

All prompts of all tasks go to a model in one call, and to several servers at the same time. What
was answered is in the engine's store: asked again, only the rest is computed.
"""

from __future__ import annotations

import contextvars
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from workbench.engines.base import BaseEngine
from workbench.engines.local import LocalEngine
from workbench.engines.meter import bars
from workbench.errors import EngineError, EngineGoneError, InputError
from workbench.runs import commit
from workbench.stats import mean, proportion
from workbench.tasks.choices import Choices
from workbench.types import Engine, Item, LabelRow, Metric, Prompt, Report
from workbench.uncertainty.choices import LETTERS
from workbench.uncertainty.prompts import PROMPTS, OptionPrompt, labels, option_prompts

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["elicit", "elicit_options"]

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
    return elicit([Choices(task, "qa", items, demonstrations)], [engine], [prompt], chat=chat)


def elicit(
    tasks: Sequence[Choices], engines: Sequence[Engine],
    prompts: Sequence[OptionPrompt] = PROMPTS, *,
    count: int | None = None, seed: int = 0, chat: bool = False,
) -> Report:  # fmt: skip
    """What several models think of several tasks, in several prompts.

    Engines of this process run one after the other, servers at the same time.

    Args:
        count: items of each task, chosen by `seed`; None is all.

    Returns:
        Accuracy, mean letter mass, and the share of rows that lack a letter; a row for each model,
        task, prompt and item: model, task, prompt, id, group, answer, A to F (natural
        log-probabilities over the full vocabulary, -inf where an endpoint does not tell one, NaN
        where the row failed), mass (probability of the six letters together), missing (letters not
        told), length (characters of the item), error.

    Raises:
        InputError: no tasks, engines or prompts, two of one name, or items that cannot be asked.
        EngineError: no engine gave any answer.
    """
    import pandas as pd

    names = [engine.info.model for engine in engines]
    for what, given in (
        ("tasks", [task.name for task in tasks]), ("engines", names), ("prompts", prompts),
    ):  # fmt: skip
        _check_different(what, given)
    questions = _questions(tasks, prompts, count, seed, chat=chat)
    before = [engine.usage for engine in engines]
    totals = Counter({"all": 0})
    for question in questions:
        totals["all"] += len(engines)
        totals[question.task] += len(engines)
    rows: list[dict[str, Any]] = []
    with bars(totals, "row") as shown:

        def ask(engine: Engine, stop: threading.Event) -> None:
            for row in _asked(engine, questions, labels(chat)):
                if stop.is_set():
                    return
                rows.append(row)
                shown["all"].update()
                shown[row["task"]].update()

        _each(ask, engines)
    place = {question.item.id: at for at, question in enumerate(questions)}
    order = {name: at for at, name in enumerate([*names, *totals, *PROMPTS])}
    rows.sort(key=lambda r: (*(order[r[k]] for k in ("model", "task", "prompt")), place[r["id"]]))
    frame = pd.DataFrame(rows)
    spent = [engine.usage.since(mark) for engine, mark in zip(engines, before, strict=True)]
    provenance = {
        "tasks": [task.name for task in tasks],
        "demonstrations": {task.name: len(task.demonstrations) for task in tasks},
        "prompts": list(prompts), "chat": chat, "count": count, "seed": seed,
        "engines": [asdict(engine.info) for engine in engines],
        "usage": [asdict(one) for one in spent],
        "commit": commit(),
    }  # fmt: skip
    if frame["error"].notna().all():
        raise EngineError(f"no question was answered; the first: {frame['error'].iloc[0]}")
    return Report(_summary(frame), frame, spent[0], provenance)


def _check_different(what: str, given: Sequence[str]) -> None:
    if not given:
        raise InputError(f"{what} is empty: give 1 at least")
    name, times = Counter(given).most_common(1)[0]
    if times > 1:
        raise InputError(f"{what}: {times} are called {name!r}; give each once")


def _questions(
    tasks: Sequence[Choices], prompts: Sequence[OptionPrompt], count: int | None, seed: int,
    *, chat: bool,
) -> list[_Question]:  # fmt: skip
    found = []
    for task in tasks:
        items = task.items(count, seed)
        if not items:
            raise InputError(f"task {task.name} has no items: give 1 at least")
        _check_different(f"ids of {task.name}", [item.id for item in items])
        for prompt in prompts:
            texts = option_prompts(items, prompt, demonstrations=task.demonstrations, chat=chat)
            found += [
                _Question(task.name, prompt, *pair) for pair in zip(items, texts, strict=True)
            ]
    return found


def _each(ask: Callable[[Engine, threading.Event], None], engines: Sequence[Engine]) -> None:
    """Local models in turn, since each would fill the machine; the others beside them."""
    local = [engine for engine in engines if isinstance(engine, LocalEngine)]
    remote = [engine for engine in engines if not isinstance(engine, LocalEngine)]
    here, beside = (local, remote) if local else (remote[:1], remote[1:])
    stop = threading.Event()  # Ctrl-C reaches this thread alone
    with ThreadPoolExecutor(max(1, len(beside))) as pool:
        try:
            work = [pool.submit(contextvars.copy_context().run, ask, one, stop) for one in beside]
            for engine in here:
                ask(engine, stop)
            for done in work:
                done.result()
        except BaseException:
            stop.set()
            raise


def _asked(
    engine: Engine, questions: Sequence[_Question], letters: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """A row for each question, as they are answered; those of a lost engine failed."""
    texts = [question.text for question in questions]
    left = dict(enumerate(questions))
    try:
        for found in _streamed(engine, texts, letters):
            yield _row(engine, left.pop(found.index), found)
    except EngineGoneError as gone:
        log.warning("elicit: %s", gone)
        for question in left.values():
            yield _row(engine, question, LabelRow(0, None, error=str(gone)))


def _streamed(
    engine: Engine, texts: Sequence[Prompt], letters: Sequence[str]
) -> Iterator[LabelRow]:
    if isinstance(engine, BaseEngine):
        yield from engine.stream_labels(texts, letters)
        return
    scores = engine.label_logprobs(texts, letters, errors="return")
    for index, error in enumerate(scores.errors):
        told = None if error else tuple(map(float, scores.logprobs[index]))
        yield LabelRow(index, told, error=error)


def _row(engine: Engine, question: _Question, found: LabelRow) -> dict[str, Any]:
    import numpy as np

    item = question.item
    told = np.array(found.logprobs or [np.nan] * len(LETTERS), float)
    return {
        "model": engine.info.model,
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
    import numpy as np

    done = rows[rows["error"].isna()]
    top = done[list(LETTERS)].to_numpy().argmax(axis=1)
    right = int((np.array(LETTERS)[top] == done["answer"]).sum())
    lacking = int((done["missing"] > 0).sum())
    found = (
        proportion("accuracy", right, len(done)),
        mean("letter mass", done["mass"].clip(0, 1), 0, 1),
        proportion("a letter is missing", lacking, len(done)),
    )
    return tuple(replace(metric, n_failed=len(rows) - len(done)) for metric in found)
