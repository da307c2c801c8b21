"""How a question with six options is asked: three prompts, as published.

The instructions are those of the benchmark of Ye et al. 2024 (arXiv 2401.12794), to the letter, so
that numbers can be compared with published ones: github.com/smartyfh/LLM-Uncertainty-Bench, MIT
licence, copyright 2024 Fanghua Ye.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, get_args

from workbench.errors import InputError
from workbench.tasks.multiple_choice import KINDS, Kind
from workbench.tasks.options import LETTERS, listed
from workbench.types import Item, Prompt

__all__ = ["LETTERS", "PROMPTS", "OptionPrompt", "labels", "option_prompts"]

OptionPrompt = Literal["base", "shared", "task"]
PROMPTS: tuple[OptionPrompt, ...] = get_args(OptionPrompt)
"""No instruction, one for all questions, one for each kind of question."""

CONTEXTS: Mapping[Kind, str] = MappingProxyType(
    {"rc": "Context", "ci": "Context", "drs": "Dialogue", "ds": "Document"}
)
BEGINNING = "Below are some examples of multiple-choice questions"
SHARED = "with six potential answers. For each question, only one option is correct."
TASK: Mapping[Kind, str] = MappingProxyType(
    {
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
)
NOW = (
    "Now make your best effort and select the correct answer for the following question. You only "
    "need to output the option."
)


def labels(chat: bool) -> tuple[str, ...]:
    """The six answers as they continue a prompt: after "Answer:" with a space, in a chat bare."""
    return LETTERS if chat else tuple(f" {letter}" for letter in LETTERS)


def option_prompts(
    items: Sequence[Item], prompt: OptionPrompt = "base", *,
    demonstrations: Sequence[Item] = (), chat: bool = False,
) -> list[Prompt]:  # fmt: skip
    """A prompt for each item, to be continued by one of `labels`.

    Args:
        items: of `tasks.open_choices` or `tasks.Options`; an item without `kind` is "qa".
        prompt: "base", or with an instruction: "shared" by all or for the kind of "task". These
            two announce examples, so that they need `demonstrations`.
        demonstrations: worked examples, the same before every item.
        chat: give each as one message of a user.

    Raises:
        InputError: there is no such prompt, it needs demonstrations, an item lacks a field, or one
            of the demonstrations is asked too.
    """
    if prompt not in PROMPTS:
        raise InputError(f"prompt={prompt!r}: give one of {', '.join(PROMPTS)}")
    if prompt != "base" and not demonstrations:
        raise InputError(
            f"prompt={prompt!r} says that examples follow, but there are none: give "
            "demonstrations, or prompt='base'"
        )
    solved = [_asked(item) for item in demonstrations]
    letters = map(_letter, demonstrations)
    shown = "".join(f"{asked} {letter}\n" for asked, letter in zip(solved, letters, strict=True))
    prompts: list[Prompt] = []
    for item in items:
        asked = _asked(item)
        if asked in solved:
            raise InputError(
                f"item {item.id!r:.60} is one of the demonstrations, which show its answer: leave "
                "it out on one side"
            )
        text = f"{_before(item, prompt, shown)}{asked}"
        prompts.append([{"role": "user", "content": text}] if chat else text)
    return prompts


def _before(item: Item, prompt: OptionPrompt, shown: str) -> str:
    if prompt == "base":
        return shown
    told = SHARED if prompt == "shared" else TASK[_kind(item)]
    return f"{BEGINNING} {told}\n\n{shown}\n{NOW}\n\n"


def _asked(item: Item) -> str:
    """The item up to where its answer begins."""
    if lacking := [name for name in ("question", "options") if name not in item.fields]:
        raise InputError(
            f"item {item.id!r:.60} has no {' and no '.join(lacking)} among "
            f"{', '.join(item.fields)}: give items of six options, as of open_choices"
        )
    question, options = item.fields["question"], item.fields["options"]
    if not isinstance(options, tuple | list) or len(options) != len(LETTERS):
        raise InputError(f"item {item.id!r:.60}: options={options!r:.60} must be six texts")
    kind = _kind(item)
    block = listed(question, options)
    if kind not in CONTEXTS:
        return block
    if not item.fields.get("context"):
        raise InputError(
            f"item {item.id!r:.60} of kind {kind!r} has no context: fill it in, or make it 'qa'"
        )
    return f"{CONTEXTS[kind]}: {item.fields['context']}\n{block}"


def _kind(item: Item) -> Kind:
    kind: Kind = item.fields.get("kind", "qa")
    if kind not in KINDS:
        raise InputError(f"item {item.id!r:.60}: kind={kind!r} must be one of {', '.join(KINDS)}")
    return kind


def _letter(item: Item) -> str:
    if item.answer not in LETTERS:
        raise InputError(
            f"demonstration {item.id!r:.60}: answer={item.answer!r:.60} must be one of "
            f"{', '.join(LETTERS)}"
        )
    return item.answer
