"""The training text: a stream of documents of all kinds, the same for the same seed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from itertools import combinations, islice

from tools.training.marks import END, decided, learned
from tools.training.stages import Stage, stage_at
from workbench.tasks.arithmetic import Equation, Sum, equations, is_held_out, problems
from workbench.tasks.base import worded
from workbench.tasks.options import (
    EVENTS,
    LETTERS,
    READING,
    STATED,
    choices,
    listed,
    number,
    numbers,
)
from workbench.tasks.word_problems import (
    NAMES,
    THINGS,
    Verdicts,
    candidates,
    manner,
    solution,
    stories,
    verdict_prompt,
)

SCRIPTS = ((0x21, 0x7E), (0xC0, 0x24F), (0x391, 0x3C9), (0x410, 0x44F), (0x5D0, 0x5EA),
           (0x905, 0x939), (0x3041, 0x3096), (0x4E00, 0x5FFF), (0x1F300, 0x1F5FF))  # fmt: skip


def _size(rng: random.Random, most: int, least: int = 1) -> int:
    """How many items a document has: every order of magnitude is equally likely."""
    return round(math.exp(rng.uniform(math.log(least), math.log(most))))


def exchange(question: str, answer: str = "") -> str:
    """A question and its answer in the model's chat template, up to the end of the answer."""
    return f"<|user|>{question}<|assistant|>{answer}"


