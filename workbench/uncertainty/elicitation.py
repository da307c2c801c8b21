"""Ask models for the log-probabilities of six options, in a table from which all scores follow.

All prompts of all tasks go to a model in one call, and to several servers at the same time. Answers
are kept in the engine's store, so a repeated call computes only the missing ones.

The instructions are those of the benchmark of Ye et al. 2024 (arXiv 2401.12794), verbatim, so that
numbers can be compared with published ones: github.com/smartyfh/LLM-Uncertainty-Bench, MIT
licence, copyright 2024 Fanghua Ye.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from workbench import values
from workbench.engines.local import LocalEngine
from workbench.engines.streams import Streams, stream_labels
from workbench.engines.style import common_style
from workbench.errors import EngineError, EngineGoneError, InputError, log
from workbench.lazy import pd
from workbench.progress import bars
from workbench.runs import commit
from workbench.stats import mean_share
from workbench.store import digest
from workbench.tasks.multiple_choice import KINDS, Kind, MultipleChoice
from workbench.tasks.options import LETTERS, listed
from workbench.tasks.origin import source_of
from workbench.types import Engine, Item, LabelRow, Metric, Prompt, Report, Usage
from workbench.uncertainty.tables import join_tables

OptionPrompt = Literal["base", "shared", "task"]
PROMPTS: tuple[OptionPrompt, ...] = get_args(OptionPrompt)
"""No instruction; one for all questions; one for each kind of question."""

_CONTEXTS: dict[Kind, str] = {"rc": "Context", "ci": "Context", "drs": "Dialogue", "ds": "Document"}
_EXAMPLES = "Below are some examples of multiple-choice questions"
_SHARED = "with six potential answers. For each question, only one option is correct."
_TASK: dict[Kind, str] = {
    "qa": "about question answering. Each question should be answered based on your world "
    "knowledge and problem solving ability.",
    "rc": "about reading comprehension. Each question should be answered based on the given "
    "context and commonsense reasoning when necessary.",
    "ci": "about commonsense natural language inference. For each question, there is a given "
    "context and the answer is the option that most likely follows the context.",
    "drs": "about dialogue response selection. For each question, the answer is the option "
    "that represents the most suitable response for the given dialogue history, without "
    "hallucination and non-factual information.",
    "ds": "about document summarization. For each question, the answer is the option that "
    "accurately summarizes the given document without hallucination and non-factual "
    "information.",
}
_QUESTION = (
    "Now make your best effort and select the correct answer for the following question. You only "
    "need to output the option."
)


@dataclass(frozen=True, slots=True)
class _Question:
    """An item in one of the prompts."""

    task: str
    prompt: OptionPrompt
    item: Item
    text: Prompt

    def row(self, model: str, scored: LabelRow) -> dict[str, Any]:
        """The question's row in the table."""
        fields = self.item.fields
        logprobs = np.array(scored.logprobs or [np.nan] * len(LETTERS), float)
        return {
            "model": model,
            "task": self.task,
            "prompt": self.prompt,
            "id": self.item.id,
            "group": str(fields.get("group", "")),
            "answer": self.item.answer,
            **dict(zip(LETTERS, logprobs.tolist(), strict=True)),
            "mass": float(np.exp(logprobs).sum()),
            "missing": int(np.isneginf(logprobs).sum()),
            "length": len(fields["question"]) + len(fields.get("context", "")),
            "error": scored.error,
        }


