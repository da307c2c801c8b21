"""Tables and answers: `engine.ask`, and the list that `generate` returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, SupportsIndex, overload

from workbench import reprs, template, values
from workbench.engines.requests import check_errors, plain_list, raise_failures
from workbench.errors import InputError, log
from workbench.lazy import pd
from workbench.reprs import Card, Shown
from workbench.types import Completion, Engine, Errors, Prompt, Sampling, Style


class Completions(Shown, list[Completion]):
    """A list of completions that displays as a table."""

    def frame(self) -> pd.DataFrame:
        """A row per prompt: answer (None if it failed), tokens (generated, over all samples), error
        (None if it did not fail); with several samples, `samples` too, a list of texts."""
        columns = {
            "answer": [None if one.error else one.text for one in self],
            "tokens": [sum(sample.completion_tokens for sample in one.samples) for one in self],
            "error": [one.error for one in self],
        }
        if any(len(one.samples) > 1 for one in self):
            columns["samples"] = [
                [None if s.error else s.text for s in one.samples] for one in self
            ]
        return pd.DataFrame(columns, dtype=object).astype({"tokens": "int64"})

    @overload
    def __getitem__(self, place: SupportsIndex) -> Completion: ...
    @overload
    def __getitem__(self, place: slice) -> Completions: ...
    def __getitem__(self, place: SupportsIndex | slice) -> Completion | Completions:
        found: Any = list.__getitem__(self, place)
        return Completions(found) if isinstance(place, slice) else found

    def _card(self) -> Card:
        failed = sum(one.error is not None for one in self)
        first = f"{len(self):,} completions" + (f", {failed:,} failed" if failed else "")
        lines = [one.__repr__().replace("\n", ", ") for one in self[:3]]
        more = [f"and {len(self) - 3:,} more"] if len(self) > 3 else []
        rows = [
            (place, reprs.masked(one.error or "") or one.text, reprs.tokens(one))
            for place, one in enumerate(self[: reprs.ROWS])
        ]
        table = reprs.table(["", "answer", ""], rows, len(self))
        return Card([first, *lines, *more], [reprs.note(first), table])


class FrameEngine:
    """An engine's methods for tables."""

    def ask(
        self: Engine, rows: object, wording: str, sampling: Sampling | None = None, *,
        style: Style = "auto", errors: Errors = "return", **settings: Any,
    ) -> pd.DataFrame:  # fmt: skip
        """One answer per row, in the rows' order: `answers = engine.ask(df, "Translate: {text}")`.

        Add them to the rows with `df.assign(answer=answers["answer"].to_numpy())`, or all columns
        with `pd.concat([df, answers], axis=1)`: `df.join` crosses rows if the index has repeats.
        Stored answers are reused, and an interrupted call resumes.

        Args:
            rows: a DataFrame, an object with `to_pandas` (such as a Hugging Face `Dataset`), a list
                of dicts; or only texts: a Series or another iterable, whose only column has the
                Series' name or is `text`.
            wording: the prompt, with any column (or name of the index) in braces; `{}` is the only
                column; `{{` and `}}` are literal braces.
            sampling: how to answer, greedy by default; `settings` replace single fields of it.
            style: "completion" sends the text unchanged, "chat" as a user's message; "auto" chooses
                by the model (`engines.style`).
            errors: "return" returns failed rows too; "raise" raises after all others are done.

        Returns:
            Only the new columns, with the index of `rows` (0 to n - 1 if it has none): answer (None
            if it failed), tokens (generated), error (the reason, or None). With `n` above 1,
            `answer` is the first of `samples`, a list of texts. A row with a missing value in a
            column of the wording, or with an empty prompt, has failed. No rows give an empty frame.
            If `rows` has such columns: `pd.concat([df, answers.add_suffix("_model")], axis=1)`.

        Raises:
            InputError: no such column or field of `Sampling`, or an unsupported kind of rows.
            EngineError: some failed (with `errors="raise"`); its `results` has the frame.
        """
        from workbench.engines.style import chosen_style

        check_errors(errors)
        sampling = with_settings(sampling, settings)
        template.fields(wording)
        table, index, only = _table(rows, wording)
        wording = template.PIECE.sub(lambda piece: only if piece[1] == "" else piece[0], wording)
        template.check(wording, table.columns)
        used = [*template.fields(wording)]
        _check_cells(table, used, index)
        asked, _ = chosen_style(self, style)
        places: list[int] = []
        prompts: list[Prompt] = []
        answers = [Completion(text="", finish_reason="error")] * len(index)
        for place, row in enumerate(table[used].to_dict("records")):
            where = f"row {index[place]!r}"
            try:
                text, why = template.fill(wording, row, where), f"{where}: the prompt is empty"
            except InputError as missing:
                text, why = "", str(missing)
            if text:
                chat = [{"role": "user", "content": text}]
                prompts.append(text if asked == "completion" else chat)
                places.append(place)
            else:
                answers[place] = Completion(text="", finish_reason="error", error=why)
        found = self.generate(prompts, sampling, errors="return") if prompts else []
        for place, answer in zip(places, found, strict=True):
            answers[place] = answer
        if not index.is_unique:
            log.warning(
                "ask: the index has repeats, so that join would cross rows: use "
                "pd.concat([df, answers], axis=1)"
            )
        frame = Completions(answers).frame().set_axis(index)
        if sampling.n > 1 and "samples" not in frame:
            frame["samples"] = [[None] for _ in index]
        if errors == "raise":
            raise_failures([one.error for one in answers], frame)
        return frame