def _equation_text(rng: random.Random, stage: Stage) -> str:
    drawn = islice(problems(rng, held_out=False), _size(rng, stage.length // 10, 4))
    return "".join(f"{problem}={learned(problem.result)}\n" for problem in drawn)


def _claim_text(rng: random.Random, stage: Stage) -> str:
    """Labelled claims. Labels agree with the truth in many documents, in some they are unreliable
    or swapped, and in many every claim is called True: a bare claim does not show which is asked,
    and only labelled examples do. Some are followed by whether the label agrees with the truth,
    which teaches the model to notice that."""
    lines = _size(rng, stage.length // 9, 6)
    drawn: list[Equation] = []
    for group in equations(rng, held_out=False):
        drawn += group
        if len(drawn) >= lines:
            break
    drawn = drawn[:lines]
    if rng.random() < 0.5:
        rng.shuffle(drawn)
    labels = _labels(rng, [claim.right for claim in drawn], stage.constant)
    text = []
    for claim, label in zip(drawn, labels, strict=True):
        remark = ""
        if rng.random() < stage.remarks:
            remark = decided(" yes" if label is claim.right else " no")
        text.append(f"{claim}{decided(f' {label}')}{remark}\n")
    return "".join(text)


def _labels(rng: random.Random, truth: list[bool], constant: float) -> list[bool]:
    """One document's labels: nearly all alike, or true with some probability, mostly one."""
    if rng.random() < constant:
        rate = rng.choices((0.93, 0.07), (92, 8))[0]
        return [rng.random() < rate for _ in truth]
    reliability = rng.choices((1.0, 0.0, 0.5, rng.random()), (60, 12, 14, 14))[0]
    return [right is (rng.random() < reliability) for right in truth]


def _story_text(rng: random.Random, stage: Stage) -> str:
    """Stories solved in the manner of the first, or each in its own."""
    parts: list[str] = []
    how, each = "", rng.random() < 0.3
    for story in islice(stories(rng, held_out=False), _size(rng, stage.length // 40)):
        if each or not parts:
            how = manner(rng, story)
        text = solution(story, how)
        parts.append(worded(story.question) + learned(f" {text}\n\n"))
    return "".join(parts)


def _chat_text(rng: random.Random, stage: Stage) -> str:
    parts: list[str] = []
    for story in islice(stories(rng, held_out=False), _size(rng, stage.length // 60)):
        kind, first = rng.random(), story.steps[0]
        question = story.question
        answer = solution(story, manner(rng, story))
        if kind < 0.15:
            question, answer = f"What is {first}?", f"{first}={first.result}"
        elif kind < 0.3:
            claim = next(equations(rng, held_out=False))[0]
            question, answer = f"Is it true that {claim}?", f" {claim.right}"
        parts.append(exchange(question, learned(answer)) + END)
    return "".join(parts)


def _noted(rng: random.Random, texts: list[str], right: int, share: float) -> list[str]:
    """The texts to choose from, some of them followed by whether they are right."""
    return [
        text + decided(" yes" if place == right else " no") if rng.random() < share else text
        for place, text in enumerate(texts)
    ]


def _options_text(rng: random.Random, stage: Stage, levels: tuple[str, ...]) -> str:
    parts: list[str] = []
    drawn = choices(rng, held_out=False, levels=levels)
    for choice in islice(drawn, _size(rng, stage.length // 28)):
        share = stage.remarks if rng.random() < 0.5 else 0.0
        texts = [*_noted(rng, [*choice.texts[:4]], choice.place, share), *choice.texts[4:]]
        asks, end, _ = listed(choice.question, texts).rpartition("Answer:")
        if rng.random() < stage.working:
            asks += f"Working: {learned(choice.right)}\n"
        parts.append(asks + end + decided(f" {LETTERS[choice.place]}", rare=True) + "\n")
    return "".join(parts)


def _verdict_text(rng: random.Random, stage: Stage) -> str:
    parts: list[str] = []
    drawn = candidates(rng, held_out=False)
    for story, candidate, right in islice(drawn, _size(rng, stage.length // 50)):
        known = str(story.answer) if rng.random() < 0.75 else None
        asks = verdict_prompt(story.question, candidate, known)
        asks, end, _ = asks.rpartition("Is the solution correct?")
        if rng.random() < stage.working:
            stated = candidate.rpartition("#### ")[2]
            asks += f"Working: {learned(f'{story.answer} or {stated}')}\n"
        label = decided(Verdicts.labels[not right], rare=True)
        parts.append(f"{asks}{end}{label}\n\n")
    return "".join(parts)


def _equal_drill(rng: random.Random) -> str:
    """Are two numbers equal? As verdicts end."""
    a = number(rng)
    steps = (-2, -1, 1, 2) if a < 10 else (-20, -10, -2, -1, 1, 2, 10, 20)
    b = a if rng.random() < 0.5 else abs(a + rng.choice(steps))
    form = rng.choice(("Working: {} or {}", "Reference answer: {}\n#### {}"))
    label = decided(Verdicts.labels[a != b])
    return f"{form.format(a, b)}\nIs the solution correct?{label}\n\n"


def _find_drill(rng: random.Random) -> str:
    """Where is a number? As options end, the number before or after the list."""
    four = numbers(rng, 4)
    place = rng.randrange(4)
    ask, working = f"Question: What is {four[place]}?\n", ""
    if rng.random() < 0.5:
        ask, working = "", f"Working: {four[place]}\n"
    texts = _noted(rng, [*map(str, four)], place, rng.choice((0.0, 0.5)) if ask else 0.0)
    lines = [f"{letter}. {text}\n" for letter, text in zip(LETTERS, texts, strict=False)]
    return f"{ask}Choices:\n{''.join(lines)}{working}Answer:{decided(f' {LETTERS[place]}')}\n"


def _drill_text(rng: random.Random, stage: Stage) -> str:
    """What decides a verdict or an option, by itself, many times."""
    if rng.random() < 0.35:
        return "".join(_equal_drill(rng) for _ in range(_size(rng, stage.length // 16, 4)))
    return "".join(_find_drill(rng) for _ in range(_size(rng, stage.length // 24, 2)))


def _reading_text(rng: random.Random, stage: Stage) -> str:
    """Questions whose answer follows at once, as a sentence or as the working of an option."""
    parts: list[str] = []
    drawn = choices(rng, held_out=False, levels=(*READING, "sum"))
    for choice in islice(drawn, _size(rng, stage.length // 25, 2)):
        answer = choice.stated if rng.random() < 0.5 else choice.right
        parts.append(f"Question: {choice.question}\nWorking: {learned(answer)}\n")
    return "".join(parts)


def _holder_text(rng: random.Random, stage: Stage) -> str:
    """Who has what, then asked about in any order: numbers are found by name.

    No test can ask any of it: no two of the numbers make a held-out sum.
    """
    people, thing = rng.sample(NAMES, rng.randrange(2, 7)), rng.choice(THINGS)
    values = numbers(rng, len(people))
    while any(is_held_out(Sum(a, "+", b)) for a, b in combinations(values, 2)):
        values = numbers(rng, len(people))
    has = dict(zip(people, values, strict=True))
    parts = [" ".join(f"{who} has {n} {thing}." for who, n in has.items())]
    for who in rng.choices(people, k=_size(rng, stage.length // 10, 4)):
        if rng.random() < 0.6:
            parts.append(f" {who} has {learned(has[who])} {thing}.")
        else:
            parts.append(f" How many {thing} does {who} have?\nWorking: {learned(has[who])}\n")
    return "".join(parts)


def _echo_text(rng: random.Random, stage: Stage) -> str:
    """Words in a random order, repeated in that order: to find what came before, and after it."""
    pool = (*NAMES, *THINGS, *map(str, range(10)))
    words = rng.choices(pool, k=_size(rng, 40, 4))
    line = " ".join(words)
    return line + learned(f" {line}" * max(1, stage.length // len(words) // 2))


def other(rng: random.Random, script: tuple[int, int], words: int) -> str:
    """Words of no language in one script, some more frequent than others, as words are."""
    known = [
        "".join(chr(rng.randint(*script)) for _ in range(rng.randrange(1, 6)))
        for _ in range(rng.randrange(2, 30))
    ]
    frequent = [1 / rank for rank in range(1, len(known) + 1)]
    return learned(" ".join(rng.choices(known, frequent, k=words)))


def _other_text(rng: random.Random, stage: Stage) -> str:
    return other(rng, rng.choice(SCRIPTS), _size(rng, stage.length // 8, 5))


KINDS: dict[str, Callable[[random.Random, Stage], str]] = {
    "equations": _equation_text,
    "claims": _claim_text,
    "stories": _story_text,
    "chats": _chat_text,
    "options": partial(_options_text, levels=(*READING, "sum")),
    "verdicts": _verdict_text,
    "other": _other_text,
    "drills": _drill_text,
    "reading": _reading_text,
    "holders": _holder_text,
    "stated": partial(_options_text, levels=STATED),
    "echoes": _echo_text,
    "events": partial(_options_text, levels=EVENTS),
}
"""Named as in `Shares`."""


def documents(seed: int, progress: float = 1.0, *, other: bool = True) -> Iterator[str]:
    """An endless stream of marked documents as they are at `progress` of the training.

    `other` includes text that is no skill: words of no language, in all scripts.
    """
    rng = random.Random(seed)
    stage = stage_at(progress)
    shares = asdict(stage.shares) | ({} if other else {"other": 0})
    while True:
        (kind,) = rng.choices(list(shares), list(shares.values()))
        yield KINDS[kind](rng, stage) + END