def elicit(
    tasks: Sequence[MultipleChoice], engines: Sequence[Engine],
    prompts: Sequence[OptionPrompt] = PROMPTS, *,
    count: int | None = None, seed: int = 0, chat: bool | None = None,
) -> Report:  # fmt: skip
    """Ask several models the questions of several tasks, in several prompts.

    Local engines run one after the other, servers at the same time.

    Args:
        tasks: from `tasks.open_choices`, or `MultipleChoice("name", "qa", items)` for other items.
        prompts: "base", "shared" or "task": see `option_prompts`.
        count: items per task, chosen by `seed`; None is all.
        chat: ask through the models' chat templates; None: if that suits one of the models (see
            `engines.style`) and all of them have one.

    Returns:
        Summary, for each model: accuracy, mean letter mass, and the share of answers that lack a
        letter, over items (`n_failed` counts rows). Rows, one per model, task, prompt and item, in
        this order: model, task, prompt, id, group, answer, A to F (natural log-probabilities over
        the full vocabulary, -inf if an endpoint does not report one, NaN if the row failed), mass
        (total probability of the six letters), missing (letters not reported), length (characters
        of the item), error.

    Raises:
        InputError: no tasks, engines or prompts, duplicate names, or items that cannot be asked.
        EngineError: no engine returned any answer.
    """
    names, models = _check_lists(tasks, engines, prompts)
    chat = common_style(engines) == "chat" if chat is None else values.flag("chat", chat)
    questions = _questions(tasks, prompts, count, seed, chat=chat)
    before = [engine.usage for engine in engines]
    totals = {f"{len(names)} tasks": len(engines) * len(questions)} if len(names) > 1 else {}
    for name, n in Counter(question.task for question in questions).items():
        totals[name] = len(engines) * n
    texts = [question.text for question in questions]
    rows: dict[tuple[int, int], dict[str, Any]] = {}
    with (
        bars(totals, "row") as shown,
        closing(_scored_by_all(engines, texts, labels(chat))) as answers,
    ):
        for number, scored in answers:
            question = questions[scored.index]
            rows[number, scored.index] = question.row(models[number], scored)
            for name in {next(iter(totals)), question.task}:
                shown[name].update()
    frame = pd.DataFrame(rows[key] for key in sorted(rows))
    if frame["error"].notna().all():
        raise EngineError(f"no question was answered; the first: {frame['error'].iloc[0]}")
    used = [engine.usage.since(mark) for engine, mark in zip(engines, before, strict=True)]
    content = [[one.task, one.item.id, one.text, one.item.answer] for one in questions]
    provenance = {
        "tasks": names, "sources": [source_of(task, {}) for task in tasks],
        "items": digest(content).hex()[:12],
        "demonstrations": {task.name: len(task.demonstrations) for task in tasks},
        "prompts": list(prompts), "chat": chat, "count": count, "seed": seed,
        "engines": [asdict(engine.info) for engine in engines],
        "usage": [asdict(one) for one in used],
        "commit": commit(),
    }  # fmt: skip
    return Report(_summary(frame), frame, sum(used, Usage()), provenance)


def join_reports(reports: Sequence[Report]) -> Report:
    """Join the reports of several calls of `elicit` with the same questions, such as one per model.

    Raises:
        InputError: as `scoring.join_tables`.
    """
    rows = join_tables(reports)
    parts = [report.provenance for report in reports]
    joined = {name: [one for part in parts for one in part[name]] for name in ("engines", "usage")}
    used = sum((report.usage for report in reports), Usage())
    return Report(_summary(rows), rows, used, {**parts[0], **joined})


def _check_lists(
    tasks: Sequence[MultipleChoice], engines: Sequence[Engine], prompts: Sequence[OptionPrompt]
) -> tuple[list[str], list[str]]:
    """The names of the tasks and of the models."""
    for what, given in (("tasks", tasks), ("engines", engines), ("prompts", prompts)):
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise InputError(f"{what}={given!r:.60}: give a list of them")
    for task in tasks:
        if not isinstance(task, MultipleChoice):
            raise InputError(f"tasks: {task!r:.60} is not from `open_choices`")
    names, models = [task.name for task in tasks], [engine.info.model for engine in engines]
    for what, distinct in (("tasks", names), ("engines", models), ("prompts", prompts)):
        _check_different(what, distinct)
    return names, models


def _check_different(what: str, names: Sequence[str]) -> None:
    if not names:
        raise InputError(f"{what} is empty: give at least 1")
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise InputError(f"{what}: {times} are called {name!r}; give each once")


def _questions(
    tasks: Sequence[MultipleChoice], prompts: Sequence[OptionPrompt], count: int | None, seed: int,
    *, chat: bool,
) -> list[_Question]:  # fmt: skip
    questions = []
    for task in tasks:
        if not (items := task.items(count, seed)):
            raise InputError(f"task {task.name} has no items: give at least 1")
        for item in items:
            _check_item(item)
        _check_different(f"ids of {task.name}", [item.id for item in items])
        for prompt in prompts:
            texts = option_prompts(items, prompt, demonstrations=task.demonstrations, chat=chat)
            questions += [
                _Question(task.name, prompt, *pair) for pair in zip(items, texts, strict=True)
            ]
    return questions


def _check_item(item: Item, what: str = "item") -> None:
    if not isinstance(item.id, str):
        values.refuse(f"{what} {item.id!r:.60}: id", item.id, "a text")
    if item.answer not in LETTERS:
        values.refuse(f"{what} {item.id!r:.60}: answer", item.answer, "one of A to F")


def labels(chat: bool) -> tuple[str, ...]:
    """The six answers that continue a prompt: after "Answer:" with a space, in a chat without."""
    return LETTERS if chat else tuple(f" {letter}" for letter in LETTERS)


