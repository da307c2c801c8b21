"""Templates for judges: a text with placeholders for a case, and the allowed verdicts.

A template file is a header, a line `---`, and the text:

    style: chat
    choices: ["correct", "incorrect"]
    ---
    <problem>{problem}</problem>
    Reference: {reference}
    <answer>{candidate}</answer>
    Reply with one word only, correct or incorrect.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from workbench.errors import InputError
from workbench.files import file_error
from workbench.lazy import pd
from workbench.store import digest
from workbench.types import Prompt

Style = Literal["completion", "chat"]

HERE = Path(__file__).parent
PLACE = re.compile(r"\{\{([A-Za-z_]\w*)\}\}|\{([A-Za-z_]\w*)\}")
ONE = ("problem", "candidate")
TWO = ("problem", "a", "b")
KNOWN = ("reference", *ONE, *TWO[1:])
MARKS = " \t\r\n*_`\"'"


@dataclass(frozen=True, slots=True)
class Case:
    """One answer to judge. An empty `candidate` is a valid answer; `gold` is the true verdict.

    Raises:
        InputError: a text is missing or not a text.
    """

    problem: str
    candidate: str
    reference: str | None = None
    gold: bool | float | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        _check_texts(self, "candidate")

    def values(self) -> dict[str, str | None]:
        """The texts for a template's placeholders."""
        return {name: getattr(self, name) for name in ("problem", "candidate", "reference")}


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to compare; `gold` is "a", "b" or "tie".

    Raises:
        InputError: a text is missing or not a text.
    """

    problem: str
    a: str
    b: str
    reference: str | None = None
    gold: str | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        _check_texts(self, "a", "b")

    def values(self, *, swapped: bool = False) -> dict[str, str | None]:
        """The texts for a template's placeholders."""
        a, b = (self.b, self.a) if swapped else (self.a, self.b)
        return {"problem": self.problem, "a": a, "b": b, "reference": self.reference}


@dataclass(frozen=True, slots=True)
class Template:
    """One way to ask for a verdict.

    All placeholders are filled in one pass, so braces in the filled-in texts are unchanged.
    `{{name}}` stands for `{name}` itself.

    Attributes:
        text: has `{problem}`, and `{candidate}` or `{a}` and `{b}`; may have `{reference}`. A line
            with `{reference}` is omitted for a case without a reference.
        choices: the verdicts. For one answer: accept, then reject; or numbers, for scores. For two
            answers: the first, the second and optionally a tie.
        style: "completion" sends the text unchanged, "chat" sends it as a user message.
        reasons: the text asks for reasons before a last line `Verdict: …`. Then the answer is not
            restricted to the choices, because that would leave no room for reasons.
        name: for reports.

    Raises:
        InputError: a placeholder is missing or unknown, or the choices are not distinct.
    """

    text: str
    choices: tuple[str, ...]
    style: Style = "chat"
    reasons: bool = False
    name: str = "own"

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text.strip():
            raise InputError(f"template {self.name}: text={self.text!r} must be a non-empty text")
        if self.style not in ("completion", "chat"):
            raise InputError(
                f'template {self.name}: style={self.style!r} must be "completion" or "chat"'
            )
        if not isinstance(self.reasons, bool):
            raise InputError(
                f"template {self.name}: reasons={self.reasons!r} must be true or false"
            )
        object.__setattr__(self, "choices", _checked_choices(self.name, self.choices))
        self._check_places()

    @classmethod
    def load(cls, path: str | Path) -> Template:
        """Read a template file (see the format above).

        Raises:
            InputError: the file does not exist, or its header is invalid.
        """
        file = Path(path).expanduser()
        try:
            head, line, text = file.read_text(encoding="utf-8").partition("\n---\n")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file_error(path, error)}; give a template's file") from None
        need = 'lines `style: chat` and `choices: ["correct", "incorrect"]`, then a line `---`'
        if not line:
            raise InputError(f"{path}:1: no header: begin it with {need}")
        return cls(text=text.removesuffix("\n"), name=file.stem, **_header(head, str(path), need))

    @property
    def compares(self) -> bool:
        """Whether it compares two answers."""
        return "a" in _places(self.text)

    @property
    def scale(self) -> tuple[float, ...]:
        """The choices as numbers.

        Raises:
            InputError: they are not numbers.
        """
        try:
            return tuple(float(choice) for choice in self.choices)
        except ValueError:
            raise InputError(
                f"template {self.name}: scores need numbers as choices, not {self.choices!r}"
            ) from None

    @property
    def digest(self) -> str:
        """Identifies the template's content; the name is not part of it."""
        return digest(self.text, self.choices, self.style, self.reasons).hex()[:12]

    def as_text(self) -> Template:
        """The same text for a model without chats, with the verdict as its continuation."""
        if self.style == "completion":
            return self
        choices = tuple(f" {choice}" for choice in self.choices)
        return replace(self, text=f"{self.text}\n\nVerdict:", style="completion", choices=choices)

    def as_chat(self) -> Template:
        """The same text as a message, for a model that supports only chats."""
        if self.style == "chat":
            return self
        return replace(self, style="chat", choices=tuple(one.strip() for one in self.choices))

    def fill(self, values: Mapping[str, str | None]) -> Prompt:
        """The prompt for a case, from a text for each placeholder; only a reference may be None."""
        lines = self.text.split("\n")
        if values.get("reference") is None:
            lines = [line for line in lines if "reference" not in _places(line)]
        text = PLACE.sub(
            lambda found: f"{{{found[1]}}}" if found[1] else str(values[found[2]]), "\n".join(lines)
        )
        return text if self.style == "completion" else [{"role": "user", "content": text}]

    def _check_places(self) -> None:
        places = _places(self.text)
        for place in sorted(places):
            if place not in KNOWN:
                raise InputError(
                    f"template {self.name}: unknown placeholder {{{place}}}; known: "
                    f"{', '.join(KNOWN)}. For the braces themselves write {{{{{place}}}}}"
                )
        needed = TWO if places & {"a", "b"} else ONE
        missing = [place for place in needed if place not in places]
        if missing or len(places & {"candidate", "a"}) == 2:
            missed = ", ".join(f"{{{place}}}" for place in missing) or "a choice of one kind"
            raise InputError(
                f"template {self.name} lacks {missed}: for one answer it needs {{problem}} and "
                "{candidate}, for two {problem}, {a} and {b}"
            )
        for line in self.text.split("\n"):
            others = _places(line) - {"reference"}
            if others and "reference" in _places(line):
                raise InputError(
                    f"template {self.name}: {{{min(others)}}} is on one line with {{reference}}, "
                    "which is left out where there is none: put it on a separate line"
                )


