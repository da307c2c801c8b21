"""Reports of several evaluations, each kept in a folder of its own as soon as it is whole."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.errors import InputError
from workbench.store import digest
from workbench.verdicts import Evaluation, load

log = logging.getLogger("workbench")

LONGEST_NAME = 60
"""Letters of a folder's name."""


class Suite:
    """Where the reports are kept; None keeps none."""

    def __init__(self, folder: str | Path | None) -> None:
        self._place = Path(folder).expanduser() if folder is not None else None

    def load(self, name: str, wanted: Mapping[str, Any]) -> Evaluation | None:
        """The report of that name, if it is there with these settings and none of its rows failed.

        Raises:
            InputError: it is of other settings, model or items.
        """
        target = self._place / _folder_name(name) if self._place else None
        if target is None or not target.exists():
            return None
        saved = _load_same(target, wanted)
        if saved.rows["error"].isna().all():
            return saved
        log.info("suite: %s has failed rows, which are asked again", name)
        return None

    def save(self, name: str, report: Evaluation) -> None:
        """Keep a report in the place of the one that was there."""
        if self._place is not None:
            target = self._place / _folder_name(name)
            shutil.rmtree(target.resolve(), ignore_errors=True)  # of a link it removes nothing
            report.save(target)


def _folder_name(name: str) -> str:
    """The name as a folder's, which an agent's arguments may be too long for."""
    plain = re.sub(r"[^\w.,=() -]", "_", name)
    if plain == name and len(name) <= LONGEST_NAME:
        return name
    return f"{plain[:LONGEST_NAME]} {digest(name).hex()[:8]}"


def _load_same(target: Path, wanted: Mapping[str, Any]) -> Evaluation:
    """A report that is there, if it is of these settings, model and items."""
    report = load(target)
    if not isinstance(report, Evaluation):
        raise InputError(f"{target} has no trace.parquet: remove the folder, and it is made anew")
    there, here = (_settings(one) for one in (report.provenance, wanted))
    for name, value in here.items():
        if there.get(name) != value:
            raise InputError(
                f"{target} has {name}={there.get(name)!r}, here it is {value!r}: give this suite "
                "another name, or remove the folder"
            )
    return report


def _settings(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the answers, as it is read from a file."""
    model = {name: provenance["engine"][name] for name in ("model", "revision")}
    unlike = {"engine", "commit", "style_why", "cost"}
    others = {name: v for name, v in provenance.items() if name not in unlike}
    settings: dict[str, Any] = json.loads(json.dumps(model | others, default=str))
    return settings
