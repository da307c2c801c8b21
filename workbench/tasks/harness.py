"""Tasks of lm-evaluation-harness (Gao et al., doi:10.5281/zenodo.12608602) as tasks of ours.

`open_task("lm_eval:arc_easy")` has its documents, prompts, examples, filters and metrics. Multiple
choice is answered by the log-probabilities of its choices, other tasks by text.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from workbench import values
from workbench.agents.program import AgentCase, Answer, Program, Score
from workbench.errors import InputError
from workbench.lazy import np
from workbench.machine import require
from workbench.tasks.base import first_items, shuffled
from workbench.tasks.origin import Source, sums
from workbench.types import Grade, Item, Prompt, PromptStyle, Sampling

PREFIX = "lm_eval:"
WRITTEN = Sampling(max_tokens=64, stop=("\n",))  # for agents that write a choice
DRAWS = ("temperature", "top_p", "top_k", "min_p", "seed")
UNREADABLE = (None, "[invalid]")  # its regex filters return the latter where nothing matches
# Metrics of multiple choice that need more than one log-probability per choice.
MORE = ("exact_match", "acc_mutual_info")
Reading = tuple[str | None, float, dict[str, float]]  # what was read, its metric, all metrics


def sampling_of(arguments: Mapping[str, Any], max_tokens: int = 256) -> Sampling:
    """The `Sampling` for a task's `generation_kwargs`; `max_tokens` where it names none.

    Raises:
        InputError: an argument that no engine has.
    """
    from lm_eval.models.utils import normalize_gen_kwargs

    given = dict(normalize_gen_kwargs(dict(arguments), max_tokens))
    ends = tuple(filter(None, given.pop("until")))
    most = int(given.pop("max_gen_toks"))
    given.pop("do_sample", None)
    for name in given:
        values.known("argument of generation", name, DRAWS)
    draws = given if given.get("temperature", 0) > 0 else {}  # the others change nothing
    return Sampling(max_tokens=most, stop=ends, **draws)


class HarnessTask:
    """A task of the harness. `item.id` is its `doc_id`; `item.fields` are the document's.

    Rows of an evaluation have a column for each metric; "metric,filter" with several filters. A
    prompt that is too long is a failed row, where the harness cuts it off.

    Args:
        name: a task's name, or the path of its YAML file.
        include_path: a folder with further task files.
        num_fewshot: worked examples where `shots` is 0; None is the number in the task's file.
        metric: the metric that says whether an answer is correct; None is the task's first.
        filter: the filter that it is taken from; None is the task's first.
        seed: selects worked examples, as the last of the harness's `--seed`.

    Raises:
        EngineUnavailableError: the harness is not installed.
        InputError: no such task, metric or filter; a group; or a task that needs another kind of
            answer, with the command that runs it.
    """

    split = "test"
    difficulty = ""

    def __init__(
        self, name: str, *, include_path: str | Path | None = None, num_fewshot: int | None = None,
        metric: str | None = None, filter: str | None = None, seed: int = 1234,  # noqa: A002
    ) -> None:  # fmt: skip
        self.name = PREFIX + name
        self.source: Source = _source(
            name, include_path, num_fewshot=num_fewshot, metric=metric, filter=filter, seed=seed
        )
        self._task = task = _loaded(name, include_path)
        _check(task, name)
        chooses = task.OUTPUT_TYPE == "multiple_choice"
        self.choose = self._choose if chooses else None
        self.sampling = WRITTEN if chooses else sampling_of(task.config.generation_kwargs)
        metrics = [one for one in task._metric_fn_list if not (chooses and one in MORE)]
        task._metric_fn_list = {one: task._metric_fn_list[one] for one in metrics}
        self._metric = values.known("metric of this task", metric or metrics[0], metrics)
        filters = [one.name for one in task._filters]
        self._filter = values.known("filter of this task", filter or filters[0], filters)
        shots = task.config.num_fewshot if num_fewshot is None else num_fewshot
        self._shots, self._seed = values.whole("num_fewshot", shots or 0, 0), seed
        self._contexts: dict[tuple[int, str], list[Any]] = {}
        self._inputs: dict[tuple[str, str], list[Prompt]] = {}

    @cached_property
    def _docs(self) -> list[dict[str, Any]]:
        return list(self._task.eval_docs)

    def items(self, count: int | None = None, seed: int = 0) -> list[Item]:
        """`count` items in random order, the same for the same seed; None is all, in their order.

        Raises:
            InputError: `count` is below 1 or above the number of items.
        """
        items = [
            Item(str(number), {name: _plain(one) for name, one in doc.items()}, self._gold(doc))
            for number, doc in enumerate(self._docs)
        ]
        if count is None:
            return items
        order = random.Random(f"{self._task.config.task}-{seed}")  # wherever the file is
        return first_items(shuffled(items, order), count, self.name)

    def _gold(self, doc: Mapping[str, Any]) -> str:
        """The right answer as a text; the first of several."""
        task = self._task
        gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
        gold = gold[0] if isinstance(gold, list) and gold else gold
        choices = self._choices(doc) if isinstance(gold, int) and task.config.doc_to_choice else ()
        return choices[gold] if choices and gold < len(choices) else str(gold)

    def _choices(self, doc: Mapping[str, Any]) -> list[str]:
        return [*map(str, self._task.doc_to_choice(doc))]

    def prompt(self, item: Item, shots: int = 0, style: PromptStyle = "completion") -> Prompt:
        """The item after worked examples, which the task's sampler draws as in a whole run.

        Raises:
            InputError: `shots` is not a whole number from 0, or above the number of examples.
        """
        place = int(item.id)
        key = (values.whole("shots", shots, 0) or self._shots, style)
        if key[0] and key not in self._contexts:
            self._task.set_fewshot_seed(self._seed)  # then drawn for one document after the other
            self._contexts[key] = [self._context(doc, *key) for doc in self._docs]
        context = self._contexts[key][place] if key[0] else self._context(self._docs[place], *key)
        if not self._task.multiple_input:
            return cast("Prompt", context)
        self._inputs[item.id, values.written(context[0])] = context
        return cast("Prompt", context[0])

    def _context(self, doc: dict[str, Any], shots: int, style: str) -> Any:
        try:
            return self._task.fewshot_context(
                doc=doc,
                num_fewshot=shots,
                apply_chat_template=style == "chat",
                fewshot_as_multiturn=True,
                chat_template=lambda chat, **_: chat,
                gen_prefix=self._task.doc_to_prefix(doc),
            )
        except (AssertionError, ValueError) as error:
            raise InputError(f"{self.name}, shots={shots}: {error}") from error

    def _choose(self, case: AgentCase) -> Program:
        """The likeliest choice; notes: the metrics, and `logprobs`, a JSON list by choice."""
        doc, context = self._docs[int(case.item.id)], cast("Any", case.prompt)
        if self._task.multiple_input:
            context = self._inputs[case.item.id, values.written(case.prompt)]
        chat = not isinstance(case.prompt, str)
        requests = self._task.construct_requests(doc=doc, ctx=context, apply_chat_template=chat)
        pairs = [_moved(*request.args) for request in requests]
        if self._task.multiple_input:
            rows = yield [Score(prompt, (label,)) for prompt, label in pairs]
            logprobs = [row[0] for row in rows]
        else:
            labels = tuple(dict.fromkeys(label for _, label in pairs))  # two may be equal
            row = yield Score(pairs[0][0], labels)
            logprobs = [row[labels.index(label)] for _, label in pairs]
        metrics = self._graded(doc, [(one, False) for one in logprobs])
        choices = self._choices(doc)
        sizes = {"acc_norm": [*map(len, choices)], "acc_bytes": [len(c.encode()) for c in choices]}
        best = int(np.argmax(np.divide(logprobs, sizes.get(self._metric, 1))))
        return Answer(choices[best], {**metrics, "logprobs": json.dumps(logprobs)})

    def _graded(self, doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
        """The task's metrics that are numbers, by name."""
        found = self._task.process_results(doc, results)
        return {n: float(one) for n, one in found.items() if np.ndim(one) == 0 and np.isfinite(one)}

    def grade(self, item: Item, text: str) -> Grade:
        """By the task's filters and metrics; a choice is read from a text that begins with it.

        An item whose answer was replaced is compared with that answer.
        """
        doc = self._docs[int(item.id)]
        read, correct, notes = (self._chosen if self.choose else self._filtered)(doc, text)
        if read in UNREADABLE:
            return Grade(None, None, parsed=False, notes=notes)
        if item.answer != self._gold(doc):
            return Grade(read == item.answer, read, parsed=True)
        return Grade(correct >= 1, read, parsed=True, notes=notes)

    def _chosen(self, doc: Mapping[str, Any], text: str) -> Reading:
        """The choice that a text begins with, graded as by a model that is sure of it."""
        choices, said = self._choices(doc), text.strip()
        begun = [one for one in choices if one.strip() and said.startswith(one.strip())]
        read = text if text in choices else max(begun, key=len, default=None)
        if read is None:
            return None, 0.0, {}
        sure = [(0.0 if at == choices.index(read) else -1e9, False) for at in range(len(choices))]
        return read, self._graded(doc, sure).get(self._metric, 0.0), {}

    def _filtered(self, doc: dict[str, Any], text: str) -> Reading:
        """The text as the chosen filter reads it, with the metrics of every filter."""
        from lm_eval.api.instance import Instance

        one = Instance(request_type="generate_until", doc=doc, arguments=("",), idx=0, resps=[text])
        metrics = {}
        for each in self._task._filters:
            each.apply([one])
            metrics[each.name] = self._graded(doc, [one.filtered_resps[each.name]])
        notes = mine = metrics[self._filter]
        if len(metrics) > 1:
            notes = {f"{n},{by}": v for by, found in metrics.items() for n, v in found.items()}
        read = one.filtered_resps[self._filter]
        return None if read is None else values.written(read), mine.get(self._metric, 0.0), notes