def cases_of(
    rows: pd.DataFrame,
    *,
    problem: str = "question",
    candidate: str = "text",
    reference: str | None = "answer",
    gold: str | None = None,
) -> list[Case]:
    """The answers in the rows of a report of `evaluate`, for judging.

    Args:
        rows: also as read from `rows.parquet`. Failed rows have no answer and are left out; `id`
            is kept if there is one.
        problem, candidate, reference, gold: names of columns; None for a reference or gold that
            should not be used.

    Raises:
        InputError: a column is missing.
    """
    wanted = [name for name in (problem, candidate, reference, gold) if name is not None]
    if missing := [name for name in wanted if name not in rows]:
        raise InputError(f"no column {missing[0]!r}; there are: {', '.join(map(str, rows))}")
    done = rows[rows["error"].isna()] if "error" in rows else rows
    return [
        Case(
            str(row[problem]),
            str(row[candidate]),
            None if reference is None else str(row[reference]),
            None if gold is None else row[gold],
            str(row["id"]) if "id" in row else None,
        )
        for row in done.to_dict("records")
    ]


def builtin(name: str) -> Template:
    """A built-in template: pointwise, pairwise, rubric, or tiny.

    Raises:
        InputError: there is no such template.
    """
    known = sorted(path.stem for path in HERE.glob("*.txt"))
    if name not in known:
        raise InputError(f"no template {name!r}; there are: {', '.join(known)}")
    return Template.load(HERE / f"{name}.txt")


def normal(text: str) -> str:
    """A verdict in lower case, without surrounding marks and trailing punctuation."""
    return text.strip(MARKS).rstrip(f"{MARKS}.,;:!").casefold()


def _places(text: str) -> set[str]:
    return {found[2] for found in PLACE.finditer(text) if found[2]}


def _checked_choices(name: str, choices: object) -> tuple[str, ...]:
    if not isinstance(choices, tuple | list) or len(choices) < 2:
        raise InputError(f"template {name}: choices={choices!r} must be two verdicts or more")
    for choice in choices:
        if not isinstance(choice, str) or "\n" in choice or not normal(choice):
            raise InputError(f"template {name}: choice {choice!r} must be words on a single line")
    if len({normal(choice) for choice in choices}) < len(choices):
        raise InputError(
            f"template {name}: choices={tuple(choices)!r} must differ by more than case and marks"
        )
    return tuple(choices)


def _header(head: str, path: str, need: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for number, line in enumerate(head.splitlines(), 1):
        key, colon, value = (part.strip() for part in line.partition(":"))
        if not colon or key not in ("style", "choices", "reasons"):
            raise InputError(f"{path}:{number}: {line!r} is not a header line: give {need}")
        try:
            values[key] = value if key == "style" else json.loads(value)
        except ValueError:
            raise InputError(f"{path}:{number}: {line!r} is not JSON: give {need}") from None
    if "choices" not in values:
        raise InputError(f"{path}: the header names no choices: give {need}")
    return values


def _check_texts(case: Case | Pair, *answers: str) -> None:
    kind = type(case).__name__
    for name in ("problem", "reference", "id", *answers):
        value = getattr(case, name)
        if not isinstance(value, str) and (value is not None or name in ("problem", *answers)):
            raise InputError(f"{kind}: {name}={value!r} must be a text")
        if value is not None and not value.strip() and name not in answers:
            raise InputError(f"{kind}: {name}={value!r} is empty: give a text, or leave it out")
