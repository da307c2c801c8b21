"""Votes: ask a judge for a verdict, read it strictly, and combine several votes.

A choice is an index into the template's `choices`. An answer that cannot be read is not a vote.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from workbench.answers.statements import outside_reasoning
from workbench.engines.requests import CUT
from workbench.errors import InputError, log
from workbench.judge.templates import Template, normal
from workbench.lazy import NDArray, np
from workbench.types import Completion, Engine, Prompt, Sampling

Row = dict[str, Any]

Mode = Literal["generate", "logprob"]
Output = Literal["choices", "json_schema", "text"]
SIDES = ("a", "b", "tie")
VERDICT = re.compile(
    r"\W*(?:(?:my|the|final|overall)\s+)*(?:verdict|judge?ment|rating|score)(?:\s+is\b)?\W*?[:：](.*)",
    re.IGNORECASE,
)
MARKED = re.compile(r"\[\[([^\[\]\n]{1,40})\]\]")
FENCED = re.compile(r"\A[^{}`]*```(?:json)?\s*(\{.*\})\s*```\s*\Z", re.DOTALL | re.IGNORECASE)
REFUSED = re.compile(
    r"choice|structured|guided|grammar|response_format|json_schema", re.IGNORECASE
)  # how servers report that they cannot restrict an answer's format


@dataclass(frozen=True, slots=True)
class Vote:
    """One judge's answer on one prompt.

    Attributes:
        choice: None if there is none; then `error` or `unread` has the reason.
        text: the answer.
        error: why the call failed.
        unread: why no verdict could be read, although the call succeeded.
        chances: the probability of each choice among all choices, from label log-probabilities.
    """

    choice: int | None
    text: str = ""
    error: str | None = None
    unread: str | None = None
    chances: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Ballot:
    """All votes on one prompt, judge by judge."""

    votes: tuple[Vote, ...]

    @property
    def places(self) -> list[int]:
        """The choices that could be read."""
        return [vote.choice for vote in self.votes if vote.choice is not None]

    @property
    def verdict(self) -> int | None:
        """The choice with the most votes among those read; None if there are none, or at a tie."""
        counts = Counter(self.places).most_common(2)
        if not counts or (len(counts) == 2 and counts[0][1] == counts[1][1]):
            return None
        return counts[0][0]

    @property
    def error(self) -> str | None:
        """The reason why all calls failed, if they did."""
        return None if self.places else next((v.error for v in self.votes if v.error), None)

    @property
    def unparsed(self) -> str | None:
        """The reason why there is no verdict, although there are answers."""
        if self.verdict is not None or self.error:
            return None
        return "tie" if self.places else next(v.unread for v in self.votes if v.unread)

    @property
    def chances(self) -> tuple[float, ...] | None:
        """Mean of the votes' probabilities."""
        known = [vote.chances for vote in self.votes if vote.chances is not None]
        return tuple(sum(column) / len(known) for column in zip(*known, strict=True)) or None

    def score(self, scale: Sequence[float]) -> float | None:
        """Mean of the votes, or of the scale weighted by the probabilities, if known."""
        if self.chances:
            return sum(p * value for p, value in zip(self.chances, scale, strict=True))
        return sum(scale[p] for p in self.places) / len(self.places) if self.places else None

    def row(self, names: Sequence[Any], **more: object) -> Row:
        """A row for a report; `names` are the meanings of the choices."""
        meant = [None if vote.choice is None else names[vote.choice] for vote in self.votes]
        return {
            "verdict": None if self.verdict is None else names[self.verdict],
            **more,
            "votes": meant,
            "texts": [vote.text for vote in self.votes],
            "unparsed": self.unparsed,
            "error": self.error,
        }


def both(ab: Ballot, ba: Ballot) -> Row:
    """A pair's row from its two orders: their verdict if they agree, else a tie."""
    orders = {"ab": ab.row(SIDES), "ba": ba.row(("b", "a", "tie"))}
    first, second = (row["verdict"] for row in orders.values())
    verdict = None if first is None or second is None else first if first == second else "tie"
    probability = None
    if ab.chances and ba.chances:
        tie = sum(ab.chances[2:]) + sum(ba.chances[2:])
        probability = (ab.chances[0] + ba.chances[1] + tie / 2) / 2
    error = ab.error or ba.error
    parts = {
        f"{name}_{order}": row[name]
        for name in ("verdict", "votes", "texts")
        for order, row in orders.items()
    }
    reasons = {"unparsed": None if error else ab.unparsed or ba.unparsed, "error": error}
    return {"verdict": verdict, "probability": probability, **parts, **reasons}


def read(text: str, choices: Sequence[str]) -> int | None:
    """The choice that an answer names, None if it is not exactly one.

    It must be exactly the choice, end in a line such as `Final verdict: …`, have a single `[[…]]`,
    or be an object with a "verdict", in a code fence or not; "4/5" is 4. Case, surrounding marks
    and trailing punctuation do not matter. "incorrect" is never "correct".
    """
    words = {normal(choice): place for place, choice in enumerate(choices)}
    answer = outside_reasoning(text).strip()  # a server may leave thinking in the answer
    fenced = FENCED.search(answer)
    if answer.startswith("{") or fenced:
        return _of_json(fenced[1] if fenced else answer, words)
    last = answer.splitlines()[-1] if answer else ""
    named = VERDICT.fullmatch(last)
    marked = set(MARKED.findall(answer))
    for said in (answer, named[1] if named else "", marked.pop() if len(marked) == 1 else ""):
        if (place := _place(said, words)) is not None:
            return place
    return None


