"""Prompts of a file in, JSONL out: rows are appended as they finish, and a second run resumes.

A row is known by its place and what is asked of it, so an edited input is noticed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench import template, values
from workbench.engines import open_engine
from workbench.engines.style import chosen_style
from workbench.errors import InputError
from workbench.files import write_whole
from workbench.store import digest
from workbench.tasks.rows import TableRow, read_rows
from workbench.types import Completion, Prompt, PromptStyle, Sampling, Style, Usage

ASKED = ("prompt", "messages")
"""The columns of what is asked, where no template says it."""


@dataclass(frozen=True, slots=True)
class BatchResult:
    """How a run over a file went; `rows` counts what the output file holds now.

    `style` says how the model was asked, and why; None where nothing was left to ask.
    """

    rows: int
    already_there: int
    failed: int
    usage: Usage
    style: str | None = None


def generate_file(
    source: Path, out: Path, sampling: Sampling, *, prompt: str | None = None,
    style: Style = "auto", model: str | None = None, **options: Any,
) -> BatchResult:  # fmt: skip
    """Complete every row of `source` that `out` does not hold yet.

    Output rows are the input's with `row` (from 0), `completion` (`samples` too where n > 1),
    `finish_reason`, `error` and token counts, in the order in which they finished. Failed rows are
    tried again.

    Args:
        source: rows with a column `prompt` or `messages` and any others, as `tasks.rows` reads
            them: .jsonl, .json, .csv, .tsv, .txt or .parquet.
        prompt: how to ask, with columns in braces, such as "Translate: {text}".
        style: whether texts are continued or answered as chats; messages are always chats.
        model, options: for `open_engine`.

    Raises:
        InputError: a row is not valid, or `out` was made from other prompts.
        EngineError: the engine could not be opened.
    """
    if out.suffix.lower() in {".csv", ".tsv", ".parquet", ".json", ".xlsx"}:
        raise InputError(f"{out}: what is written is JSONL; give a name that ends in .jsonl")
    given = read_rows(source)
    rows = [_plain(row.cells) for row in given]
    prompts = [_prompt(row, prompt) for row in given]
    if chats := [row for row, one in zip(given, prompts, strict=True) if not isinstance(one, str)]:
        if style == "completion":
            raise InputError(f"{chats[0].place}: messages are a chat; leave --no-chat out")
        style = "chat"
    same = repr(sorted((k, v) for k, v in options.items() if k != "store"))
    made_by = digest(
        model, prompt, style, sampling.canonical(), sampling.n, sampling.seed, same
    ).hex()[:12]
    used = ASKED if prompt is None else template.fields(prompt)
    kept = _finished(out, rows, used, made_by)
    if sampling.temperature > 0 and len({repr(prompt) for prompt in prompts}) < len(prompts):
        kept = {}  # copies of a prompt are told apart by their order: ask for all, or the store
    todo = [i for i in range(len(rows)) if i not in kept]
    if not todo:
        return BatchResult(len(rows), len(kept), 0, Usage())
    failed = 0
    with open_engine(model, **options) as engine:
        how, why = chosen_style(engine, style)
        asked = [_asked(prompts[i], how) for i in todo]
        out.parent.mkdir(parents=True, exist_ok=True)
        _rewrite(out, kept)
        stream = closing(engine.stream(asked, sampling))
        with out.open("a", encoding="utf8") as file, stream as answers:
            for at, done in answers:
                index = todo[at]
                failed += done.error is not None
                record = rows[index] | {"row": index, "made_by": made_by} | _answer(done)
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                file.flush()
        return BatchResult(len(rows), len(kept), failed, engine.usage, f"{how}: {why}")


def _answer(done: Completion) -> dict[str, Any]:
    """What an output row has of an answer."""
    texts = [None if one.error else one.text for one in done.samples]
    return {
        "completion": None if done.error else done.text,
        "finish_reason": done.finish_reason,
        "error": done.error,
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.completion_tokens,
    } | ({"samples": texts} if len(texts) > 1 else {})


def _prompt(row: TableRow, prompt: str | None) -> Prompt:
    """What is asked of a row."""
    if prompt is not None:
        return template.fill(prompt, row.cells, f"{row.place}: prompt")
    given = [name for name in ASKED if not values.is_missing(row.cells.get(name))]
    if len(given) != 1:
        there = ", ".join(map(str, row.cells)) or "none"
        raise InputError(
            f'{row.place}: there must be either "prompt" or "messages" among its columns '
            f'({there}); or say how to ask, as in --prompt "Translate: {{text}}"'
        )
    asked: Prompt = _plain(row.cells)[given[0]]
    if given == ["messages"] and isinstance(asked, str):
        row.refuse("messages", 'a list, such as [{"role": "user", "content": "Why?"}]')
    return asked


def _asked(prompt: Prompt, style: PromptStyle) -> Prompt:
    if style == "completion" or not isinstance(prompt, str):
        return prompt
    return [{"role": "user", "content": prompt}]


def _plain(cells: Mapping[Any, Any]) -> dict[str, Any]:
    """A row as JSON can hold it: dates as texts, arrays as lists."""
    row: dict[str, Any] = json.loads(json.dumps(dict(cells), default=values.json_text))
    return row


def _read(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of an earlier output; a broken last line (a kill in mid-write) is dropped."""
    # Bytes, as text has more line ends than JSONL, and a kill may cut a character in two.
    lines = path.read_bytes().rstrip().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError as error:
            if number == len(lines):
                return
            raise InputError(f"{path}:{number}: no JSON; give another file to write") from error
        if isinstance(row, dict):
            yield row


def _finished(
    out: Path, rows: Sequence[Mapping[str, Any]], used: Sequence[str], made_by: str
) -> dict[int, dict[str, Any]]:
    """Rows of an earlier run that need not be computed again; `used`: what the prompts have."""
    kept: dict[int, dict[str, Any]] = {}
    if not out.exists():
        return kept
    for row in _read(out):
        index = row.get("row")
        if not isinstance(index, int) or not 0 <= index < len(rows):
            raise InputError(f"{out} was not made from this input (row {index!r}): give another")
        if any(row.get(name) != rows[index].get(name) for name in used):
            raise InputError(f"{out} row {index} was made from another prompt: give another file")
        if row.get("made_by") != made_by:
            raise InputError(
                f"{out} was made with another model, sampling or engine options: give another file"
            )
        if row.get("error") is None:
            kept[index] = row
    return kept


def _rewrite(out: Path, kept: dict[int, dict[str, Any]]) -> None:
    """Leave only finished rows, so that a torn line or an old failure does not stay."""
    if not out.exists():
        return
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in kept.values())
    write_whole(out, "".join(lines))
