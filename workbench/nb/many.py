"""Run notebooks, each in a fresh interpreter, into one folder, with a summary table at the end.

Parameters are checked against every notebook before the first one runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from workbench.errors import NotebookError
from workbench.lazy import pd
from workbench.nb.execution import TIMEOUT, execute, require_kernel
from workbench.nb.notebook import find, load
from workbench.nb.parameters import resolve
from workbench.progress import counted

COLUMNS = (
    "notebook", "status", "seconds", "cells", "executed", "figures", "detail", "output",
)  # fmt: skip


def run(
    paths: str | Path | Iterable[str | Path],
    out: str | Path,
    parameters: Mapping[str, object] | None = None,
    timeout: float = TIMEOUT,
    *,
    say: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Run notebooks with papermill, one child process each, in the notebook's own folder.

    Args:
        paths: Notebooks, or folders of them.
        out: The folder for the executed copies. It is the notebooks' `WORKBENCH_RUN_DIR`, where
            they write figures to `figures/` and rows to `results/`.
        parameters: Values for the parameters cell of every notebook.
        timeout: Seconds per notebook.
        say: Called with progress lines and the closing table.

    Returns:
        One row per notebook, with `COLUMNS`; `status` is ok, failed, killed or timeout.

    Raises:
        NotebookError: A path, a parameter or the kernel is wrong, and nothing has run.
        KeyboardInterrupt: Raised again after the kernel is down and finished ones are printed.
    """
    out = Path(out)
    plan = _plan(find(paths), out, parameters or {})
    require_kernel()
    if out.exists() and not out.is_dir():
        raise NotebookError(f"{out} is not a folder; choose one for the copies")
    # From an earlier run, whose values would mix with these.
    (out / "metrics.json").resolve().unlink(missing_ok=True)
    rows: list[dict[str, Any]] = []
    try:
        with counted(len(plan), "run", "notebook") as step:
            for number, (path, values) in enumerate(plan.items(), start=1):
                say(f"[{number}/{len(plan)}] {path}")
                row = _run_one(path, out, values, timeout)
                rows.append(row)
                ended = f"{row['status']}, {row['executed']}/{row['cells']} cells"
                detail = f", {row['detail']}" if row["detail"] else ""
                say(f"[{number}/{len(plan)}] {path}: {ended}, {row['seconds']} s{detail}")
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


def _run_one(path: Path, out: Path, values: dict[str, object], timeout: float) -> dict[str, Any]:
    before, output = _figures(out), out / path.name
    outcome = execute(path, output, run_dir=out, parameters=values, timeout=timeout)
    figures = [str(f) for f, stamp in _figures(out).items() if before.get(f) != stamp]
    shown = str(output) if output.exists() else ""
    return {"notebook": path.stem, **asdict(outcome), "figures": figures, "output": shown}


def _figures(out: Path) -> dict[Path, tuple[int, int]]:
    """Each figure with its time and size, which change when it is written again."""
    files = sorted(p for p in (out / "figures").glob("**/*") if p.is_file())
    return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in files}


def _closing(rows: list[dict[str, Any]], out: Path) -> str:
    if not rows:
        return "no notebook finished"
    shown = [
        (row["status"], row["seconds"], f"{row['executed']}/{row['cells']}", len(row["figures"]))
        for row in rows
    ]
    names = [row["notebook"] for row in rows]
    lines = [pd.DataFrame(shown, names, ["status", "seconds", "cells", "figures"]).to_string()]
    for row in rows:
        results = out / "results" / f"{row['notebook']}.csv"
        lines += filter(None, [row["output"], *row["figures"]])
        if results.exists():
            try:
                table = pd.read_csv(results).to_string(index=False)
            except ValueError as error:  # empty, or not a table
                table = f"{results} cannot be read: {error}"
            lines += [str(results), "", f"results of {row['notebook']}", table]
    return "\n".join(lines)