def option_prompts(
    items: Sequence[Item], prompt: OptionPrompt = "base", *,
    demonstrations: Sequence[Item] = (), chat: bool = False,
) -> list[Prompt]:  # fmt: skip
    """A prompt for each item, to be continued with one of `labels`.

    Args:
        items: from `tasks.open_choices` or `tasks.Options`; an item without `kind` is "qa".
        prompt: "base"; or with an instruction: "shared" for all kinds, or "task" for the item's
            kind. The latter two announce examples, so they need `demonstrations`.
        demonstrations: worked examples, the same before every item.
        chat: return each prompt as one user message.

    Raises:
        InputError: an unknown prompt, no demonstrations, an item that lacks a field or is also one.
    """
    values.known("prompt", prompt, PROMPTS)
    if prompt != "base" and not demonstrations:
        raise InputError(
            f"prompt={prompt!r} says that examples follow, but there are none: give "
            "demonstrations, or prompt='base'"
        )
    for item in demonstrations:
        _check_item(item, "demonstration")
    examples = [_question(item) for item in demonstrations]
    answers = [item.answer for item in demonstrations]
    shown = "".join(f"{one} {letter}\n" for one, letter in zip(examples, answers, strict=True))
    prompts: list[Prompt] = []
    for item in items:
        question, text = _question(item), shown
        if question in examples:
            raise InputError(
                f"item {item.id!r:.60} is one of the demonstrations, which show its answer: leave "
                "it out on one side"
            )
        if prompt != "base":
            about = _SHARED if prompt == "shared" else _TASK[item.fields.get("kind", "qa")]
            text = f"{_EXAMPLES} {about}\n\n{shown}\n{_QUESTION}\n\n"
        text += question
        prompts.append([{"role": "user", "content": text}] if chat else text)
    return prompts


def _question(item: Item) -> str:
    """The item up to where its answer begins."""
    fields, where = item.fields, f"item {item.id!r:.60}"
    if lacking := [name for name in ("question", "options") if name not in fields]:
        raise InputError(
            f"{where} has no {' and no '.join(lacking)} among {', '.join(fields)}: give items of "
            "six options, as from open_choices"
        )
    kind, context, options = fields.get("kind", "qa"), fields.get("context", ""), fields["options"]
    for name, value in (("question", fields["question"]), ("context", context)):
        if not isinstance(value, str):
            values.refuse(f"{where}: {name}", value, "a text")
    if not isinstance(options, tuple | list) or len(options) != len(LETTERS):
        values.refuse(f"{where}: options", options, "six texts")
    if kind not in KINDS:
        values.refuse(f"{where}: kind", kind, f"one of {', '.join(KINDS)}")
    if kind in _CONTEXTS and not context:
        raise InputError(f"{where} of kind {kind!r} has no context: fill it in, or make it 'qa'")
    before = f"{_CONTEXTS[kind]}: {context}\n" if kind in _CONTEXTS else ""
    return before + listed(fields["question"], options)


def _summary(rows: pd.DataFrame) -> tuple[Metric, ...]:
    """The summary of each model over items, which are the same in all prompts."""
    metrics: list[Metric] = []
    models = rows.groupby("model", sort=False)
    for model, part in models:
        done, before = part[part["error"].isna()], f"{model}: " if len(models) > 1 else ""
        failed = len(part) - len(done)
        if done.empty:
            metrics.append(mean_share(f"{before}accuracy", [], n_failed=failed))
            continue
        top = np.array(LETTERS)[done[[*LETTERS]].to_numpy(float).argmax(axis=1)]
        measures = {
            "accuracy": (top == done["answer"]).astype(float),
            "letter mass": done["mass"].clip(0, 1),
            "a letter is missing": (done["missing"] > 0).astype(float),
        }
        items = done[["task", "id"]].assign(**measures).groupby(["task", "id"]).mean()
        metrics += [mean_share(before + name, items[name], n_failed=failed) for name in measures]
    return tuple(metrics)


def _scored_by_all(
    engines: Sequence[Engine], texts: Sequence[Prompt], letters: Sequence[str]
) -> Generator[tuple[int, LabelRow], None, None]:
    """Engine indexes and rows, in the order of arrival.

    Local models run one after the other, since each would fill the machine; servers run at the same
    time. Only this thread can be interrupted; then it does not wait for the others.
    """
    local = [at for at, engine in enumerate(engines) if isinstance(engine, LocalEngine)] or [0]
    beside: Streams[tuple[int, LabelRow]] = Streams()
    for number, engine in enumerate(engines):
        if number not in local:
            beside.start(_scored(number, engine, texts, letters))
    try:
        for number in local:
            yield from _scored(number, engines[number], texts, letters)
        while beside.running:
            yield from beside.take()
    finally:
        beside.stop()


def _scored(
    number: int, engine: Engine, texts: Sequence[Prompt], letters: Sequence[str]
) -> Generator[tuple[int, LabelRow], None, None]:
    """The engine's index and a row for each text, in order of arrival; missing answers failed."""
    left, reason = dict.fromkeys(range(len(texts))), "the engine gave no answer to this prompt"
    try:
        for row in stream_labels(engine, texts, letters):
            del left[row.index]
            yield number, row
    except EngineGoneError as gone:
        log.warning("elicit: %s", gone)
        reason = str(gone)
    for index in left:
        yield number, LabelRow(index, None, error=reason)
