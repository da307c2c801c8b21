"""Prompts from a file, answers as JSONL. Rows are appended as they finish; a second run resumes.

A row is identified by its position and its prompt, so an edited input is detected. `made_by` has
the source of an answer: rows of another model, revision, server or style are not mixed with it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench import template, values
from workbench.engines import URL, open_engine
from workbench.engines.base import BaseEngine
from workbench.engines.identity import HARMLESS
from workbench.engines.remote.settings import WAYS
from workbench.engines.requests import check_prompts
from workbench.engines.style import chosen_style
from workbench.errors import InputError
from workbench.files import write_whole
from workbench.store import digest
from workbench.tasks.rows import TableRow, read_rows
from workbench.types import Completion, Prompt, PromptStyle, Sampling, Style, Usage

ASKED = ("prompt", "messages")
"""The columns of a prompt, if there is no template."""
OURS = (
    "row", "made_by", "completion", "finish_reason", "error", "prompt_tokens", "completion_tokens",
    "samples",
)  # fmt: skip
"""The columns of an answer."""
ROLES = ("system", "developer", "user", "assistant", "model", "tool", "function", "ipython")
HOW = (HARMLESS - {"dtype", "revision"}) | WAYS | {"store", "base_url"}
"""Options that do not affect answers, or that `made_by` has anyway."""
DELIMITED_PLACE = re.compile(r"\.(csv|tsv|txt):", re.IGNORECASE)
Made = dict[str, Any]


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The result of a run over a file; `rows` counts the rows of the output file.

    `style` is the style of the prompts and the reason for it; None if nothing was left to do.
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
    """Complete every row of `source` that `out` does not have yet.

    Output rows have the input's columns and `row` (from 0), `completion` (`samples` too if n > 1),
    `finish_reason`, `error`, token counts and `made_by`, in the order in which they finished.
    If the input has columns with these names, as an earlier output does, they are moved into the
    column `input`. Failed rows are tried again.

    Args:
        source: rows with a column `prompt` or `messages` and any others, as `tasks.rows` reads
            them: .jsonl, .json, .csv, .tsv, .txt or .parquet.
        prompt: a template with columns in braces, such as "Translate: {text}".
        style: whether to send texts or chats; messages are always chats.
        model, options: for `open_engine`.

    Raises:
        InputError: a row is invalid, `out` cannot be written, or `out` was made from other prompts
            or by another model, style or sampling.
        EngineError: the engine could not be opened.
    """
    if out.suffix.lower() in {".csv", ".tsv", ".parquet", ".json", ".xlsx"}:
        raise InputError(f"{out}: the output is JSONL; choose a name that ends in .jsonl")
    rows, prompts, style = _rows_of(source, prompt, style)
    server = digest(options.get("base_url") or os.environ.get(URL)).hex()[:12]
    made: Made = {
        "settings": _settings(model, prompt, sampling, options),
        "style": None if style == "auto" else style,
        "server": server if options.get("engine") == "remote" else None,
    }
    used = ASKED if prompt is None else template.fields(prompt)
    kept = _finished(out, rows, used, made)
    made_before = [row["made_by"] for row in kept.values()]
    if sampling.temperature > 0 and len({repr(prompt) for prompt in prompts}) < len(prompts):
        kept = {}  # equal prompts differ by their order: run all again (the store has them)
    columns = _with_input(rows)
    fresh = {i: columns[i] | {x: row[x] for x in OURS if x in row} for i, row in kept.items()}
    todo = [i for i in range(len(rows)) if i not in kept]
    _check_writable(out)
    if not todo:
        if fresh != kept:  # columns outside the prompts were edited
            _rewrite(out, fresh)
        return BatchResult(len(rows), len(kept), 0, Usage())
    failed = 0
    with open_engine(model, **options) as engine:
        how, why = chosen_style(engine, style)
        made |= {"style": how, **_model_of(engine)}
        made["server"] = server if engine.info.engine == "remote" else None
        for before in made_before:
            _check_made(out, before, made)
        asked = [_asked(prompts[i], how) for i in todo]
        _rewrite(out, fresh)
        stream = closing(engine.stream(asked, sampling))
        with out.open("a", encoding="utf8") as file, stream as answers:
            for at, done in answers:
                index = todo[at]
                failed += done.error is not None
                record = columns[index] | {"row": index, "made_by": made} | _answer(done)
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                file.flush()
        return BatchResult(len(rows), len(kept), failed, engine.usage, f"{how}: {why}")


def _rows_of(
    source: Path, prompt: str | None, style: Style
) -> tuple[list[dict[str, Any]], list[Prompt], Style]:
    """The rows, their prompts and the style, which is that of chats if a row has messages."""
    given = read_rows(source)
    prompts = [_prompt(row, prompt) for row in given]
    if chats := [row for row, one in zip(given, prompts, strict=True) if not isinstance(one, str)]:
        if style == "completion":
            raise InputError(f"{chats[0].place}: messages are a chat; leave out --no-chat")
        style = "chat"
    return [_plain(row.cells) for row in given], prompts, style


def _settings(
    model: str | None, prompt: str | None, sampling: Sampling, options: Mapping[str, Any]
) -> str:
    """A digest of all that decides what is asked, apart from the rows and the style."""
    same = repr(sorted((k, v) for k, v in options.items() if k not in HOW))
    asked = digest(model, prompt, sampling.canonical(), sampling.n, sampling.seed, same)
    return asked.hex()[:12]


def _model_of(engine: BaseEngine) -> Made:
    """The model, and its revision unless that is a fingerprint without a store."""
    info = engine.info
    measured = info.revision.startswith("fingerprint") and not engine.has_store
    return {"model": info.model, "revision": None if measured else info.revision}


def _check_made(out: Path, before: object, now: Made) -> None:
    """Refuse a row that another model answered; None means unknown."""
    there = before if isinstance(before, dict) else {}
    if there.get("settings") != now["settings"]:
        raise InputError(
            f"{out} was made with another model, sampling or engine options: choose another file"
        )
    for name, value in now.items():
        if there.get(name) not in {None, value} and value is not None:
            shown = "" if name == "server" else f" ({there[name]!r}, here {value!r})"
            kind = "another model, or at another server" if name == "server" else f"another {name}"
            raise InputError(f"{out} was made with {kind}{shown}: choose another file")


def _with_input(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, with columns named like ours moved into `input`."""
    if not (clash := {name for row in rows for name in row if name in OURS}):
        return [*rows]
    apart = clash | {"input"}
    return [
        {name: v for name, v in row.items() if name not in apart}
        | {"input": {name: v for name, v in row.items() if name in apart}}
        for row in rows
    ]