def with_settings(sampling: Sampling | None, settings: Mapping[str, Any]) -> Sampling:
    """`sampling` (greedy if None), with the given fields replaced.

    Raises:
        InputError: not a `Sampling`, or no such field; suggests the nearest.
    """
    if sampling is not None and not isinstance(sampling, Sampling):
        raise InputError(f"sampling={sampling!r:.60} must be a workbench.Sampling")
    for name in settings:
        values.known("field of Sampling", name, [field.name for field in fields(Sampling)])
    return replace(sampling or Sampling(), **settings)


def _check_cells(table: pd.DataFrame, used: list[str], index: pd.Index[Any]) -> None:
    """Refuse repeated column names, and cells with whole chats."""
    for name in used:
        if [*table.columns].count(name) > 1:
            raise InputError(f"rows have several columns {name!r}: rename all but one")
        for place, cell in zip(index, table[name], strict=True):
            template.refuse_chat(cell, f"row {place!r}: {name!r}")


def _table(rows: Any, wording: str) -> tuple[pd.DataFrame, pd.Index[Any], str]:
    """Rows as columns by name, those of the index included; the original index; and the column
    that `{}` means, which is the only one."""
    if not isinstance(rows, pd.DataFrame | pd.Series) and hasattr(rows, "to_pandas"):
        rows = rows.to_pandas()
    if isinstance(rows, pd.Series):
        rows = rows.to_frame("text" if rows.name is None else rows.name)
    elif not isinstance(rows, pd.DataFrame):
        given = plain_list("rows", rows, "a DataFrame, a list of dicts or a column of texts")
        kinds = {isinstance(row, Mapping) for row in given}
        if len(kinds) == 2:
            raise InputError("rows mixes texts and dicts: give one kind")
        names = template.fields(wording) if not given else ["text"]
        rows = pd.DataFrame(given if True in kinds else dict.fromkeys(names, given), dtype=object)
    table = values.cells(rows).set_axis([*map(str, rows.columns)], axis=1)
    only = f"{{{table.columns[0]}}}" if table.shape[1] == 1 else "{}"
    for place, name in enumerate(rows.index.names):
        if name is not None and str(name) not in table:
            table[str(name)] = rows.index.get_level_values(place).astype(object)
    return table, rows.index, only
