"""Run notebooks: each in a fresh interpreter, into one folder, with a truthful table at the end.

Parameters are checked against every notebook before the first one runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from workbench.errors import NotebookError
from workbench.nb.notebook import find, load
from workbench.nb.parameters import resolve
from workbench.nb.process import TIMEOUT, execute, require_kernel
from workbench.progress import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import pandas as pd

COLUMNS = (
    "notebook", "status", "seconds", "cells", "executed", "figures", "detail", "output",
)  # fmt: skip


def run(
    paths: Iterable[str | Path],
    out: str | Path,
    parameters: Mapping[str, object] | None = None,
    timeout: float = TIMEOUT,
    *,
    say: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Run notebooks with papermill, one child process each, in the notebook's own folder.

    Args:
        paths: Notebooks, or folders of them.
        out: Where the executed copies go; the notebooks find it in `WORKBENCH_RUN_DIR` and put
            figures into `figures/` and rows into `results/` under it.
        parameters: Values for the parameters cell of every notebook.
        timeout: Seconds for one notebook.
        say: Takes the progress lines and the closing table.

    Returns:
        One row a notebook, with `COLUMNS`; `status` is ok, failed, killed or timeout.

    Raises:
        NotebookError: A path, a parameter or the kernel is wrong; then nothing has run.
        KeyboardInterrupt: Passed on once the kernel is down and the finished ones are shown.
    """
    import pandas as pd

    out = Path(out)
    plan = _plan(find(paths), out, parameters or {})
    require_kernel()
    if out.exists() and not out.is_dir():
        raise NotebookError(f"{out} is no folder; choose one for the copies")
    # An earlier run's, to which these would be added.
    (out / "metrics.json").resolve().unlink(missing_ok=True)
    rows: list[dict[str, object]] = []
    try:
        with counted(len(plan), "run", "notebook") as step:
            for number, (path, values) in enumerate(plan.items(), start=1):
                say(f"[{number}/{len(plan)}] {path}")
                rows.append(_run_one(path, out, values, timeout))
                say(f"[{number}/{len(plan)}] {path}: {_brief(rows[-1])}")
                step()
    finally:
        say(_closing(rows, out))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _plan(
    paths: list[Path], out: Path, parameters: Mapping[str, object]
) -> dict[Path, dict[str, object]]:
    names: dict[str, Path] = {}
    for path in paths:
        other = names.setdefault(path.name, path)
        if other != path:
            raise NotebookError(f"{other} and {path} share a name; run them into two folders")
        if path.resolve() == (out / path.name).resolve():
            raise NotebookError(f"{out} holds {path} itself; choose another folder for the copies")
    return {path: resolve(load(path), parameters) for path in paths}


def _run_one(path: Path, out: Path, values: dict[str, object], timeout: float) -> dict[str, object]:
    before = _figures(out)
    output = out / path.name
    outcome = execute(path, output, run_dir=out, parameters=values, timeout=timeout)
    after = _figures(out)
    return {
        "notebook": path.stem,
        "status": outcome.status,
        "seconds": outcome.seconds,
        "cells": outcome.cells,
        "executed": outcome.executed,
        "figures": [str(f) for f, stamp in after.items() if before.get(f) != stamp],
        "detail": outcome.detail,
        "output": str(output) if output.exists() else "",
    }


def _figures(out: Path) -> dict[Path, tuple[int, int]]:
    """Each figure with what changes when it is written again."""
    files = sorted(p for p in (out / "figures").glob("**/*") if p.is_file())
    return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in files}


def _brief(row: dict[str, object]) -> str:
    text = f"{row['status']}, {row['executed']}/{row['cells']} cells, {row['seconds']} s"
    return f"{text}, {row['detail']}" if row["detail"] else text


def _closing(rows: list[dict[str, object]], out: Path) -> str:
    if not rows:
        return "no notebook finished"
    import pandas as pd

    shown = [(r["status"], r["seconds"], f"{r['executed']}/{r['cells']}", _count(r)) for r in rows]
    names = [r["notebook"] for r in rows]
    headers = ["status", "seconds", "cells", "figures"]
    lines = [pd.DataFrame(shown, names, headers).to_string()]
    for row in rows:
        results = out / "results" / f"{row['notebook']}.csv"
        figures = row["figures"]
        assert isinstance(figures, list)
        written = [row["output"], *figures, *([results] if results.exists() else [])]
        lines.extend(str(path) for path in written if path)
        if results.exists():
            lines += ["", f"results of {row['notebook']}", _table_of(results)]
    return "\n".join(lines)


def _table_of(results: Path) -> str:
    import pandas as pd

    try:
        frame = pd.read_csv(results)
    except ValueError as error:  # empty, or no table
        return f"{results} cannot be read: {error}"
    return frame.to_string(index=False)


def _count(row: dict[str, object]) -> int:
    figures = row["figures"]
    return len(figures) if isinstance(figures, list) else 0
