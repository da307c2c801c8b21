"""JSONL in, JSONL out: rows are appended as they finish, and a second run resumes.

A row is known by its position and its prompt, so an edited input is noticed and not misaligned.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.engines import open_engine
from workbench.errors import InputError
from workbench.files import write_whole
from workbench.store import digest
from workbench.types import Prompt, Sampling, Usage


@dataclass(frozen=True, slots=True)
class BatchResult:
    """How a run over a file went; `rows` counts what the output file holds now."""

    rows: int
    already_there: int
    failed: int
    usage: Usage


def generate_file(
    source: Path, out: Path, sampling: Sampling, *, model: str | None = None, **options: Any
) -> BatchResult:
    """Complete every row of `source` that `out` does not hold yet.

    Input rows are `{"prompt": text}` or `{"messages": [...]}` with any other fields; output rows
    are the same with `row`, `completion` (`samples` too where n > 1), `finish_reason`, `error`
    and token counts, in the order in which they finished. Failed rows are tried again.

    Raises:
        InputError: a line is not valid, or `out` was made from other prompts.
        EngineError: the engine could not be opened.
    """
    rows = list(_read(source))
    if not rows:
        raise InputError(f"{source} holds no rows")
    prompts = [_prompt(row, source, i) for i, row in enumerate(rows)]
    made_by = digest(model, sampling.canonical(), sampling.n, sampling.seed, repr(options)).hex()[
        :12
    ]
    kept = _finished(out, prompts, made_by)
    if sampling.temperature > 0 and len({repr(prompt) for prompt in prompts}) < len(prompts):
        kept = {}  # copies of a prompt are told apart by their order: ask for all, or the store
    todo = [i for i in range(len(rows)) if i not in kept]
    failed, usage = 0, Usage()
    if todo:
        out.parent.mkdir(parents=True, exist_ok=True)
        _rewrite(out, kept)
        with open_engine(model, **options) as engine, out.open("a", encoding="utf8") as file:
            with closing(engine.stream([prompts[i] for i in todo], sampling)) as stream:
                for at, done in stream:
                    index = todo[at]
                    failed += done.error is not None
                    record = {
                        **rows[index],
                        "row": index,
                        "made_by": made_by,
                        "completion": None if done.error else done.text,
                        "finish_reason": done.finish_reason,
                        "error": done.error,
                        "prompt_tokens": done.prompt_tokens,
                        "completion_tokens": done.completion_tokens,
                    }
                    if sampling.n > 1:
                        record["samples"] = [None if s.error else s.text for s in done.samples]
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
                    file.flush()
            usage = engine.usage
    return BatchResult(len(rows), len(kept), failed, usage)


def _read(path: Path, *, torn: bool = False) -> Iterator[dict[str, Any]]:
    """Rows of a JSONL file; with `torn`, a broken last line (a kill in mid-write) is dropped."""
    try:
        # Bytes, as text has more line ends than JSONL, and a kill may cut a character in two.
        lines = path.read_bytes().rstrip().split(b"\n")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if torn and number == len(lines):
                return
            raise InputError(f"{path} line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise InputError(f"{path} line {number} must be an object, it is {row!r:.60}")
        yield row


def _prompt(row: dict[str, Any], source: Path, index: int) -> Prompt:
    given = [row[name] for name in ("prompt", "messages") if name in row]
    if len(given) != 1:
        raise InputError(f'{source} row {index} must have either "prompt" or "messages"')
    prompt: Prompt = given[0]
    return prompt


def _finished(out: Path, prompts: list[Prompt], made_by: str) -> dict[int, dict[str, Any]]:
    """Rows of an earlier run that need not be computed again."""
    kept: dict[int, dict[str, Any]] = {}
    if not out.exists():
        return kept
    for row in _read(out, torn=True):
        index = row.get("row")
        if not isinstance(index, int) or not 0 <= index < len(prompts):
            raise InputError(f"{out} was not made from this input (row {index!r}): give another")
        if row.get("prompt", row.get("messages")) != prompts[index]:
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