def _check_writable(out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        there = out.exists()
        out.open("ab").close()
        if not there:
            out.unlink()
    except OSError as error:
        raise InputError(f"{out} cannot be written ({error.strerror}): choose another") from None


def _answer(done: Completion) -> dict[str, Any]:
    """An answer's columns in the output."""
    texts = [None if one.error else one.text for one in done.samples]
    return {
        "completion": None if done.error else done.text,
        "finish_reason": done.finish_reason,
        "error": done.error,
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.completion_tokens,
    } | ({"samples": texts} if len(texts) > 1 else {})


def _prompt(row: TableRow, prompt: str | None) -> Prompt:
    """The prompt of a row."""
    if prompt is not None:
        cells = row.cells
        if DELIMITED_PLACE.search(row.place):  # in these files, an empty cell is a missing value
            cells = {k: v if str(v).strip() else None for k, v in cells.items()}
        return template.fill(prompt, cells, f"{row.place}: prompt")
    given = [name for name in ASKED if not values.is_missing(row.cells.get(name))]
    if len(given) != 1:
        there = ", ".join(map(str, row.cells)) or "none"
        raise InputError(
            f'{row.place}: it needs either "prompt" or "messages" among its columns ({there}); '
            'or set a template, as in --prompt "Translate: {{text}}"'
        )
    asked: Prompt = _plain(row.cells)[given[0]]
    if given == ["messages"] and isinstance(asked, str):
        row.refuse("messages", 'a list, such as [{"role": "user", "content": "Why?"}]')
    try:
        check_prompts([asked])
    except InputError as error:
        raise InputError(f"{row.place}: {str(error).replace('prompt 0', given[0], 1)}") from None
    for message in () if isinstance(asked, str) else asked:
        if message["role"] not in ROLES:
            row.refuse(given[0], f"messages with roles among {', '.join(ROLES)}")
    return asked


def _asked(prompt: Prompt, style: PromptStyle) -> Prompt:
    if style == "completion" or not isinstance(prompt, str):
        return prompt
    return [{"role": "user", "content": prompt}]


def _plain(cells: Mapping[Any, Any]) -> dict[str, Any]:
    """A row as JSON values: dates as texts, arrays as lists."""
    row: dict[str, Any] = json.loads(json.dumps(dict(cells), default=values.json_text))
    return row


def _read(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of an earlier output; a broken last line (from a kill during a write) is dropped."""
    # Bytes, as text has more line ends than JSONL, and a kill may split a character.
    lines = path.read_bytes().rstrip().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError as error:
            if number == len(lines):
                return
            raise InputError(f"{path}:{number}: not JSON; choose another output file") from error
        if isinstance(row, dict):
            yield row


def _finished(
    out: Path, rows: Sequence[Mapping[str, Any]], used: Sequence[str], made: Made
) -> dict[int, dict[str, Any]]:
    """Finished rows of an earlier run; `used` has the current prompts."""
    kept: dict[int, dict[str, Any]] = {}
    if not out.is_file():
        return kept
    for row in _read(out):
        index = row.get("row")
        if not isinstance(index, int) or not 0 <= index < len(rows):
            raise InputError(f"{out} was not made from this input (row {index!r}): choose another")
        there = row
        if any(name in OURS for name in rows[index]):
            there = row | (row["input"] if isinstance(row.get("input"), dict) else {})
        if any(there.get(name) != rows[index].get(name) for name in used):
            raise InputError(f"{out} row {index} was made from another prompt: choose another file")
        _check_made(out, row.get("made_by"), made)
        if row.get("error") is None:
            kept[index] = row
    return kept


def _rewrite(out: Path, kept: dict[int, dict[str, Any]]) -> None:
    """Rewrite the file with finished rows only, without torn lines and old failures."""
    if not out.exists():
        return
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in kept.values())
    write_whole(out, "".join(lines))