def _moved(context: Prompt, label: str) -> tuple[Prompt, str]:
    """Spaces at the end of a text belong to its label, as the harness's models have it."""
    kept = context.rstrip() if isinstance(context, str) else context
    return kept, (context[len(kept) :] if isinstance(context, str) else "") + label


def _plain(value: object) -> object:
    return value if isinstance(value, str | int | float | None) else values.written(value)


def _source(name: str, include_path: str | Path | None, **arguments: Any) -> Source:
    """What opens the task again, wherever the working folder is then."""
    file = Path(name).expanduser().resolve()
    folder = include_path and str(Path(include_path).expanduser().resolve())
    known = {k: v for k, v in {"include_path": folder, **arguments}.items() if v is not None}
    opens = PREFIX + (str(file) if file.is_file() else name)
    return {"name": opens, "arguments": known, "files": sums(file)}


def _loaded(name: str, include_path: str | Path | None) -> Any:
    """The harness's task."""
    require("lm-eval", "lm_eval")
    from lm_eval.tasks import TaskManager

    local = name.endswith((".yaml", ".yml"))
    for path in (include_path, name if local else None):
        if path is not None and not Path(path).exists():
            raise InputError(f"{PREFIX}{name}: {path} does not exist")
    folder = include_path and str(include_path)
    manager = TaskManager(include_path=folder, include_defaults=not (local or folder))
    if folder and not local and name not in manager.task_index:
        manager = TaskManager(include_path=folder)  # which reads all 14,000 of its files
    if not local and name not in manager.task_index:
        hint = values.near(name, manager.all_subtasks)
        raise InputError(f"no task {name!r:.80} of lm_eval{hint}: see `workbench lm-eval ls tasks`")
    try:
        tasks = manager.load([name])["tasks"]
    except Exception as error:  # its loaders raise errors of many libraries
        raise InputError(f"{PREFIX}{name} could not be loaded: {error}") from error
    if len(tasks) != 1:
        some = ", ".join([*tasks][:3])
        raise InputError(f"{PREFIX}{name} has {len(tasks)} tasks: open one of them, such as {some}")
    return next(iter(tasks.values()))


def _check(task: Any, name: str) -> None:
    """Refuse what cannot be answered by a text or a choice, or runs code here."""
    kind, why = task.OUTPUT_TYPE, ""
    if kind not in {"multiple_choice", "generate_until"}:
        why = f"it needs {kind}"
    elif getattr(task, "MULTIMODAL", False) or getattr(task, "UNSAFE_CODE", False):
        why = "it has images or sound, or runs the model's code"
    if why:
        command = f"workbench lm-eval --model workbench --tasks {name} …"
        raise InputError(f"{PREFIX}{name}: {why}; run `{command}`")