def _of_json(text: str, words: Mapping[str, int]) -> int | None:
    """The verdict of a JSON object, ignoring its other fields."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # a model can nest braces without end
        return None
    said = value.get("verdict") if isinstance(value, dict) else None
    plain = isinstance(said, str | int | float) and not isinstance(said, bool)
    return _place(str(said), words) if plain else None


def _place(said: str, words: Mapping[str, int]) -> int | None:
    """The choice that some words name; "4/5" is 4 if 5 is the maximum."""
    share = re.fullmatch(r"(\d+)\s*/\s*(\d+)", normal(said))
    if share and share[2] in words and all(w.isdigit() and int(w) <= int(share[2]) for w in words):
        return words.get(share[1])
    return words.get(normal(said))


def fitting(template: Template, engine: Engine) -> Template:
    """The template, as a chat if the engine supports nothing else."""
    return template if getattr(engine, "has_completions", True) else template.as_chat()


def cast(
    engine: Engine, template: Template, prompts: Sequence[Prompt], sampling: Sampling, mode: Mode
) -> tuple[list[list[Vote]], list[Output]]:
    """An engine's votes on each prompt, and how its answers were restricted to the choices.

    Raises:
        InputError: the engine refuses the prompts, or the template does not fit the mode.
    """
    outputs: list[Output] = []
    if mode == "logprob":
        votes = _scored(engine, template, prompts)
    else:
        if template.style == "completion" and not template.reasons:
            sampling = replace(sampling, stop=("\n",))
        answers, outputs = _answers(engine, template, prompts, sampling)
        votes = [[_vote(sample, template.choices) for sample in a.samples] for a in answers]
    reasons = [v.error or v.unread for row in votes for v in row if v.choice is None]
    if reasons:  # a majority of several judges would hide them
        count = sum(map(len, votes))
        log.warning("%d of %d votes are missing. First: %s", len(reasons), count, reasons[0])
    return votes, outputs


def _scored(engine: Engine, template: Template, prompts: Sequence[Prompt]) -> list[list[Vote]]:
    """One vote per prompt, from the log-probabilities of the choices as its continuation."""
    if template.reasons:
        raise InputError(
            f'template {template.name} asks for reasons before the verdict: use mode="generate"'
        )
    for one in template.choices:
        for other in template.choices:
            if one != other and other.startswith(one):
                raise InputError(
                    f"template {template.name}: choice {other!r} begins with {one!r}, whose "
                    'probability would include it: rename them, or use mode="generate"'
                )
    scores = engine.label_logprobs(prompts, template.choices, errors="return")
    rows = zip(scores.logprobs, scores.upper, scores.missing, scores.errors, strict=True)
    return [[_label_vote(*row)] for row in rows]


def _answers(
    engine: Engine, template: Template, prompts: Sequence[Prompt], sampling: Sampling
) -> tuple[list[Completion], list[Output]]:
    """Ask with the strictest output format that the engine supports, else with the next one."""
    rows: dict[int, Completion] = {}
    used: list[Output] = []
    todo = list(range(len(prompts)))
    for output, form in _forms(template).items():
        last = output == "text"
        asked = replace(sampling, **form)
        try:
            found = engine.generate([prompts[i] for i in todo], asked, errors="return")
        except InputError:  # unsupported format; any other error recurs with plain text
            if last:
                raise
            continue
        rows.update(zip(todo, found, strict=True))
        refused = (
            [] if last else [i for i in todo if _is_formless(rows[i], output, template.choices)]
        )
        if len(refused) < len(todo):
            used.append(output)
        if not refused:
            break
        todo = refused
    return [rows[i] for i in range(len(prompts))], used


def _is_formless(answer: Completion, output: Output, choices: Sequence[str]) -> bool:
    """Whether a format was refused, or a schema was ignored, so that no answer can be read."""
    if any(sample.error for sample in answer.samples):
        return bool(REFUSED.search(answer.error or ""))
    ended = all(sample.finish_reason == "stop" for sample in answer.samples)
    unread = all(read(sample.text, choices) is None for sample in answer.samples)
    return output == "json_schema" and ended and unread


def _forms(template: Template) -> Mapping[Output, dict[str, Any]]:
    """Arguments of `Sampling` that restrict an answer to the choices, the strictest first."""
    if template.reasons:
        return {"text": {}}
    if template.style == "completion":
        return {"choices": {"choices": template.choices}, "text": {}}
    schema = {
        "type": "object",
        "properties": {"verdict": {"type": "string", "enum": list(template.choices)}},
        "required": ["verdict"],
        "additionalProperties": False,
    }
    return {
        "choices": {"choices": template.choices},
        "json_schema": {"json_schema": schema},
        "text": {},
    }


def _vote(answer: Completion, choices: Sequence[str]) -> Vote:
    if answer.error and CUT not in answer.error:
        return Vote(None, answer.text, error=answer.error)
    if answer.error or answer.finish_reason == "length":  # its last word may be incomplete
        return Vote(None, answer.text, unread="cut off: raise max_tokens")
    place = read(answer.text, choices)
    reason = None if place is not None else f"no verdict in {answer.text.strip()[-80:]!r}"
    return Vote(place, answer.text, unread=reason)


def _label_vote(
    logprobs: NDArray[np.float64],
    upper: NDArray[np.float64],
    missing: NDArray[np.bool_],
    error: str | None,
) -> Vote:
    """The likeliest label, if no other can be likelier; a missing one counts with its bound."""
    if error:
        return Vote(None, error=error)
    values = np.where(missing, upper, logprobs)
    best = int(np.where(missing, -np.inf, logprobs).argmax())
    rivals = np.delete(values, best)
    if missing[best] or not values[best] > rivals.max():
        return Vote(None, unread="no choice is certainly the likeliest")
    weights = np.exp(values - values[best])
    return Vote(best, chances=tuple((weights / weights.sum()).tolist()))
