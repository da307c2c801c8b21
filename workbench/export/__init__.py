"""Reports in the formats of others: tables, spreadsheets, data sets, trackers, inspect_ai's logs.

`Exports` is part of `Report`. Unknown numbers stay empty or are called "unknown", texts stay texts,
and what looks like a key is removed from the provenance.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench import values
from workbench.errors import InputError
from workbench.reprs import HIDDEN, SECRET_NAME, flat, masked

if TYPE_CHECKING:
    from workbench.types import Report

__all__ = ["Exports", "export", "summary_table"]


class Exports:
    """How a report leaves this package."""

    __slots__ = ()

    def export(self: Any, path: str | Path) -> Path:
        """Write one file, of the kind that its ending names; an existing file is replaced.

        .csv, .jsonl, .parquet: the rows. .xlsx: summary, rows and provenance, as sheets. .md, .tex:
        the summary with its intervals. .eval: a log of inspect_ai, for `inspect view`.

        Raises:
            InputError: another ending, no such folder, a report without answers (.eval), or the
                package for the format is not installed.
        """
        return export({"": self}, path)

    def summary_table(self: Any, form: str = "markdown") -> str:
        """The summary with its intervals as a table, "markdown" or "latex" (with booktabs)."""
        return summary_table({"": self}, form)

    def to_hf(self: Any) -> Any:
        """The rows as a `datasets.Dataset`."""
        from workbench.export.tables import plain

        return need("hf", "datasets").Dataset.from_pandas(plain(self.rows), preserve_index=False)

    def log(self: Any, tracker: str, project: str = "workbench", name: str | None = None) -> str:
        """Log numbers with their bounds, provenance and rows as a run of a tracker.

        Args:
            tracker: "wandb" or "mlflow", set up by its own variables, such as `WANDB_MODE` and
                `MLFLOW_TRACKING_URI`.
            project: a project of Weights & Biases, or an experiment of MLflow.
            name: of the run; None leaves it to the tracker.

        Returns:
            The run's id.

        Raises:
            InputError: another tracker, or its package is not installed.
        """
        from workbench.export.trackers import TRACKERS

        return TRACKERS[values.known("tracker", tracker, TRACKERS)](self, project, name)


def summary_table(reports: Mapping[str, Report], form: str = "markdown") -> str:
    """Several summaries side by side, a row per report; a row per number of one report alone."""
    from workbench.export import tables

    forms = {"markdown": tables.markdown, "latex": tables.latex}
    return forms[values.known("form", form, forms)](tables.summary(reports))


def export(reports: Mapping[str, Report], path: str | Path) -> Path:
    """`Report.export`, also of several reports in one file: .xlsx, .md or .tex."""
    from workbench.export.tables import SEVERAL, WRITERS

    target = Path(path).expanduser()
    write = WRITERS[values.known("ending of a file", target.suffix, WRITERS)]
    if len(reports) != 1 and target.suffix not in SEVERAL:
        raise InputError(f"{target}: such a file holds one report, not {len(reports)}")
    if not target.parent.is_dir():
        raise InputError(f"{target.parent} is not a folder: create it, or choose another one")
    part = target.with_name(f".part-{target.name}")
    try:
        write(reports, part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def need(extra: str, module: str) -> Any:
    """A module of an extra; the error names the command that installs it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        hint = f"install it with pip install 'workbench-lm[{extra}]'"
        raise InputError(f"{module} is not installed: {hint}") from error


def public(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Provenance by flat names, without what is empty or looks like a key."""
    return {
        name: HIDDEN if SECRET_NAME.search(name) else masked(values.written(value))
        for name, value in flat(provenance).items()
        if value not in (None, "", (), [], {})
    }
